"""Folders that are damaged or made up: each is one line that names what is wrong, and nothing random is filled in."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lissome.cli._failures import failure
from lissome.core.errors import ArtifactError, LissomeError
from lissome.core.manifest import Base, Manifest
from lissome.models.binding import extract
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.toys import toy_inputs, toy_model, toy_module

FAMILIES = ("llama", "gpt2", "bert-tokens", "mamba2")
SMALL = {"num_hidden_layers": 2}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stock(family: str, tmp_path: Path) -> Path:
    """A folder as transformers writes it."""
    folder = tmp_path / "stock"
    toy_module(family).save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture
def uneven(family: str, tmp_path: Path) -> Path:
    """An artifact with uneven blocks and a manifest."""
    whole = toy_model(family)
    space = whole.space()
    subnet = space.sample(Random(4))
    small = extract(whole, subnet, space=space)
    base = Base(name="toy", architecture=whole.anatomy.architecture)
    layers = tuple(small.anatomy.layers())
    manifest = Manifest(
        name="small", base=base, space=space.to_json(), subnet=subnet.to_json(), layers=layers, lineage=()
    )
    return small.save(tmp_path / "uneven", manifest=manifest)


def refused(folder: Path, words: str) -> str:
    """The one line with which a folder is refused; the exit code is of a user's mistake."""
    with pytest.raises(ArtifactError, match=words) as caught:
        load_model(folder)
    line, code = failure(caught.value)
    assert code == 2
    assert "\n" not in line
    assert len(line) < 600
    return line


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(change(fields)))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def matrix(tensors: dict[str, Tensor]) -> str:
    """Name of a matrix inside a block."""
    return next(name for name in sorted(tensors) if tensors[name].dim() == 2 and re.search(r"\.\d+\.", name))


def forget_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)


def without_manifest(kind: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(kind)
    forget_manifest(folder)
    return folder


@pytest.mark.parametrize("kind", ["stock", "uneven"])
@pytest.mark.usefixtures("family")
class TestWeights:
    """What the tensors of a file may be."""

    @pytest.fixture
    def folder(self, kind: str, request: pytest.FixtureRequest) -> Path:
        return without_manifest(kind, request)

    def test_a_missing_tensor_is_named(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = matrix(tensors)
        edit_weights(folder, lambda tensors: tensors.pop(name))
        refused(folder, rf"1 missing \(first {re.escape(name)}\)")

    def test_many_missing_tensors_are_counted(self, folder: Path) -> None:
        def half(tensors: dict[str, Tensor]) -> None:
            for name in sorted(tensors)[::2]:
                del tensors[name]

        before = len(load_file(folder / "model.safetensors"))
        edit_weights(folder, half)
        gone = before - len(load_file(folder / "model.safetensors"))
        tied = 1  # counted too when both of its names are gone
        assert re.search(f" ({gone}|{gone + tied}) missing", refused(folder, "missing"))

    def test_an_unknown_tensor_is_named(self, folder: Path) -> None:
        edit_weights(folder, lambda tensors: tensors.update({"foo.bar": torch.zeros(2)}))
        refused(folder, r"1 unknown \(first foo\.bar\)")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
    def test_whole_numbers_are_no_weights(self, dtype: torch.dtype, folder: Path) -> None:
        name = matrix(load_file(folder / "model.safetensors"))
        edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
        refused(folder, rf"{re.escape(name)} is stored as .*only floating numbers")

    def test_another_shape_is_named(self, folder: Path) -> None:
        name = matrix(load_file(folder / "model.safetensors"))
        edit_weights(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
        refused(folder, rf"{re.escape(name)} has the shape")

    def test_an_empty_file_of_weights(self, folder: Path) -> None:
        edit_weights(folder, lambda tensors: tensors.clear())
        refused(folder, "missing")

    def test_two_files_with_one_tensor(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        for shard in ("a", "b"):
            save_file(tensors, folder / f"{shard}.safetensors", metadata={"format": "pt"})
        places = {name: f"{'ab'[index % 2]}.safetensors" for index, name in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        refused(folder, "so does another file")


def test_a_missing_shard_is_named(stock: Path) -> None:
    tensors = load_file(stock / "model.safetensors")
    (stock / "model.safetensors").unlink()
    save_file(tensors, stock / "a.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(tensors, "a.safetensors") | {"more": "b.safetensors"}
    index = stock / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    refused(stock, r"b\.safetensors is missing")
    for damage in ({}, [], {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 5}}, {"weight_map": None}):
        index.write_text(json.dumps(damage))
        refused(stock, "index.json")


def test_links_that_leave_the_folder(stock: Path, tmp_path: Path) -> None:
    """The cache of the hub is made of links, so folders of others may hold them; artifacts hold none."""
    (stock / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (stock / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert load_model(stock)
    (stock / "model.safetensors").unlink()
    (stock / "model.safetensors").symlink_to(tmp_path / "nowhere")
    refused(stock, r"holds no model\.safetensors")
    (stock / "model.safetensors").unlink()
    (stock / "model.safetensors").symlink_to("model.safetensors")
    refused(stock, r"model\.safetensors")
    (stock / "model.safetensors").unlink()
    (stock / "model.safetensors").mkdir()
    refused(stock, r"model\.safetensors")


def test_a_pipe_is_not_waited_for(stock: Path) -> None:
    (stock / "model.safetensors").unlink()
    os.mkfifo(stock / "model.safetensors")
    refused(stock, r"model\.safetensors")
    (stock / "config.json").unlink()
    os.mkfifo(stock / "config.json")
    refused(stock, r"config\.json")


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "nosuch", "activation_function": "nosuch"}, "unknown activation 'nosuch'"),
    "activation of another type": ({"hidden_act": [1], "activation_function": [1]}, "unknown activation"),
    "huge": ({"num_hidden_layers": 10**6, "n_layer": 10**6}, "is 1000000, but the weights hold"),
    "huge number": ({"num_hidden_layers": 10**400, "n_layer": 10**400}, "must be a whole number"),
    "negative": ({"num_attention_heads": -6, "n_head": -6, "num_heads": -6}, "must be a whole number .*got -6"),
    "zero": ({"num_attention_heads": 0, "n_head": 0, "num_heads": 0}, "must be a whole number .*got 0"),
    "text": ({"hidden_size": "abc", "n_embd": "abc"}, "must be a whole number .*got 'abc'"),
    "fraction": ({"vocab_size": 61.5}, "vocab_size must be a whole number"),
    "truth": ({"vocab_size": True}, "vocab_size must be a whole number .*got True"),
    "list": ({"vocab_size": [61]}, "vocab_size must be a whole number"),
    "eps": ({"rms_norm_eps": "x", "layer_norm_eps": "x", "layer_norm_epsilon": "x"}, "must be a positive number"),
    "huge width": ({"intermediate_size": 10**9, "n_inner": 10**9}, r"\[(24, )?1000000000"),
    "kind of another type": ({"model_type": {"a": 1}}, "is unknown"),
    "class": ({"architectures": ["Evil"]}, "not a class of transformers"),
    "class of another type": ({"architectures": [{"a": 1}]}, "not a class of transformers"),
    "classes of another type": ({"architectures": 5}, "not a class of transformers"),
    "number type": ({"dtype": "int8"}, "dtype must be a floating type"),
    "number type of another type": ({"dtype": 5}, "dtype must be a floating type"),
    "another vocabulary": ({"vocab_size": 62}, r"has the shape \[61"),
    "huge vocabulary": ({"vocab_size": 10**9}, r"\[1000000000, 24\]"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
@pytest.mark.parametrize("kind", ["stock", "uneven"])
@pytest.mark.usefixtures("family")
def test_configurations_name_the_field(kind: str, case: str, request: pytest.FixtureRequest) -> None:
    folder = without_manifest(kind, request)
    changes, words = CONFIGURATIONS[case]

    def change(config: dict[str, Any]) -> dict[str, Any]:
        inner = config["base"] if kind == "uneven" else config
        known = {name: value for name, value in changes.items() if name in inner}
        if not known:
            pytest.skip(f"a {inner['model_type']} has none of these fields")
        inner.update(known)
        return config

    edit_json(folder / "config.json", change)
    refused(folder, words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": {"rope_type": "zzz"}}, r"rope_parameters\.rope_type: unknown kind 'zzz'"),
        ({"rope_parameters": {"rope_type": ["a"], "rope_theta": 1e4}}, "unknown kind"),
        ({"rope_parameters": 5}, "rope_parameters must be an object"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, r"rope_theta must be a positive number"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}}, "factor must be a positive"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 3}},
            "up to 1, got 3",
        ),
        ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward must be"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
        ({"num_key_value_heads": 4}, "has the shape"),
        ({"head_dim": 10**9}, "has the shape"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised .'gptq'."),
        ({"quantization_config": 5}, "are quantised"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.M"}, "model_type": None}, "states no model_type"),
    ],
)
def test_configurations_of_decoders(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    toy_module("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    edit_json(tmp_path / "config.json", lambda config: config | fields)
    refused(tmp_path, words)


def test_a_configuration_without_sizes_takes_no_memory(tmp_path: Path) -> None:
    """Defaults of a class are those of its largest model: 27 GB of random numbers, were they filled in."""
    toy_module("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    refused(tmp_path, "has the shape")
    edit_weights(tmp_path, lambda tensors: tensors.clear())
    refused(tmp_path, "missing")


def test_keys_that_occur_twice(stock: Path) -> None:
    text = (stock / "config.json").read_text()
    (stock / "config.json").write_text('{"vocab_size": 5,' + text.lstrip()[1:])
    refused(stock, "'vocab_size' occurs twice")
    (stock / "config.json").write_text(text)
    content = (stock / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    name = matrix(load_file(stock / "model.safetensors"))
    twice = (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode()
    (stock / "model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + content[end:])
    refused(stock, f"{re.escape(name)}' occurs twice")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("generation_config.json", "{", "is not valid JSON"),
        ("generation_config.json", "[" * 10**5, "is not valid JSON"),
        ("generation_config.json", "[1]", "is not a JSON object"),
        ("generation_config.json", '{"eos_token_id": {"a": []}}', "eos_token_id must be the number of a token"),
        ("adapter_config.json", '{"base_model_name_or_path": "../other"}', "names a model to load instead"),
        ("tokenizer_config.json", "[]", "the tokenizer"),
        ("tokenizer.json", "[" * 10**5, "the tokenizer"),
    ],
)
def test_what_lies_beside_the_weights(name: str, text: str, words: str, tmp_path: Path) -> None:
    toy_module("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / name).write_text(text)
    refused(tmp_path, words)


@pytest.mark.parametrize("text", ["", "[" * 10**5, '{"a":' * 10**5, '{"model_type": ' + "9" * 10**5 + "}", "\0", "{}"])
def test_texts_that_are_no_configuration(text: str, stock: Path) -> None:
    (stock / "config.json").write_text(text)
    refused(stock, r"config\.json")


@pytest.mark.parametrize(
    "layers",
    [5, None, {}, [], [5], [{"a": 5}], [{"a": {"b": "x"}}], [{"a": {"b": -5}}], [{"a": {"b": 1.5}}], [{"a": {"b": 1}}]],
)
def test_lists_of_blocks(layers: Any, uneven: Path) -> None:
    forget_manifest(uneven)
    edit_json(uneven / "config.json", lambda config: config | {"layers": layers})
    refused(uneven, r"config\.json")


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no files": (lambda m: m.update(files={}), "is not listed"),
    "no weights": (lambda m: m["files"].pop("model.safetensors"), "model.safetensors is not listed"),
    "no configuration": (lambda m: m["files"].pop("config.json"), "config.json is not listed"),
    "negative width": (lambda m: m["layers"][0][next(iter(m["layers"][0]))].update(width=-5), "says of block 0"),
    "absent part": (lambda m: m["layers"][0].clear(), "says of block 0"),
    "fewer blocks": (lambda m: m["layers"].pop(), "blocks, but the model has"),
    "layers of numbers": (lambda m: m.update(layers=[5] * len(m["layers"])), "layers"),
    "absurd choice": (lambda m: m["subnet"].update({next(iter(m["subnet"])): 99999}), "is not a choice"),
    "unknown axis": (lambda m: m["subnet"].update(nosuch=1), "unknown axis 'nosuch'"),
    "missing axis": (lambda m: m["subnet"].popitem(), "no value for axis"),
    "no space": (lambda m: m.update(space=None), "not the space"),
    "empty space": (lambda m: m.update(space={}), "space"),
    "space of text": (lambda m: m.update(space={"axes": "x"}), "space"),
    "another architecture": (lambda m: m["base"].update(architecture="nosuch"), "says '?nosuch'?, but"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_are_compared_with_the_model(case: str, uneven: Path) -> None:
    change, words = MANIFESTS[case]
    assert load_model(uneven).manifest is not None
    edit_json(uneven / "manifest.json", lambda manifest: (change(manifest), manifest)[1])
    refused(uneven, words)


def test_a_file_that_was_added_is_not_read(uneven: Path) -> None:
    (uneven / "tokenizer.json").write_text("{}")
    refused(uneven, r"tokenizer\.json is not listed")


# Anything at all

VALUES = st.sampled_from([
    None, True, 0, -1, 1, 3, 1.5, 10**6, 10**9, 2**63, 10**30, 10**400, "", "abc", "../x", "float16", "I8", [], [1], {},
    {"a": 1}, float("nan"), float("inf"),
])  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner for key, item in items for inner in [(*path, key), *places(item, (*path, key))]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("file", ["config.json", "manifest.json", "model.safetensors"])
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(file: str, uneven: Path, data: st.DataObject) -> None:
    copied = uneven.parent / "case"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(uneven, copied)
    if file != "manifest.json":
        forget_manifest(copied)
    content = (copied / file).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if file == "model.safetensors" else len(content)
    fields = json.loads(content[8:end] if file == "model.safetensors" else content)
    *path, last = data.draw(st.sampled_from(places(fields)))
    inner = fields
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(VALUES)
    text = json.dumps(fields).encode()
    if file == "model.safetensors":
        text = len(text).to_bytes(8, "little") + text + content[end:]
    (copied / file).write_bytes(text)
    try:
        load_model(copied)
    except LissomeError as error:
        line, code = failure(error)
        assert code in (2, 4)
        assert "\n" not in line


# What is missing or left over on purpose


def outputs(model: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.module(**toy_inputs(model))[0]
    return found


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_tied_head_is_not_missing(prefixed: bool, tmp_path: Path) -> None:
    for family, changes in (("llama", {"tie_word_embeddings": True}), ("gpt2", {})):
        module: Any = toy_module(family, **changes)
        module.save_pretrained(tmp_path / family)
        if not prefixed:  # as the hub has GPT-2: the model without its head, whose class the configuration names
            prefix = f"{module.base_model_prefix}."

            def strip(tensors: dict[str, Tensor], prefix: str = prefix) -> None:
                for name in list(tensors):
                    tensors[name.removeprefix(prefix)] = tensors.pop(name)

            edit_weights(tmp_path / family, strip)
        read = load_model(tmp_path / family)
        assert torch.equal(outputs(read), outputs(Model(module)))


def test_buffers_of_older_versions_are_left_out(tmp_path: Path) -> None:
    olds = {
        "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
        "bert": ["embeddings.position_ids"],
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    }
    for family, names in olds.items():
        module: Any = toy_module(family)
        module.save_pretrained(tmp_path / family)
        edit_weights(
            tmp_path / family, lambda tensors, names=names: tensors.update({n: torch.ones(2).long() for n in names})
        )  # type: ignore[misc]
        assert torch.equal(outputs(load_model(tmp_path / family)), outputs(Model(module)))


def test_the_head_of_another_task_is_left_out(tmp_path: Path) -> None:
    """As the hub has BERT: weights of two tasks and of the pooler, and a configuration that names one of them."""
    from transformers import BertForPreTraining

    module: Any = BertForPreTraining(toy_module("bert").config)  # type: ignore[arg-type]
    module.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config | {"architectures": ["BertForMaskedLM"]})
    read = load_model(tmp_path)
    ids = toy_inputs(read)
    assert torch.equal(outputs(read), module.eval()(**ids).prediction_logits)


def test_shards_are_read_together(tmp_path: Path) -> None:
    module: Any = toy_module("llama")
    module.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(outputs(load_model(tmp_path)), outputs(Model(module)))
