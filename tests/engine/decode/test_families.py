"""The engine computes what transformers computes on the dequantised weights, for every family and every cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lissome.engine.decode import Decoder
from lissome.models.model import Model
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.ops.nested import Layout, layout_named
from lissome.testing.conformance import dequantised
from tests.export.toys import CUTS, model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
LENGTH = 21
ROPE = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}


@torch.no_grad()
def reference(model: Model, ids: list[int]) -> np.ndarray:
    logits: np.ndarray = model.module(torch.tensor([ids])).logits[0].numpy()
    return logits


def tokens(model: Model, seed: int = 0, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.anatomy.vocabulary, length).tolist()


def check(model: Model, folder: Path, *, layout: str = "3+1") -> None:
    file = open_nested(make(model, folder / "toy.safetensors", layout=layout_named(layout)))
    ids = tokens(model)
    for precision in file.layout.precisions:
        decoder = Decoder.open(file.path, activations="f32", kv="f32", cells=64)
        found = decoder.forward(ids, range(len(ids)), 0, precision, wanted=range(len(ids)))
        wanted = reference(dequantised(model, file, precision), ids)
        assert np.abs(found - wanted).max() <= 2e-5 * max(1.0, np.abs(wanted).max())
        decoder.seq_rm(0)
        stepwise = [decoder.forward([token], [at], 0, precision) for at, token in enumerate(ids)]
        assert np.array_equal(np.concatenate(stepwise), found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    check(model_of(family), tmp_path)


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "dense"])
def test_every_cut(cut: str, tmp_path: Path) -> None:
    check(model_of("llama", cut), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES[1:])
@pytest.mark.parametrize("cut", ["widths", "heads", "attention gone", "mlp gone"])
def test_every_family_cut(family: str, cut: str, tmp_path: Path) -> None:
    check(model_of(family, cut), tmp_path)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "head_dim": 10}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}},
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", **ROPE}, "attention_bias": True}),
        ("gemma2", {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
        ("gemma3", {"sliding_window": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
        ("mistral", {"sliding_window": 5}),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ],
)
def test_settings(family: str, changes: dict[str, object], tmp_path: Path) -> None:
    check(model_of(family, **changes), tmp_path, layout="2+1+2/64")


def test_longrope_is_run_up_to_the_length_of_pretraining(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": LENGTH}
    factors = {"short_factor": [1.0 + at for at in range(8)], "long_factor": [9.0 + at for at in range(8)]}
    changes = {"max_position_embeddings": 4 * LENGTH, "original_max_position_embeddings": LENGTH}
    model = model_of("phi3", rope_parameters={**rope, **factors}, **changes)
    reference(model, tokens(model, length=2 * LENGTH))  # leaves the factors of long texts in the model
    check(model, tmp_path)
    assert open_nested(tmp_path / "toy.safetensors").spec.context == LENGTH


@pytest.mark.parametrize("layout", ["3+1/kmeans", "2+1+2/64/kmeans"])
def test_levels_that_are_not_even(layout: str, tmp_path: Path) -> None:
    check(model_of("llama", tie_word_embeddings=True), tmp_path, layout=layout)


def test_cache_types_and_integers_come_close(tmp_path: Path) -> None:
    model = model_of("llama")
    path = make(model, tmp_path / "toy.safetensors", layout=Layout((6, 2)))
    ids = tokens(model)
    exact = Decoder.open(path, activations="f32", kv="f32").forward(ids, range(len(ids)), wanted=range(len(ids)))
    for activations, kv, bound in [("f32", "f16", 2e-3), ("f32", "int8", 2e-2), ("int8", "f16", 3e-2)]:
        found = Decoder.open(path, activations=activations, kv=kv).forward(ids, range(len(ids)), wanted=range(len(ids)))
        assert np.abs(found - exact).max() <= bound * np.abs(exact).max()
