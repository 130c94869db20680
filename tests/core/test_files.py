"""Files: whole or absent whatever happens, nothing of anybody else's removed, no path outside."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core import files
from lissome.core.errors import ArtifactError, NumericsError
from lissome.core.files import atomic_file, atomic_folder, inside, locked, read_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.txt"
    write_text(target, "first")
    with pytest.raises(RuntimeError), atomic_file(target) as part:  # noqa: PT012
        part.write_text("half")
        assert target.read_text() == "first"
        raise RuntimeError
    assert target.read_text() == "first"
    write_text(target, "second ü")
    assert target.read_text(encoding="utf-8") == "second ü"
    assert names(target.parent) == ["report.txt"]


def test_a_folder_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as part:
        write_json(part / "manifest.json", {"version": 1})
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("a")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as part:  # noqa: PT012
        write_json(part / "manifest.json", {"version": 2})
        raise KeyboardInterrupt
    assert read_json(target / "manifest.json") == {"version": 1}
    with atomic_folder(target) as part:
        write_json(part / "manifest.json", {"version": 3})
    assert names(target) == ["manifest.json"]
    assert names(tmp_path) == ["model"]


def test_a_failed_exchange_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    write_json(target / "manifest.json", 1)
    real = Path.replace

    def replace(self: Path, to: Path) -> Path:
        if self.suffix == ".part" and self.is_dir():
            raise OSError(errno.EIO, "no")
        return real(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="no"), atomic_folder(target) as part:
        write_json(part / "new", 2)
    assert names(tmp_path) == ["model"]
    assert names(target) == ["manifest.json"]


def test_somebody_elses_folder_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    with pytest.raises(ArtifactError, match=r"thesis\.tex"), atomic_folder(home):
        pytest.fail("the work began")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="not a folder"), atomic_folder(tmp_path / "file"):
        pytest.fail("the work began")
    assert (home / "thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as part:
        (part / "a").touch()
    assert names(tmp_path / "empty") == ["a"]


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "out") as part:
        (part / "a").touch()
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == ["a"]


def test_the_users_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "secret", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_files_that_others_put_there_follow_the_umask(tmp_path: Path) -> None:
    """Libraries that write a file of their own and rename it give it permissions of their own (safetensors: 0600)."""
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as part:
            part.unlink()
            part.touch(mode=0o600)
        with atomic_folder(tmp_path / "folder") as part:
            (part / "inner").mkdir()
            (part / "inner" / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder" / "inner" / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder" / "inner").stat().st_mode & 0o777 == 0o750


KILLED = """
import sys, time
from pathlib import Path
from lissome.core.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as part:
    (part / "weights").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_cleared_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with atomic_folder(target) as part:
            (part / "manifest.json").touch()
        assert len(names(tmp_path)) == 2, "the living writer's folder was removed"
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 2
    with atomic_folder(target) as part:
        (part / "manifest.json").touch()
    assert names(tmp_path) == ["model"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The state such a kill leaves: the old folder under its other name, the new one unnamed, no target."""
    old = tmp_path / ".model.0123456789ab.old"
    old.mkdir()
    write_json(old / "manifest.json", "former")
    (tmp_path / ".model.ba9876543210.part").mkdir()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model"):
        raise RuntimeError
    assert names(tmp_path) == ["model"]
    assert read_json(tmp_path / "model" / "manifest.json") == "former"


def test_files_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.notes.part").touch()
    (tmp_path / ".a.txt").touch()
    write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == [".a.txt", ".a.txt.notes.part", "a.txt"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lissome.core.files import atomic_file, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_text(Path(sys.argv[1]), "x" * 100_000)
except OSError as error:
    print("refused", error.errno)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_text(target, "old")
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"refused {errno.EFBIG}" in result.stdout
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_nan_is_not_json(tmp_path: Path) -> None:
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(NumericsError, match="NaN or infinite"):
            write_json(tmp_path / "a.json", value)
    for text in ("NaN", '{"a": -Infinity}', "[", "", "{}".encode("utf-16"), "[" * 100_000, "9" * 5000):
        (tmp_path / "b.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ArtifactError, match="not valid JSON"):
            read_json(tmp_path / "b.json")
    assert names(tmp_path) == ["b.json"]


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "large.json").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        read_json(tmp_path / "large.json", limit=100)


@pytest.mark.parametrize(
    "name", ["../b", "/etc/passwd", "a/../../b", "link/b", "link", "loop", "x\0y", "a" * 5000, "\ud800"]
)
def test_paths_that_escape(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(ArtifactError):
        inside(root, name)


@given(st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "", "/", "\0"])).map("/".join))
def test_a_path_is_inside_or_refused(tmp_path: Path, name: str) -> None:
    try:
        path = inside(tmp_path, name)
    except ArtifactError:
        return
    assert path == tmp_path.resolve() or tmp_path.resolve() in path.parents


def test_the_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = files.known_sha256(path)
    assert first == files.sha256_file(path)
    monkeypatch.setattr(files, "sha256_file", lambda path: "taken again")
    assert files.known_sha256(path) == first
    path.write_bytes(b"other")
    assert files.known_sha256(path) == "taken again"


def test_a_lock_makes_others_wait(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lissome.core.files import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with second:
            assert second.stdout is not None
            os.set_blocking(second.stdout.fileno(), False)
            time.sleep(0.5)
            assert second.stdout.read() is None or second.poll() is None
            process.communicate()
            os.set_blocking(second.stdout.fileno(), True)
            assert second.stdout.readline() == b"in\n"
            second.communicate()


def test_a_lock_that_is_held_is_waited_for_as_long_as_was_said(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path), pytest.raises(ArtifactError, match="locked by another process"), locked(path, patience=0.1):
        pass
    with locked(path, patience=0.1), pytest.raises(ArtifactError), locked(path, patience=0.0):
        pass
    with locked(path):
        pass
