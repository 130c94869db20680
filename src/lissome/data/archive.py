"""NumPy archives (``.npz``): every array by its name, never a pickle; whatever is wrong is one kind of error."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive by name.

    Raises:
        ValueError: When it is no archive, holds objects, is damaged, encrypted or packed in an unknown way; says why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {Path(name).stem: _array(archive, name) for name in archive.namelist() if name.endswith(".npy")}
    except MemoryError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy's parser of headers raise a dozen kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return found
