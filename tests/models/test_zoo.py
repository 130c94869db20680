"""Models that ship with lissome: whole, small, what they are said to be; and what a damaged folder says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lissome
from lissome.core.errors import ArtifactError, UnknownNameError
from lissome.core.files import sha256_file, write_json
from lissome.models import zoo
from lissome.models.model import Model
from lissome.pipeline.loading import licence_of
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import toy_model


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one toy."""
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    Model(toy_model("mamba2").module, toy_tokenizer()).save(tmp_path / "zoo-toy")
    files = {path.name: sha256_file(path) for path in (tmp_path / "zoo-toy").iterdir()}
    entry = {"summary": "a toy", "bits_per_byte": {"mean": 7.5}, "files": files, "training": {"steps": 0}}
    write_json(tmp_path / zoo.INDEX, {"zoo-toy": entry})
    return tmp_path


def test_a_name_is_all_it_takes(root: Path) -> None:
    model = lissome.load("zoo-toy")
    assert model.name == "zoo-toy" and model.anatomy.architecture == "mamba2"
    assert licence_of(model) == zoo.LICENCE
    assert zoo.zoo()["zoo-toy"].bits_per_byte == {"mean": 7.5}


def test_what_is_wrong_is_said(root: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean the asset 'zoo-toy'"):
        lissome.load("zoo-tyo")
    with pytest.raises(UnknownNameError, match="zoo-toy"):
        zoo.folder_of("mamba")
    with (root / "zoo-toy" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="not the file that was trained"):
        lissome.load("zoo-toy")
    write_json(root / zoo.INDEX, {"zoo-toy": {"summary": "a toy", "files": {}}})
    with pytest.raises(ArtifactError, match="bits_per_byte"):
        zoo.zoo()


def test_other_qualities_are_told_too(root: Path) -> None:
    known = zoo.ZooModel(summary="a toy", files={}, quality={"miou": 0.8123})
    assert known.told == "miou 0.812 on held-out examples"
    assert zoo.zoo()["zoo-toy"].told == "7.50 bits per byte on held-out text"


def test_without_weights_there_is_none(tmp_path: Path) -> None:
    assert zoo.zoo(tmp_path) == {}


needs_zoo = pytest.mark.skipif(not zoo.zoo(), reason="the zoo has not been trained yet: python -m tools.train_zoo")


@needs_zoo
def test_what_ships_is_small() -> None:
    sizes = [path.stat().st_size for path in zoo.ZOO.rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6


@needs_zoo
@pytest.mark.parametrize("name", sorted(name for name, known in zoo.zoo().items() if known.bits_per_byte))
def test_what_ships_writes_words(name: str) -> None:
    known, model = zoo.zoo()[name], lissome.load(name)
    assert known.bits_per_byte["mean"] <= 1.9 or known.training["seconds"] > 0
    ids = torch.tensor([model.tokenizer("The President of the United ")["input_ids"]])
    text = model.tokenizer.decode(model.module.generate(ids, max_new_tokens=6, do_sample=False)[0])
    assert text.endswith("States")
