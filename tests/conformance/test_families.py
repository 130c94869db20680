"""Identities 1-4 over every family, as properties over Subnets, sizes and seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lissome.engine.calibrate import SCORES, orders
from lissome.engine.walk import Walk
from lissome.models.binding import extract, lift, narrow
from lissome.models.model import Model
from lissome.testing import conformance
from lissome.testing.toys import DECODERS, FAMILIES, toy_ids, toy_inputs, toy_model

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


@pytest.mark.parametrize("family", DECODERS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_sizes(family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    kv_heads = data.draw(st.integers(1, 3), label="kv heads")
    heads = kv_heads * data.draw(st.integers(1, 3), label="queries")
    odd = toy_model(
        family,
        hidden_size=heads * data.draw(st.integers(2, 7), label="hidden over heads"),
        intermediate_size=data.draw(st.integers(3, 37), label="channels"),
        num_key_value_heads=kv_heads,
        num_attention_heads=heads,
        head_dim=2 * data.draw(st.integers(1, 5), label="half head"),
        tie_word_embeddings=data.draw(st.booleans(), label="tied"),
    )
    subnet = odd.space(width=1).sample(Random(data.draw(st.integers(0, 99), label="seed")))
    small = conformance.check_subnet(odd, subnet, toy_inputs(odd, 0, 1, 7))
    conformance.check_saved(small, tmp_path_factory.mktemp("odd") / "small", toy_inputs(odd, 0, 1, 7))


@pytest.mark.parametrize("family", DECODERS)
def test_a_cut_model_can_be_cut_again(family: str) -> None:
    whole = toy_model(family)
    first = whole.space().sample(Random(1))
    small = extract(whole, first)
    again = small.space(width=1).sample(Random(2))
    conformance.check_subnet(small, again, toy_inputs(small, 3, 2, 8))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("score", SCORES)
def test_reordering_by_a_score_keeps_the_function(family: str, score: str) -> None:
    whole = toy_model(family)
    ranking = orders(whole, ("width", "groups", "queries"), score=score, walk=Walk(whole, toy_ids(whole, 0, 4, 12)))
    conformance.check_reorder(whole, ranking, toy_inputs(whole, 1))


@pytest.mark.parametrize("family", DECODERS)
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
    with_blocks = [
        name
        for name in model.anatomy.blocks
        if any(subnet[b.name] for b in model.anatomy.of_block(int(name.split(".")[-1])))
    ]
    numbers = {old: f"model.layers.{new}." for new, old in enumerate(f"{name}." for name in with_blocks)}
    kept = dict(extract(model, subnet).module.named_parameters())
    for name, parameter in model.module.named_parameters():
        places = index.get(name, {})
        if places is None:
            continue
        part = narrow(parameter, places)
        prefix = next((old for old in numbers if name.startswith(old)), None)
        if prefix is None and ".layers." in name:
            continue
        assert torch.equal(part, kept[name.replace(prefix, numbers[prefix]) if prefix else name])
        assert torch.equal(lift(part, places, parameter), parameter), "lift after narrow changes the tensor"
        assert torch.equal(narrow(lift(2 * part, places, parameter), places), 2 * part)


_FRESH = """
import json, sys, torch
import lissome.models.auto
from transformers import AutoModelForCausalLM
from lissome.models.load import load_model
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    for module in (load_model(folder).module, AutoModelForCausalLM.from_pretrained(folder)):
        with torch.no_grad():
            print(json.dumps(module(input_ids=ids).logits.double().flatten().tolist()))
"""


def test_a_fresh_process_gives_equal_outputs(tmp_path: Path) -> None:
    ids, expected, folders = toy_ids(toy_model(), 0, 1, 5), [], []
    for family in DECODERS:
        whole = toy_model(family)
        small = extract(whole, whole.space().sample(Random(7)))
        folders.append(str(small.save(tmp_path / family)))
        expected += [conformance.logits(small.module, ids).double().flatten().tolist()] * 2
    command = [sys.executable, "-c", _FRESH, json.dumps(ids.tolist()), *folders]
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
