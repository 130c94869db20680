"""Folders: what is read back, what is refused in one line, and memory that is given back."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from lissome.core.errors import ArtifactError, LissomeError, NumericsError, UnknownNameError
from lissome.core.manifest import Base, Manifest
from lissome.models.artifact import config_of
from lissome.models.binding import extract
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.toys import toy_model

_IDS = torch.arange(3, 15).unsqueeze(0)


@pytest.fixture
def small() -> Model:
    whole = toy_model("gemma3")
    return extract(whole, whole.space().sample(Random(4)))


@pytest.fixture
def folder(small: Model, tmp_path: Path) -> Path:
    return small.save(tmp_path / "small", manifest=Manifest(name="small", base=Base(name="toy", architecture="gemma3")))


def _one_line(error: pytest.ExceptionInfo[LissomeError]) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_weights(cut: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(ArtifactError, match="cut short") as error:
        load_model(folder)
    _one_line(error)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="damaged") as error:
        load_model(folder)
    _one_line(error)


def test_changed_weights_are_noticed(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        load_model(folder)


def test_a_manifest_from_the_future(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(ArtifactError, match="upgrade"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin"])
def test_an_index_that_leaves_the_folder(name: str, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ArtifactError, match="only safetensors files inside the folder") as error:
        load_model(folder)
    _one_line(error)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="only safetensors weights are read"):
        load_model(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: {**config, "model_type": "nothing"},
        lambda config: {**config, "layers": config["layers"][:-1]},
        lambda config: {**config, "layers": [{**config["layers"][0], "mlp": {"width": 10**6}}, *config["layers"][1:]]},
        lambda config: {**config, "base": None},
        lambda config: {key: value for key, value in config.items() if key != "layers"},
        lambda config: [config],
    ],
)
def test_configurations_that_make_no_sense(damage: object, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    assert callable(damage)
    (folder / "config.json").write_text(json.dumps(damage(config)))
    with pytest.raises(ArtifactError) as error:
        load_model(folder)
    _one_line(error)


def test_weights_that_are_not_finite(small: Model, tmp_path: Path) -> None:
    name, parameter = next(iter(small.module.named_parameters()))
    parameter.data.view(-1)[5] = float("inf")
    small.save(tmp_path / "bad")
    with pytest.raises(NumericsError, match=name.replace(".", r"\.")):
        load_model(tmp_path / "bad")


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="not a file"):
        load_model("nonsense")
    other = tmp_path / "model.onnx"
    other.write_bytes(b"1")
    with pytest.raises(ArtifactError, match=r"neither a \.gguf nor a \.zip file"):
        load_model(other)


def test_the_configuration_says_every_block(small: Model) -> None:
    config = config_of(small)
    assert config["model_type"] == "lissome"
    assert len(config["layers"]) == config["base"]["num_hidden_layers"]
    assert "kv_sharing_modes" not in config["base"]


def test_saving_replaces_only_a_whole_folder(small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = small.save(tmp_path / "out")
    before = (target / "model.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        toy_model("llama").save(target)
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
