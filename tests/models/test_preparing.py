"""How images become numbers goes where the model goes, and is what lissome itself does with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissome.core.errors import ArtifactError, DataError
from lissome.data.images import Images
from lissome.engine.images import examples
from lissome.models.binding import extract
from lissome.models.load import load_model
from lissome.models.preparing import FILES
from lissome.testing.toys import toy_model

STATED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.2], "do_normalize": True}


def beside(folder: Path, fields: Any, name: str = FILES[0]) -> Path:
    toy_model("vit-labels").save(folder)
    (folder / name).write_text(json.dumps(fields))
    return folder


def white() -> Images:
    pixels = np.full((30, 30, 3), 255, np.uint8)
    return Images("white", (lambda: pixels,) * 2, (0, 1), ("a", "b"), {}, "0" * 64)


@pytest.mark.parametrize(("name", "fields"), [(FILES[0], STATED), (FILES[1], {"image_processor": STATED})])
def test_it_is_kept_by_what_is_made_of_a_model(name: str, fields: Any, tmp_path: Path) -> None:
    model = load_model(beside(tmp_path / "first", fields, name))
    shutil.rmtree(tmp_path / "first")
    for index, one in enumerate((model, extract(model, {"layers.0.mlp.width": 17}))):
        one.save(tmp_path / str(index))
        assert json.loads((tmp_path / str(index) / name).read_text()) == fields
        found = examples(load_model(tmp_path / str(index)), white()).pixels(0)
        assert torch.allclose(found[:, 0, 0], torch.tensor([1.8, 3.2, 3.5]))


def test_pixels_as_they_are_and_one_number_for_all_channels(tmp_path: Path) -> None:
    model = load_model(beside(tmp_path, STATED | {"do_normalize": False}))
    assert torch.allclose(examples(model, white()).pixels(0), torch.tensor(1.0))
    toy_model("vit-labels").save(tmp_path / "one")
    (tmp_path / "one" / FILES[0]).write_text('{"image_mean": 0.5, "image_std": 0.25}')
    assert torch.allclose(examples(load_model(tmp_path / "one"), white()).pixels(0), torch.tensor(2.0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([1], "is not a JSON object"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must be positive numbers"),
        ({"image_mean": ["a"]}, "image_mean must be numbers"),
        ({"image_mean": []}, "image_mean must be numbers"),
    ],
)
def test_what_cannot_be_is_refused(fields: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        load_model(beside(tmp_path, fields))


def test_other_numbers_than_channels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 means and 3 deviations of pixels, but reads 3 channels"):
        examples(load_model(beside(tmp_path, {"image_mean": [0.5, 0.5]})), white())
