"""GGUF export against llama.cpp: it opens every file and computes what torch computes."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from lissome.core.errors import ExportError
from lissome.cost.llama_cpp import LlamaCpp
from lissome.export._vocabulary import Vocabulary
from lissome.export.gguf import export
from lissome.testing.toys import DECODERS
from tests.export.toys import CUTS, byte_level, logits_of, model_of, sentence_piece

pytestmark = pytest.mark.peer
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

LIMITS = {"F32": (2e-6, 0.95), "F16": (2e-6, 0.95), "Q8_0": (2e-3, 0.85), "Q4_1": (0.1, 0.4)}
"""Largest mean KL divergence in nats, and least agreement of the likeliest token; toy logits are nearly flat."""


def compare(model, path, kind, length=40):
    """Check llama.cpp's logits on `length` random tokens, all at once and then step by step."""
    rng = Random(0)
    ids = [rng.randrange(model.anatomy.vocabulary) for _ in range(length)]
    want = logits_of(model.module, ids)
    with LlamaCpp(path, context=64, threads=1) as peer:
        got = torch.tensor(peer.logits(ids))
        peer.reset()
        peer.feed(ids[:-3], 0)
        steps = torch.cat([torch.tensor(peer.feed([ids[at]], at)) for at in range(length - 3, length)])
    kl = torch.nn.functional.kl_div(got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction="batchmean")
    agreement = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    assert kl.item() < LIMITS[kind][0]
    assert agreement >= LIMITS[kind][1]
    torch.testing.assert_close(steps, got[-3:], atol=0.02 * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("family", DECODERS)
def test_uniform(family, kind, tmp_path):
    model = model_of(family)
    compare(model, export(model, tmp_path / "toy.gguf", type=kind).path, kind)


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "dense"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("phi3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_uneven_natively(family, changes, cut, tmp_path):
    """Stand-ins may be needed where a branch is gone, but nothing is grown to another block's size."""
    model = model_of(family, cut, **changes)
    report = export(model, tmp_path / "toy.gguf", type="F16")
    assert all(one.change.startswith("absent") for one in report.padded)
    compare(model, report.path, "F16")


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "dense"])
@pytest.mark.parametrize(
    ("family", "changes"), [("gemma2", {}), ("gemma3", {}), ("qwen3", {"tie_word_embeddings": False})]
)
def test_uneven_padded(family, changes, cut, tmp_path):
    model = model_of(family, cut, **changes)
    if cut not in {"narrow everywhere", "a block's two halves", "one attention"}:
        with pytest.raises(ExportError, match="--pad"):
            export(model, tmp_path / "toy.gguf", type="F16")
    compare(model, export(model, tmp_path / "toy.gguf", type="F16", pad=True).path, "F16")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", DECODERS)
def test_random_cuts_quantised(family, seed, tmp_path):
    """By fewer than 32 tokens: llama.cpp's own kernel for AMX is wrong about so many at once on rows of only 32."""
    model = model_of(family)
    small = model_of(family, model.space(width=32).sample(Random(seed), keep=0.6))
    compare(small, export(small, tmp_path / "toy.gguf", type="Q8_0", pad=True).path, "Q8_0", length=31)


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [1 + 0.5 * i for i in range(8)],
    "short_factor": [1 + 0.1 * i for i in range(8)],
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **_LLAMA3}}),
        ("llama", {"rope_parameters": _YARN}),
        ("qwen2", {"rope_parameters": _YARN}),
        ("qwen3", {"rope_parameters": {**_YARN, "attention_factor": 1.3}}),
        ("llama", {"rope_parameters": {**_YARN, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3}}),
        ("mistral", {"rope_parameters": {**_YARN, "truncate": False}, "sliding_window": None}),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
        # llama.cpp goes by the context, which it rounds up to 256; transformers by the text, here 40 tokens
        ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 256, "max_position_embeddings": 512}),
        ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 32, "max_position_embeddings": 128}),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("gemma2", {"query_pre_attn_scalar": 7, "sliding_window": 3}),
        ("gemma3", {"query_pre_attn_scalar": 50, "sliding_window": 4}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
    ],
)
@pytest.mark.parametrize("cut", ["dense", "attention gone"])
def test_positions_windows_and_scales(family, changes, cut, tmp_path):
    model = model_of(family, cut, **changes)
    compare(model, export(model, tmp_path / "toy.gguf", type="F32", pad=True).path, "F32")


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("pattern", ["fff", "sss", "s", "f", "fsf"])
def test_any_pattern_of_windows(family, pattern, tmp_path):
    types = [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in pattern]
    model = model_of(family, layer_types=types, num_hidden_layers=len(types))
    compare(model, export(model, tmp_path / "toy.gguf", type="F32").path, "F32")


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_as_many_blocks_as_the_largest_gemma(family, tmp_path):
    """llama.cpp takes another attention scale at 46 and 62 blocks; the queries make up for it."""
    count = {"gemma2": 46, "gemma3": 62}[family]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 2}
    types = ["sliding_attention", "full_attention"] * (count // 2)
    model = model_of(family, num_hidden_layers=count, layer_types=types, num_key_value_heads=1, **sizes)
    assert math.isclose(model.module.config.query_pre_attn_scalar, 16)
    path = export(model, tmp_path / "toy.gguf", type="F32").path
    compare(model, path, "Q8_0")  # errors of llama.cpp's float16 cache add up over so many blocks


@pytest.mark.parametrize(
    "tokenizer", [byte_level(), byte_level("qwen2"), sentence_piece(), sentence_piece(prefix=True)]
)
def test_tokens_and_template(tokenizer, tmp_path):
    model = model_of("llama")
    report = export(type(model)(model.module, tokenizer, model.source), tmp_path / "toy.gguf")
    assert report.notes[-1].startswith("llama.cpp gives the original's token ids")
    with LlamaCpp(report.path, vocabulary_only=True) as peer:
        for text in ("the hello 12", "hello<s>\n\nthe 123456 the", "é😀 日本"):
            assert peer.tokenize(text) == tokenizer(text)["input_ids"]
        assert peer.chat_template == tokenizer.chat_template


def test_a_file_that_llama_cpp_refuses_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(export.__globals__, "vocabulary_of", lambda *_: Vocabulary({"ggml.model": "nonsense"}))
    with pytest.raises(ExportError, match=r"not kept, since llama\.cpp cannot open.*unknown tokenizer"):
        export(model_of("llama", tokenizer=True), tmp_path / "toy.gguf")
    assert not list(tmp_path.iterdir())
