"""Images with masks: what is read and refused; how they are dealt out is in `tests/tools/test_train_minisam.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lissome.core.errors import DataError
from lissome.data.masks import holds_masks, read_masks

WHOLE: dict[str, Any] = {
    "image": np.zeros((4, 6, 5, 3), np.uint8),
    "point": np.ones((4, 2)),
    "mask": np.ones((4, 6, 5), np.uint8),
}


def test_grey_images_groups_and_marks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, **{**WHOLE, "image": WHOLE["image"][..., 0]}, group=[0, 0, 1, 1], is_train=[1, 1, 1, 0])
    found = read_masks(file)
    assert found.images.shape == (4, 6, 5, 1) and found.masks.all()
    assert found.groups.tolist() == [0, 0, 1, 1] and found.tests.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"point": np.int64(3)}, "do not go together"),
        ({"mask": np.ones((4, 5, 6), np.uint8)}, "do not go together"),
        ({"image": WHOLE["image"].astype(float)}, "do not go together"),
        ({"group": np.array(["a", "b", "a", "b"])}, "group is not one whole number for each of 4 images"),
        ({"group": np.arange(3)}, "group is not one whole number for each of 4 images"),
        ({"is_train": np.int64(1)}, "is_train is not one whole number for each of 4 images"),
        ({"point": np.array([None] * 4)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{**WHOLE, **arrays})
    with pytest.raises(DataError, match=words) as error:
        read_masks(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, **WHOLE)
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"PK\x01\x02")] ^= 1  # the list of what is in it
    file.write_bytes(whole)
    assert not holds_masks(file)
    with pytest.raises(DataError, match="is no archive of images with masks"):
        read_masks(file)
