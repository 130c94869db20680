"""Images with one point each and the mask of what the point is on, from a NumPy archive, dealt into parts."""

# N images, H × W pixels, C channels

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import DataError
from lissome.data.archive import read_arrays

_KEYS = ("image", "point", "mask")
_FORM = "give an .npz archive with image (uint8, N×H×W×C), point (N×2: x and y in pixels) and mask (N×H×W, 0 or 1)"


@dataclass(frozen=True, eq=False)
class Prompted:
    """Images, a point in each, and the mask of the object that the point is on.

    Attributes:
        name: What the user called them.
        images: uint8[N, H, W, C].
        points: float32[N, 2], x and y in pixels.
        masks: bool[N, H, W].
        groups: Images of one group (objects of one scene, say) never lie in different parts; int64[N].
        tests: Which of them the source keeps for tests, bool[N]; none where it does not say.
        sha256: Hash of the content.
    """

    name: str
    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    masks: NDArray[np.bool_]
    groups: NDArray[np.int64]
    tests: NDArray[np.bool_]
    sha256: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def parts(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, Sequence[int]]:
        """Deal positions out by groups; the source's own test images are the part ``test``, where it has some.

        Raises:
            DataError: When a part gets none.
        """
        rest = dict(shares)
        found: dict[str, Sequence[int]] = {}
        if self.tests.any():
            found["test"] = np.flatnonzero(self.tests).tolist()
            rest.pop("test", None)
        groups = sorted(set(self.groups[~self.tests].tolist()))
        Random(seed).shuffle(groups)
        whole, start = sum(rest.values()), 0.0
        for name, share in rest.items():
            edges = [round(edge / whole * len(groups)) for edge in (start, start + share)]
            chosen = set(groups[slice(*edges)])
            found[name] = [at for at in np.flatnonzero(~self.tests).tolist() if int(self.groups[at]) in chosen]
            start += share
        for name, places in found.items():
            if not places:
                raise DataError(
                    f"{self.name} has {len(self)} images, too few for the part {name!r}; give more of them."
                )
        return found


def holds_masks(source: str | Path) -> bool:
    """Whether a file is an archive of images with masks."""
    path = Path(source)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return "mask.npy" in archive.namelist()
    return False


def read_masks(source: str | Path) -> Prompted:
    """Read images with masks.

    Args:
        source: An ``.npz`` archive; beside what every one has perhaps ``group`` (int, N) and ``is_train`` (bool, N).

    Raises:
        DataError: When it is none, or its arrays do not go together.
    """
    path = Path(source)
    if not holds_masks(path):
        raise DataError(f"{source} is no archive of images with masks; {_FORM}.")
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); {_FORM}.") from error
    missing = [name for name in _KEYS if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {missing[0]}; {_FORM}.")
    images, points, masks = (arrays[name] for name in _KEYS)
    images = images if images.ndim == 4 else images[..., None]
    fits = images.dtype == np.uint8 and images.ndim == 4 and masks.shape == images.shape[:3]
    if not fits or points.shape != (len(images), 2) or not len(images):
        shapes = ", ".join(f"{name} {list(arrays[name].shape)}" for name in _KEYS)
        raise DataError(f"{path}: {shapes} do not go together; {_FORM}.")
    count = len(images)
    for name in ("group", "is_train"):
        if name in arrays and (arrays[name].shape != (count,) or arrays[name].dtype.kind not in "iub"):
            raise DataError(f"{path}: its {name} is not one whole number for each of {count} images; write it again.")
    groups = np.asarray(arrays.get("group", np.arange(count)), dtype=np.int64)
    tests = ~np.asarray(arrays["is_train"], dtype=bool) if "is_train" in arrays else np.zeros(count, dtype=bool)
    digest = hashlib.sha256()
    for array in (images, points, masks, groups, tests):
        digest.update(np.ascontiguousarray(array).tobytes())
    return Prompted(
        str(source), images, points.astype(np.float32), masks.astype(bool), groups, tests, digest.hexdigest()
    )
