"""Files that are either whole or absent, and paths that stay where they belong."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError, ConfigError, LissomeError, NumericsError

JSON_LIMIT = 64 << 20  # bytes; the largest file we write is far below, a larger one is not ours
_RANDOM = re.compile(r"[0-9a-f]{12}")
_PAUSE = 0.02  # seconds between two looks at a lock
_OURS = ("manifest.json", "config.json")


def cache_dir() -> Path:
    """Return the folder for fetched and converted files: `LISSOME_CACHE`, else ``~/.cache/lissome``."""
    chosen = os.environ.get("LISSOME_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lissome"


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> str:
    """Return one sha256 for files: of a single one its own, of several that of a list of their hashes and names."""
    if len(paths) == 1:
        return sha256_file(paths[0])
    listed = "".join(f"{sha256_file(path)}  {path.name}\n" for path in paths)  # as sha256sum writes it
    return hashlib.sha256(listed.encode()).hexdigest()


def inside(root: Path, name: str) -> Path:
    """Return `root / name`, refusing a name that leaves `root` (absolute, `..`, or through a link).

    Raises:
        ArtifactError: When the resolved path is not inside `root`, or is not a path at all.
    """
    base = root.resolve()
    try:
        path = (base / name).resolve()
        path.is_file()  # the system, not the resolution, refuses names that are too long
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL or half a character
        raise ArtifactError(f"{ascii(name)[:80]} is not a usable path inside {root} ({error}).") from error
    if path != base and base not in path.parents:
        raise ArtifactError(f"path {name!r} escapes the folder {root}; only files inside it are read or written.")
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(target: Path, suffix: str) -> Path:
    """Return an unused hidden name beside `target`."""
    return target.parent / f".{target.name}.{secrets.token_hex(6)}{suffix}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sweep(target: Path) -> None:
    """Clear away what killed processes left beside `target`; what a living one is writing is locked, and stays.

    A process killed between the two renames of `_swap` left no `target`, but the former one under its other name.
    """
    mine = f".{target.name}."
    for path in [path for path in target.parent.iterdir() if path.name.startswith(mine)]:
        random, _, suffix = path.name.removeprefix(mine).partition(".")
        if not _RANDOM.fullmatch(random):
            continue
        if suffix == "old" and not os.path.lexists(target):
            path.replace(target)
        elif suffix in ("part", "old"):
            with contextlib.suppress(OSError), _lock(path, wait=False):
                _remove(path)


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on an existing file or folder; the system drops it when the process dies."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_use(path: Path) -> Iterator[None]:
    """Tell `_sweep` in other processes that `path` is being written, where the file system has locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without locks nothing is ever swept either
            stack.enter_context(_lock(path, wait=False))
        yield


def _ready(target: Path) -> Path:
    """Return where `target` really is (a link to another disk is followed), in a folder that exists and is swept."""
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    return target


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target`, on failure it is removed.

    Whoever writes it, the file has the permissions that the process gives new files (its umask).

    Raises:
        OSError: When the place cannot be written or the disk is full; `target` is as it was.
    """
    target = _ready(target)
    part = _beside(target, ".part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        with _in_use(part):
            yield part
            part.chmod(mode)  # safetensors and others put a file of their own there that nobody else may read
            _sync(part)
            part.replace(target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, *, ours: tuple[str, ...] = _OURS) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it takes the place of `target`.

    An older `target` is kept until the new one is whole, then removed. Permissions are as of `atomic_file`.

    Args:
        target: The folder to make.
        ours: Names of files of which an older, non-empty `target` must hold one; anything else is somebody's own
            folder and is never removed. Default: what an artifact or a Hugging Face folder has.

    Raises:
        ArtifactError: When `target` is a file, or a folder that holds something else.
        OSError: When the place cannot be written or the disk is full; `target` is as it was.
    """
    target = _ready(target)
    check_replaceable(target, ours)
    part = _beside(target, ".part")
    try:
        part.mkdir()
        with _in_use(part):
            yield part
            mode = part.stat().st_mode & 0o666
            for path in (part, *part.rglob("*")):
                if path.is_file():
                    path.chmod(mode)  # as of `atomic_file`
                _sync(path)
            _swap(part, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_replaceable(target: Path, ours: tuple[str, ...] = _OURS) -> None:
    """Refuse a place whose content is not ours to replace; a long job asks this before it starts.

    Args:
        target: Where a folder shall be written.
        ours: As of `atomic_folder`.

    Raises:
        ArtifactError: When `target` is a file, or a folder that is not empty and holds none of `ours`.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ArtifactError(f"{target} exists and is not a folder; name another place for the result.")
    names = {path.name for path in target.iterdir()}
    if names and not names.intersection(ours):
        raise ArtifactError(
            f"{target} holds other files ({min(names)} …) and is not a saved model; name a new or an empty folder."
        )


def check_writable(target: Path) -> None:
    """Refuse a place that cannot be written, whether a file or a folder shall stand there; asked before any work.

    Raises:
        ConfigError: When a part of the path is a file, or the nearest folder that exists takes no files.
        OSError: When the disk is full.
    """
    try:
        target.is_file()  # the system refuses names that are too long
        chain = [target.absolute(), *target.absolute().parents]
        itself = target.is_dir() or (target.is_symlink() and not target.exists())  # no file is made behind a dead link
        place = next(path for path in chain[0 if itself else 1 :] if os.path.lexists(path))
        tempfile.TemporaryFile(dir=place).close()
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from error


def unwritable(target: Path, error: OSError | ValueError) -> LissomeError | OSError | ValueError:
    """Return what to raise for a place that a user named and that cannot be written; a full disk stays what it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    name = str(target) if len(str(target)) < 200 else f"{str(target)[:40]}…"
    return ConfigError(f"{name} cannot be written ({reason}); name another place, or change its permissions.")


def _swap(part: Path, target: Path) -> None:
    if not os.path.lexists(target):
        part.replace(target)
        return
    old = _beside(target, ".old")
    target.replace(old)
    try:
        part.replace(target)
    except OSError:
        old.replace(target)
        raise
    _remove(old)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text so that `target` is either the old file or the whole new one."""
    with atomic_file(target) as part:
        part.write_text(text, encoding="utf-8")


def json_text(value: Any, where: str, *, indent: int | None = None) -> str:
    """Return `value` as JSON.

    Raises:
        NumericsError: When it holds NaN or infinity, which JSON has no words for; `where` says what was to be written.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise NumericsError(f"{where} was not written: a figure for it is NaN or infinite.") from error


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        NumericsError: When it holds NaN or infinity.
    """
    write_text(target, json_text(value, str(target), indent=2) + "\n")


def read_json(path: Path, *, limit: int = JSON_LIMIT, finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        limit: Bytes above which it is refused unread.
        finite: Refuse NaN and infinity, which are not JSON; older Mamba-2 configurations on the hub hold them.

    Raises:
        ArtifactError: When it is missing, unreadable, too large, or not JSON.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ArtifactError(f"{path} cannot be read (it is not a plain file); restore or remake it.")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from error
    if len(content) > limit:
        raise ArtifactError(f"{path} is larger than {limit} bytes; it is not a file that lissome wrote.")
    return parse_json(content, str(path), finite=finite)


def parse_json(content: bytes | str, where: str, *, finite: bool = True) -> Any:
    """Parse JSON.

    Args:
        content: The text, UTF-8 when bytes.
        where: How to call it in an error.
        finite: Refuse NaN and infinity.

    Raises:
        ArtifactError: When it is not JSON, or an object has a key twice.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, parse_constant=_refuse if finite else None, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of too many digits
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{where} is not valid JSON ({reason}); it is damaged, restore or remake it.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, whose keys must differ: readers do not agree on which of two values counts."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)[:60]!r} occurs twice")
    return made


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def known_sha256(path: Path) -> str:
    """Return the sha256 of a file, remembered in the cache for as long as its path, size and time stay the same."""
    facts = path.stat()
    place = str(path.resolve())
    stamp = {"path": place, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    note = cache_dir() / "stamps" / (hashlib.sha256(place.encode()).hexdigest()[:32] + ".json")
    with contextlib.suppress(ArtifactError):  # absent or damaged: take the sum again
        known = read_json(note)
        if isinstance(known, dict) and {key: known.get(key) for key in stamp} == stamp:
            return str(known.get("sha256"))
    digest = sha256_file(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
        write_json(note, {**stamp, "sha256": digest})
    return digest


@contextlib.contextmanager
def locked(path: Path, *, patience: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when missing) against other processes; waits for it.

    Args:
        path: The file; what it holds does not matter.
        patience: Seconds to wait at most (default: for as long as it takes).

    Raises:
        ArtifactError: When another process still holds it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    deadline = time.monotonic() + patience if patience is not None else None
    with contextlib.ExitStack() as stack:
        while deadline is not None:
            try:
                stack.enter_context(_lock(path, wait=False))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ArtifactError(
                        f"{path} is locked by another process; let that end, then give the same command again."
                    ) from None
                time.sleep(_PAUSE)
        else:
            stack.enter_context(_lock(path))
        yield
