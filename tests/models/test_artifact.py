"""Folders: what is read back, what is refused in one line, and memory that is given back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lissome
from lissome.core.errors import ArtifactError, LissomeError, NumericsError, UnknownNameError, UnsupportedModelError
from lissome.core.manifest import Base, Manifest
from lissome.models.anatomy import anatomy_of
from lissome.models.artifact import config_of
from lissome.models.binding import extract
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
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


def test_weights_in_several_files_have_a_hash_too(tmp_path: Path) -> None:
    toy_model("llama").save(tmp_path)
    tensors, places = load_file(tmp_path / "model.safetensors"), {}
    (tmp_path / "model.safetensors").unlink()
    for shard, part in (("a.safetensors", "mlp"), ("b.safetensors", "")):
        mine = {name: value for name, value in tensors.items() if part in name and name not in places}
        save_file(mine, tmp_path / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    before = load_model(tmp_path).source.sha256
    assert before is not None and before == load_model(tmp_path).source.sha256
    tensors["model.norm.weight"] += 1
    save_file({name: tensors[name] for name in mine}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert load_model(tmp_path).source.sha256 != before


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "from int 5; give"), (None, "from None; give"), (["a"], "from list ['a']; give"),
        ("", "is empty"), ("a" * 5000, "5000 letters"), (Path("a" * 5000), "5000 letters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [load_model, lissome.load])
def test_what_names_no_model(read: Callable[[Any], Model], given: Any, words: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        read(given)
    assert words in str(error.value)
    _one_line(error)


def test_a_model_of_another_kind_is_refused_in_a_short_line() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = MixtralForCausalLM(MixtralConfig(vocab_size=9, num_key_value_heads=1, num_local_experts=2, **sizes))
    for other, words in (
        (module, r"was not understood; the model types that are: bamba, bert,"),
        (torch.nn.Embedding(2, 2), "was not understood: Embedding has no layer that says what it reads; say example="),
    ):
        with pytest.raises(UnsupportedModelError, match=words) as e:
            anatomy_of(other)
        assert len(str(e.value)) < 240
        _one_line(e)


def test_a_folder_follows_the_umask_and_does_not_say_where_it_was_read(tmp_path: Path) -> None:
    toy_model("llama").save(tmp_path / "first")
    second = load_model(tmp_path / "first").save(tmp_path / "second")
    modes = {path.stat().st_mode & 0o777 for path in second.iterdir()}
    assert modes == {(tmp_path / "second").stat().st_mode & 0o666}
    assert not [path for path in second.iterdir() if str(tmp_path).encode() in path.read_bytes()]


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


def test_a_model_from_elsewhere_is_not_written_over(small: Model, tmp_path: Path) -> None:
    toy_model("llama").module.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="did not write"):
        small.save(tmp_path / "theirs")
    for _ in range(2):
        small.save(tmp_path / "ours")


def test_what_is_beside_a_model_says_where_the_model_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no config\.json.* did you mean .*small"):
        load_model(tmp_path)
    with pytest.raises(ArtifactError, match=r"weights alone; give the folder .*small$"):
        load_model(folder / "model.safetensors")


def test_all_ends_of_a_text_are_kept_by_a_model_of_uneven_blocks(small: Model, tmp_path: Path) -> None:
    small.module.generation_config.eos_token_id = [2, 7]  # type: ignore[union-attr]
    small.save(tmp_path / "first")
    again = lissome.load(tmp_path / "first")
    assert config_of(again)["model_type"] == "lissome"
    assert again.module.generation_config.eos_token_id == [2, 7]
    again.save(tmp_path / "second")
    assert json.loads((tmp_path / "second/generation_config.json").read_text())["eos_token_id"] == [2, 7]
    (tmp_path / "second/generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(ArtifactError, match="eos_token_id must be the number of a token"):
        lissome.load(tmp_path / "second")


def test_what_is_cut_is_opened_without_a_word(tmp_path: Path) -> None:
    """In a process of its own: transformers warns of kinds of models that it was not told of."""
    toy = replace(toy_model("bert", vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())
    given = load_model(toy.save(tmp_path / "given"))
    small = extract(given, given.space().sample(Random(1)))
    assert json.loads((small.save(tmp_path / "small") / "config.json").read_text())["model_type"] == "lissome"
    code = "import sys, lissome; print(type(lissome.load(sys.argv[1]).tokenizer).__name__)"
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "small"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == type(given.tokenizer).__name__
    assert told.stderr == ""
