"""Packed weights in the engine: what transformers computes on the rounded weights, whatever the batch and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lissome.core.errors import ConfigError
from lissome.engine.decode import Decoder, DecoderSettings, Session
from lissome.engine.decode.packed import PackedModel
from lissome.models.model import Model
from lissome.ops.kernels import native
from tests.export.toys import CUTS, model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
IDS = np.random.default_rng(0).integers(0, 300, 19).tolist()


@torch.no_grad()
def rounded(model: Model, *, zeros: float = 0.5) -> Model:
    """Half of the weights zero, and all of them numbers that bf16 has; those of the head too."""
    generator = torch.Generator().manual_seed(0)
    for part in model.module.modules():
        if isinstance(part, nn.Linear):
            weight = part.weight.data
            weight.copy_(weight.bfloat16().float())
            if zeros and part is not model.module.lm_head:
                weight[torch.rand(weight.shape, generator=generator) < zeros] = 0
    return model


def decoder(model: Model, *, threads: int = 1, kv: Any = "f32", **options: Any) -> Decoder:
    return Decoder(PackedModel.of(model, **options), DecoderSettings(cells=64, kv=kv, threads=threads))


def check(model: Model) -> None:
    """Up to the embedding, which has 8 bits."""
    with torch.no_grad():
        wanted = model.module(torch.tensor([IDS])).logits[0].numpy()
    found = decoder(model, head="bf16").forward(IDS, range(len(IDS)), wanted=range(len(IDS)))
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    check(rounded(model_of(family)))


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "dense"])
def test_every_cut(cut: str) -> None:
    check(rounded(model_of("llama", cut)))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_zeros_left_out_change_nothing(weights: Any) -> None:
    """Sparse and dense give the same bits, on any number of threads and however a batch is cut."""
    model = rounded(model_of("qwen2"))
    dense, sparse = (PackedModel.of(model, weights=weights, dense=one) for one in (True, False))
    assert sparse.nbytes < dense.nbytes
    wanted = Decoder(dense, DecoderSettings(cells=64)).forward(IDS, range(len(IDS)), wanted=range(len(IDS)))
    for threads in (1, 2):
        one = Decoder(sparse, DecoderSettings(cells=64, threads=threads))
        assert np.array_equal(one.forward(IDS, range(len(IDS)), wanted=range(len(IDS))), wanted)
        one.seq_rm(0)
        steps = [one.forward([token], [at]) for at, token in enumerate(IDS)]
        assert np.array_equal(np.concatenate(steps), wanted)
    assert 0 <= sparse.nbytes - one.weight_bytes(8) <= 64 * len(sparse.matrices)  # what kernels may read beyond
    text = list(Session(one).generate(IDS, 8))
    assert text == list(Session(Decoder(dense, DecoderSettings(cells=64))).generate(IDS, 8))


def test_weights_that_do_not_fit_are_refused() -> None:
    packed = PackedModel.of(model_of("llama"))
    (name,) = (one for one in packed.matrices if one == "layers.0.mlp.down")
    packed.matrices[name] = packed.matrices["layers.0.mlp.gate_up"]
    with pytest.raises(Exception, match="must be"):
        Decoder(packed)
    with pytest.raises(ConfigError, match="not read at 4"):
        decoder(model_of("llama")).forward([1], [0], 0, 4)
