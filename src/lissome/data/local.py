"""Public data sets that lie beside a checkout and never inside it: found through `LISSOME_DATA`, checked by sha256."""

from __future__ import annotations

import os
from pathlib import Path

from lissome.core.errors import AssetError
from lissome.core.files import inside, known_sha256

_DEFAULT = "../shared/data"


def data_dir() -> Path:
    """Return the folder of local data sets: `LISSOME_DATA`, else ``../shared/data``."""
    return Path(os.environ.get("LISSOME_DATA") or _DEFAULT).expanduser()


def data_file(name: str, sha256: str) -> Path:
    """Return a file of the folder of local data sets.

    Args:
        name: Path below the folder, e.g. ``"choice/piqa.jsonl"``.
        sha256: Its checksum, hexadecimal.

    Raises:
        AssetError: When it is absent (tests skip then) or is another file than the pinned one.
    """
    path = inside(data_dir(), name)
    if not path.is_file():
        raise AssetError(f"the data file {name} is not in {data_dir()}; set LISSOME_DATA to the folder that has it.")
    found = known_sha256(path)
    if found != sha256:
        raise AssetError(f"{path} has sha256 {found[:12]}…, expected {sha256[:12]}…; it is another file, restore it.")
    return path
