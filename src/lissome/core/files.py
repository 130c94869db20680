"""Files that are either whole or absent, and paths that stay where they belong."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError

_CHUNK = 1 << 20


def cache_dir() -> Path:
    """Return the folder for fetched and converted files: `LISSOME_CACHE`, else ``~/.cache/lissome``."""
    chosen = os.environ.get("LISSOME_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "lissome"


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def inside(root: Path, name: str) -> Path:
    """Return `root / name`, refusing a name that leaves `root` (absolute, `..`, or through a link).

    Raises:
        ArtifactError: When the resolved path is not inside `root`.
    """
    base = root.resolve()
    path = (base / name).resolve()
    if path != base and base not in path.parents:
        raise ArtifactError(f"path {name!r} escapes the folder {root}; only files inside it are read or written.")
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target`, on failure it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        _sync(part)
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it takes the place of `target`.

    An older `target` is kept until the new one is whole, then removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _sync(file)
        part.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.replace(old / "was")
            part.replace(target)
            shutil.rmtree(old)
        else:
            part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text so that `target` is either the old file or the whole new one."""
    with atomic_file(target) as part:
        part.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: When it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); the file is damaged, restore or remake it.") from error


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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when missing) against other processes; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
