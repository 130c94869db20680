from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lissome.cost.blocks import BlockSum
from lissome.cost.counted import Counter
from lissome.cost.measured import Request
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.testing.toys import FAMILIES, STATES, toy_inputs, toy_model

TOKENS = 11
COUNTED = [family for family in FAMILIES if family not in STATES]  # no flop counter sees a scan
_MODELS: dict[str, Model] = {}


def toy(family: str) -> Model:
    if family not in _MODELS:
        _MODELS[family] = toy_model(family, attn_implementation="eager")  # what FlopCounterMode can see through
    return _MODELS[family]


def flops(model: Model, tokens: int) -> int:
    inputs = toy_inputs(model, 0, 1, tokens)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.module(**inputs)
    return int(counter.get_total_flops())


@given(family=st.sampled_from(COUNTED), seed=st.integers(0, 2**32), keep=st.sampled_from([0.3, 0.7, 1.0]))
def test_counts_of_any_subnet_are_those_of_the_model_cut_out(family: str, seed: int, keep: float) -> None:
    model = toy(family)
    space = model.anatomy.space(finest=True)
    subnet = space.sample(Random(seed), keep=keep)
    small = extract(model, subnet, space=space)
    counts, own = Counter(model, tokens=TOKENS).count(subnet), Counter(small, tokens=TOKENS).count()

    prefixes = tuple(f"{block}." for block in small.anatomy.blocks)
    blocks = sum(value.numel() for name, value in small.module.named_parameters() if name.startswith(prefixes))
    assert counts.params == sum(value.numel() for value in small.module.parameters())
    assert counts.block_params == blocks
    assert 2 * counts.macs == flops(small, TOKENS)
    assert (counts.params, counts.macs, counts.cache_bytes) == (own.params, own.macs, own.cache_bytes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_file_is_within_a_percent_of_the_saved_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = toy(family)
    space = model.anatomy.space(finest=True)
    subnet = space.sample(Random(3))
    small = extract(model, subnet, space=space)
    small.module.to(dtype)
    small.save(tmp_path / "small")
    written = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert Counter(model, dtype=dtype).count(subnet).disk == pytest.approx(written, rel=0.01)


def test_blocks_of_one_shape_and_of_unlike_types_are_told_apart(tmp_path: Path) -> None:
    model = toy_model("llama")
    model.module.get_submodule("model.layers.2.mlp").to(torch.float64)
    model.save(tmp_path / "model")
    assert Counter(model).count().disk == (tmp_path / "model" / "model.safetensors").stat().st_size


def test_tied_embeddings_count_once_and_stand_apart() -> None:
    tied, untied = (Counter(toy_model("llama", tie_word_embeddings=tie)).count() for tie in (True, False))
    assert untied.params - tied.params == 61 * 24
    assert (tied.embedding_params, untied.embedding_params) == (61 * 24, 2 * 61 * 24)
    assert tied.block_params == untied.block_params
    assert tied.macs == untied.macs
    assert tied.bytes_at(4.5) == tied.params * 4.5 / 8


def test_causal_counts_only_what_a_token_may_see() -> None:
    model = toy_model("gemma3")  # windows of 5 in every other layer
    full, causal = (Counter(model, tokens=8, causal=flag).count().macs for flag in (False, True))
    per_pair = 2 * 4 * 8  # two products, four query heads of eight
    assert full - causal == per_pair * (2 * (64 - (15 + 3 * 5)) + 2 * (64 - 36))


def test_cache_bytes_are_those_that_the_module_holds() -> None:
    model = toy_model("gemma3")
    with torch.inference_mode():
        cache = model.module(torch.arange(4)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert Counter(model, length=4).count().cache_bytes == held
    no_attention = {f"layers.{index}.attention": 0 for index in range(3)}
    assert Counter(model, length=4).count(no_attention).cache_bytes == held // 4


def test_the_table_adds_up() -> None:
    model = toy("qwen2")
    counter = Counter(model)
    subnet = model.space().sample(Random(1))
    counts, rows = counter.count(subnet), counter.table(subnet)
    assert sum(row.params for row in rows) == counts.params
    assert sum(row.macs for row in rows) == counts.macs
    assert sum(row.cache_bytes for row in rows) == counts.cache_bytes
    assert 0 < counts.disk - sum(row.disk for row in rows) < 64
    assert {row.name for row in rows} >= {"embeddings", "rest"}


def test_work_of_a_request_follows_the_subnet() -> None:
    model = toy("llama")
    counter, request = Counter(model, tokens=7), Request(prompt=10, new=5)
    whole, small = counter.work(request=request), counter.work({"layers.0.mlp": 0}, request)
    mlp = 3 * 24 * 40
    assert whole.step_macs - small.step_macs == mlp
    assert whole.prefill_macs - small.prefill_macs == 10 * mlp
    assert whole.weight_bytes - small.weight_bytes == 4 * mlp
    assert counter.work(request=Request(prompt=10, new=5, batch=3)).cache_bytes == 3 * whole.cache_bytes


def test_every_choice_of_a_block_is_worked_out_once() -> None:
    model, calls = toy("llama"), []
    sums = BlockSum(model, lambda parts: (float(calls.append(parts) or len(parts)),), 1)
    assert sums.total({}) == [8.0]
    assert sums.total({"layers.1.mlp": 0}) == [7.0]
    assert sums.total({"layers.2.mlp": 0, "layers.3.mlp": 0, "layers.3.attention": 0}) == [5.0]
    assert len(calls) == 2  # all four blocks have one shape; a block without parts costs nothing
