"""What the claims learn from: images of all classes, and none of them in two places."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import _tasks
from lissome.core.errors import AssetError


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path))
    try:
        _tasks.photographs()
    except AssetError as error:
        pytest.skip(str(error))


def test_some_images_are_of_all_classes_and_others_are_others() -> None:
    def pictures(file: Path) -> tuple[set[bytes], np.ndarray, np.ndarray]:
        with np.load(file) as found:
            blob, starts = found["blob"], found["offsets"]
            each = {blob[start:end].tobytes() for start, end in pairwise(starts)}
            return each, found["label"], found["is_train"]

    few, labels, learnt = pictures(_tasks.few_photographs(600, 200))
    for part in (learnt, ~learnt):
        assert set(labels[part]) == set(range(10)), "the archive is in the order of its classes"
    others, known, _ = pictures(_tasks.other_photographs(49000))
    assert set(known) == set(range(10)) and not few & others


def test_turned_images_are_those_that_others_leave_out() -> None:
    def opened(file: Path, count: int) -> list[np.ndarray]:
        with np.load(file) as found:
            blob, starts = found["blob"], found["offsets"]
            pieces = [blob[slice(*starts[at : at + 2])].tobytes() for at in range(count)]
        return [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in pieces]

    given, turned = opened(_tasks.few_photographs(30, 0), 30), opened(_tasks.turned_photographs(30), 30)
    for before, after in zip(given, turned, strict=True):
        assert np.array_equal(np.rot90(before), after)
