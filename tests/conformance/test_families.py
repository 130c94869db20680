"""Identities 1-4 over every family, as properties over Subnets, sizes and seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lissome.engine.calibrate import SCORES, orders
from lissome.engine.walk import Walk
from lissome.models.binding import extract, lift, narrow
from lissome.models.model import Model
from lissome.testing import conformance
from lissome.testing.toys import DECODERS, FAMILIES, LANGUAGE, STATES, toy_ids, toy_inputs, toy_model

pytestmark = pytest.mark.long

_UNITS = ("width", "groups", "queries", "channels", "heads")
_PROPERTY = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return toy_model(request.param)


@_PROPERTY
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 3), length=st.integers(3, 13), keep=st.floats(0.2, 1.0))
def test_masked_extracted_and_zeroed_agree(model: Model, seed: int, batch: int, length: int, keep: float) -> None:
    subnet = model.space(width=1).sample(Random(seed), keep=keep)
    small = conformance.check_subnet(model, subnet, toy_inputs(model, seed, batch, length))
    if model.anatomy.task == "causal-lm":
        conformance.check_padding(small, toy_ids(model, seed + 1, batch, length))
        conformance.check_cache(small, toy_ids(model, seed, batch, length))


@pytest.mark.slow
def test_a_hundred_subnets_of_every_family(model: Model) -> None:
    for seed in range(100):
        rng = Random(seed)
        subnet = model.space(width=1).sample(rng, keep=rng.uniform(0.2, 1.0))
        conformance.check_subnet(model, subnet, toy_inputs(model, seed, 1 + seed % 3, 3 + seed % 11))


def _odd_sizes(family: str, data: st.DataObject) -> dict[str, Any]:
    """Sizes that share no factor, under the names of the family's configuration."""
    draw = data.draw
    groups, queries = draw(st.integers(1, 3), label="kv heads"), draw(st.integers(1, 3), label="queries")
    size, width = 2 * draw(st.integers(1, 5), label="half head"), draw(st.integers(3, 37), label="channels")
    heads = groups * queries
    if family in STATES:
        return _odd_states(family, draw, {"num_key_value_heads": groups, "num_attention_heads": heads})
    if family == "gpt2":
        return {"n_embd": heads * size, "n_head": heads, "n_inner": width}
    if family == "whisper":
        heads += 1  # its sinusoids need four channels
        fields = {f"{side}_attention_heads": heads for side in ("encoder", "decoder")}
        return fields | {"d_model": heads * size, "encoder_ffn_dim": width, "decoder_ffn_dim": width + 1}
    sizes: dict[str, Any] = {"hidden_size": heads * size, "num_attention_heads": heads}
    if family.startswith("opt"):
        return sizes | {"ffn_dim": width, "word_embed_proj_dim": draw(st.sampled_from([heads * size, 5]))}
    sizes |= {"intermediate_size": width}
    if family in DECODERS:
        sizes["hidden_size"] = heads * draw(st.integers(2, 7), label="hidden over heads")
        sizes |= {"num_key_value_heads": groups, "head_dim": size, "tie_word_embeddings": draw(st.booleans())}
    return sizes


def _odd_states(family: str, draw: Any, attention: dict[str, int]) -> dict[str, Any]:
    groups, heads, size = (draw(st.integers(1, 3), label=name) for name in ("groups", "heads of one", "half head"))
    sizes = {"hidden_size": groups * heads * size, "tie_word_embeddings": draw(st.booleans(), label="tied")}
    conv, states = draw(st.integers(2, 5), label="kernel"), draw(st.integers(1, 5), label="states")
    if family == "mamba":
        fields = {"conv_kernel": conv, "state_size": states, "time_step_rank": draw(st.integers(1, 4), label="rank")}
        return sizes | fields | {"use_bias": draw(st.booleans()), "use_conv_bias": draw(st.booleans())}
    if family == "mamba2":
        fields = {"conv_kernel": conv, "state_size": states, "n_groups": groups, "num_heads": groups * heads}
        return sizes | fields | {"head_dim": 2 * size, "use_bias": draw(st.booleans())}
    mixer = {"n_heads": groups * heads, "n_groups": groups, "d_head": 2 * size, "d_state": states, "d_conv": conv}
    return sizes | attention | {f"mamba_{name}": value for name, value in mixer.items()} | {"intermediate_size": 23}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_sizes(family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    odd = toy_model(family, **_odd_sizes(family, data))
    subnet = odd.space(width=1).sample(Random(data.draw(st.integers(0, 99), label="seed")))
    small = conformance.check_subnet(odd, subnet, toy_inputs(odd, 0, 1, 7))
    conformance.check_saved(small, tmp_path_factory.mktemp("odd") / "small", toy_inputs(odd, 0, 1, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_can_be_cut_again(family: str) -> None:
    whole = toy_model(family)
    first = whole.space().sample(Random(1))
    small = extract(whole, first)
    again = small.space(width=1).sample(Random(2))
    conformance.check_subnet(small, again, toy_inputs(small, 3, 2, 8))


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("score", SCORES)
def test_reordering_by_a_score_keeps_the_function(family: str, score: str) -> None:
    whole = toy_model(family)
    ranking = orders(whole, _UNITS, score=score, walk=Walk(whole, toy_ids(whole, 0, 4, 12)))
    conformance.check_reorder(whole, ranking, toy_inputs(whole, 1))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6))
def test_any_reordering_keeps_the_function(family: str, seed: int) -> None:
    whole, generator = toy_model(family), torch.Generator().manual_seed(seed)
    ranking = {
        branch.axis(dim.name): torch.stack([torch.randperm(dim.size, generator=generator) for _ in range(dim.lanes)])
        for branch in whole.anatomy.branches
        for dim in branch.dims
    }
    conformance.check_reorder(whole, ranking, toy_inputs(whole, seed))


def test_the_full_subnet_is_the_model(model: Model) -> None:
    conformance.check_full(model, toy_inputs(model))


@pytest.mark.parametrize("seed", range(3))
def test_saved_models_read_back_equal(model: Model, seed: int, tmp_path: Path) -> None:
    small = extract(model, model.space(width=3).sample(Random(seed)))
    conformance.check_saved(small, tmp_path / "small", toy_inputs(small))


def test_index_maps_cut_exactly_the_extracted_tensors(model: Model) -> None:
    subnet = model.space(width=1).sample(Random(5), keep=0.6)
    index = model.binding.index_map(subnet)
    small = extract(model, subnet)
    blocks = model.anatomy.blocks
    if len(small.anatomy.blocks) < len(blocks):  # those without branches are gone
        blocks = tuple(
            name for i, name in enumerate(blocks) if any(subnet[branch.name] for branch in model.anatomy.of_block(i))
        )
    renamed = dict(zip(blocks, small.anatomy.blocks, strict=True))
    kept = dict(small.module.named_parameters())
    for name, parameter in model.module.named_parameters():
        places, block = (
            index.get(name, {}),
            next((it for it in model.anatomy.blocks if name.startswith(f"{it}.")), None),
        )
        if places is None or (block is not None and block not in renamed):
            continue
        part = narrow(parameter, places)
        assert torch.equal(part, kept.pop(name.replace(block, renamed[block]) if block else name))
        assert torch.equal(lift(part, places, parameter), parameter), "lift after narrow changes the tensor"
        assert torch.equal(narrow(lift(2 * part, places, parameter), places), 2 * part)
    assert not kept, "the cut model has parameters that the map does not keep"


_FRESH = """
import sys, transformers
from safetensors.torch import load_file
import lissome.models.auto
from lissome.models.load import load_model
from lissome.testing.conformance import outputs
for folder, auto in zip(sys.argv[1::2], sys.argv[2::2]):
    inputs = load_file(f"{folder}-inputs.safetensors")
    for module in (load_model(folder).module, getattr(transformers, auto).from_pretrained(folder)):
        print(outputs(module, inputs).double().flatten().tolist())
"""
_AUTOS = {
    "bert": "AutoModel",
    "bert-tokens": "AutoModelForMaskedLM",
    "bert-labels": "AutoModelForSequenceClassification",
    "vit": "AutoModel",
    "vit-labels": "AutoModelForImageClassification",
    "whisper": "AutoModelForSpeechSeq2Seq",
}


def test_a_fresh_process_gives_equal_outputs(tmp_path: Path) -> None:
    arguments, expected = [], []
    for family in FAMILIES:
        whole = toy_model(family)
        small, inputs = extract(whole, whole.space().sample(Random(7))), toy_inputs(whole, 0, 1, 5)
        arguments += [str(small.save(tmp_path / family)), _AUTOS.get(family, "AutoModelForCausalLM")]
        save_file(inputs, tmp_path / f"{family}-inputs.safetensors")
        expected += [conformance.outputs(small.module, inputs).double().flatten().tolist()] * 2
    command = [sys.executable, "-c", _FRESH, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in answer.stdout.splitlines()] == expected


def test_uniform_cuts_open_without_lissome(tmp_path: Path) -> None:
    ids = toy_ids(toy_model(), 0, 1, 5)
    for family in DECODERS:
        whole = toy_model(family)
        cut = {f"layers.{i}.mlp.width": 16 for i in range(4)} | {f"layers.{i}.attention.queries": 1 for i in range(4)}
        cut |= {"layers.1.attention": 0, "layers.1.mlp": 0}
        small = extract(whole, cut)
        small.save(tmp_path / family)
        assert json.loads((tmp_path / family / "config.json").read_text())["model_type"] == small.anatomy.architecture
        from transformers import AutoModelForCausalLM

        stock = AutoModelForCausalLM.from_pretrained(tmp_path / family)
        assert torch.equal(conformance.logits(stock, ids), conformance.logits(small.module, ids))
