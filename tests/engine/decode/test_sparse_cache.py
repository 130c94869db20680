"""Frozen keys and values: what transformers computes on a pruned cache, the same bits however they are come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissome.core.errors import ConfigError
from lissome.engine.decode import Decoder, Sampling, Session
from lissome.engine.decode.cache import cache_named
from lissome.engine.decode.decoder import BLOCK, Cancelled, Floats
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.testing.conformance import dequantised
from tests.export.toys import model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

IDS: list[int] = np.random.default_rng(0).integers(0, 320, 150).tolist()
SPARSE: dict[str, Any] = {"key_zeros": 0.5, "value_zeros": 0.4}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(model_of("gemma2"), tmp_path_factory.mktemp("nested") / "toy.safetensors")


def opened(path: Path, **settings: Any) -> Decoder:
    return Decoder.open(path, **{"cells": 160, **SPARSE, **settings})


def whole(path: Path, ids: list[int] = IDS, **settings: Any) -> Floats:
    """Logits of every token of one sequence."""
    return opened(path, **settings).forward(ids, range(len(ids)), wanted=range(len(ids)))


def prune(rows: torch.Tensor, share: float) -> torch.Tensor:
    """Keep the largest numbers of every row [B, G, T, E]."""
    count = max(1, round(rows.shape[-1] * (1 - share)))
    kept = rows.abs().topk(count, dim=-1).indices
    return torch.zeros_like(rows).scatter(-1, kept, rows.gather(-1, kept))


@torch.no_grad()
def reference(module: Any, ids: list[int]) -> Floats:
    """Block by block through transformers, with what its cache holds pruned after each block."""
    from transformers import DynamicCache

    cache, found = DynamicCache(), []
    for first in range(0, len(ids), BLOCK):
        part = torch.tensor([ids[first : first + BLOCK]])
        found.append(module(part, past_key_values=cache, use_cache=True).logits[0])
        for layer in cache.layers:
            layer.keys = prune(layer.keys, SPARSE["key_zeros"])
            layer.values = prune(layer.values, SPARSE["value_zeros"])
    logits: Floats = torch.cat(found).numpy()
    return logits


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_transformers_on_a_pruned_cache_says_the_same(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    file = open_nested(make(model, tmp_path / "toy.safetensors"))
    wanted = reference(dequantised(model, file, 4).module, IDS)
    found = whole(file.path, activations="f32", kv="f32")
    assert np.abs(found - wanted).max() <= 2e-5 * max(1.0, np.abs(wanted).max())
    dense = Decoder.open(file.path, activations="f32", kv="f32").forward(IDS, range(150), wanted=range(150))
    assert np.array_equal(found[:BLOCK], dense[:BLOCK])
    assert np.abs(found[BLOCK:] - dense[BLOCK:]).max() > 1e-3


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_no_split_no_thread_and_no_instruction_set_changes_a_bit(path: Path, kv: Any) -> None:
    known = whole(path, kv=kv, threads=1)
    assert np.isfinite(known).all()
    for threads, sizes in [(2, [150]), (3, [1] * 150), (1, [63, 2, 64, 21])]:
        decoder, rows, at = opened(path, kv=kv, threads=threads), [], 0
        for size in sizes:
            rows.append(decoder.forward(IDS[at : at + size], range(at, at + size), wanted=range(size)))
            at += size
        assert np.array_equal(np.concatenate(rows), known)
    for level in native.choice().levels:
        if level.usable:
            with native.using(level.name):
                assert np.array_equal(whole(path, kv=kv), known)


def test_no_zeros_on_one_side_leave_it_as_it_is(path: Path) -> None:
    both, keys, values = (
        whole(path, key_zeros=key, value_zeros=value) for key, value in [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5)]
    )
    dense = Decoder.open(path).forward(IDS, range(150), wanted=range(150))
    for one in (both, keys, values):
        assert np.array_equal(one[:BLOCK], dense[:BLOCK])
        assert not np.array_equal(one, dense)
    assert not np.array_equal(keys, values)
    # a share that rounds to no zero at all: what is frozen is all there is
    assert np.array_equal(whole(path, key_zeros=0.001, value_zeros=0.001), dense)


def test_sequences_know_nothing_of_each_other(path: Path) -> None:
    other = IDS[::-1]
    decoder = opened(path, cells=320, texts=2)
    mixed = [token for pair in zip(IDS, other, strict=True) for token in pair]
    rows = decoder.forward(mixed, np.repeat(range(150), 2), [0, 5] * 150, wanted=range(300))
    assert np.array_equal(rows[::2], whole(path))
    assert np.array_equal(rows[1::2], whole(path, other))
    decoder.seq_cp(0, 1, 0, 2 * BLOCK)  # whole blocks are shared
    rows = decoder.forward(other[:20], range(128, 148), 1, wanted=range(20))
    assert np.array_equal(rows, whole(path, IDS[:128] + other[:20])[128:])


def test_what_is_frozen_is_not_gone_on_from_in_its_middle(path: Path) -> None:
    decoder = opened(path)
    decoder.forward(IDS, range(150))
    assert [decoder.stays(same, 150) for same in (150, 140, 128, 127, 70, 64, 3)] == [150, 140, 128, 64, 64, 64, 0]
    decoder.seq_rm(0, 100)
    with pytest.raises(ConfigError, match="positions from 64 on are frozen"):
        decoder.forward(IDS[100:], range(100, 150))
    decoder.seq_rm(0, 64)
    assert np.array_equal(decoder.forward(IDS[64:], range(64, 150), wanted=range(86)), whole(path)[64:])


def test_sessions_recompute_what_they_cannot_take_back(path: Path) -> None:
    def text(session: Session, prompt: list[int], **more: Any) -> list[int]:
        return list(session.generate(prompt, 12, sampling=Sampling(temperature=1.0, seed=3), **more))

    session, other = Session(opened(path)), [*IDS[:100], 1, 2, 3, 4]
    first = text(session, IDS[:130])
    assert first == text(Session(opened(path)), IDS[:130])
    assert text(session, other) == text(Session(opened(path)), other)
    assert session.computed == 130 + 11 + (104 - 64) + 11
    assert text(session, IDS[:130]) == first


def test_a_full_cache_and_a_cancelled_batch_leave_no_tokens(path: Path) -> None:
    decoder = opened(path, cells=140)
    decoder.forward(IDS[:64], range(64))
    with pytest.raises(ConfigError, match="128 of 140 positions"):
        decoder.forward(IDS[64:], range(64, 150))
    assert decoder.seq_last(0) == 63
    decoder.cancel()
    with pytest.raises(Cancelled):
        decoder.forward(IDS[64:130], range(64, 130))
    assert decoder.seq_last(0) == 63
    assert np.array_equal(decoder.forward(IDS[64:130], range(64, 130))[0], whole(path)[129])


def test_the_cache_is_smaller(path: Path) -> None:
    parts = [layer.attention for layer in open_nested(path).spec.layers if layer.attention is not None]
    dense, sparse = Decoder.open(path, kv="int8", cells=1000), opened(path, kv="int8", cells=1000)
    heads, size = sum(part.kv_heads for part in parts), parts[0].size
    row = -(-size // 16) * 16
    assert {part.size for part in parts} == {size}
    assert dense.cache_bytes == 1000 * heads * 2 * (row + 4)
    kept = round(size * 0.5) + round(size * 0.6)
    bitmap = row // 8
    assert sparse.cache_bytes == 1000 * heads * (kept + 2 * (bitmap + 4)) + 128 * heads * 2 * (row + 4)


def test_names_of_caches() -> None:
    assert cache_named("int8") == {"kv": "int8", "key_zeros": 0.0, "value_zeros": 0.0}
    assert cache_named(" f16:0.5 ") == {"kv": "f16", "key_zeros": 0.5, "value_zeros": 0.5}
    assert cache_named("f32:.25,0") == {"kv": "f32", "key_zeros": 0.25, "value_zeros": 0.0}
    for text in ("int4", "int8:1", "int8:50", "int8:0.5,", "int8,0.5", ""):
        with pytest.raises(ConfigError, match="is no cache; write f16, int8 or f32"):
            cache_named(text)


@pytest.mark.parametrize("settings", [{"key_zeros": 1.0}, {"value_zeros": -0.1}, {"texts": 0}, {"texts": 65}])
def test_settings_that_cannot_be(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        opened(path, **settings)
