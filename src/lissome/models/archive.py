"""Model folders that come as one zip file: unpacked once into the cache, data files alone."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from lissome.core.errors import ArtifactError
from lissome.core.files import atomic_folder, cache_dir, inside, known_sha256, locked

_DATA = {".jinja", ".json", ".model", ".safetensors", ".txt"}  # of these, none runs code when it is read


def unpack_once(archive: Path) -> Path:
    """Return the folder in which a zipped Hugging Face folder lies, unpacking it the first time.

    Files of other types than those of a model's data are left in the archive.

    Raises:
        ArtifactError: When the file is not a zip, is damaged, names a place outside of its folder, holds no
            ``config.json`` at its top, or does not fit on the disk.
    """
    folder = cache_dir() / "unpacked" / known_sha256(archive)[:16]
    try:
        with zipfile.ZipFile(archive) as source, locked(folder.parent / f".{folder.name}.lock"):
            members = [info for info in source.infolist() if PurePosixPath(info.filename).suffix in _DATA]
            if not _is_whole(folder, members):
                _unpack(archive, source, members, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ArtifactError(f"{archive} is not a zip file that can be read ({error}); get it again.") from error
    return folder


def _is_whole(folder: Path, members: list[zipfile.ZipInfo]) -> bool:
    paths = [(folder / info.filename, info.file_size) for info in members]
    return bool(paths) and all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _unpack(archive: Path, source: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    if "config.json" not in {info.filename for info in members}:
        raise ArtifactError(f"{archive} holds no config.json at its top; only zipped Hugging Face folders are read.")
    needed = sum(info.file_size for info in members)
    if shutil.disk_usage(cache_dir()).free < needed:
        raise ArtifactError(
            f"{archive.name} takes {needed // 1_000_000} MB, more than is free on the disk of {cache_dir()}; free some "
            "space or set LISSOME_CACHE to another folder."
        )
    with atomic_folder(folder) as part:
        for info in members:
            path = inside(part, info.filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open(info) as packed, path.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
