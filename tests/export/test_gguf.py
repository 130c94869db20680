"""GGUF export, read back by the own importer and the `gguf` package; llama.cpp itself is in the peer tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lissome.core.errors import ConfigError, ExportError, NumericsError
from lissome.core.events import EventStream
from lissome.core.manifest import Base, Manifest
from lissome.export.gguf import export, source_type
from lissome.models.load import load_model
from lissome.models.model import Model, Source
from lissome.testing.toys import DECODERS
from tests.export.toys import CUTS, logits_of, model_of

IDS = [5, 9, 300, 17, 2, 88, 41, 6, 7, 12, 13, 250]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))


def fields_of(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def kinds_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("cut", ["dense", "narrow everywhere", "a block's two halves"])
def test_uniform_blocks_come_back_as_they_were(family, cut, tmp_path):
    """Half a block and half of the next make one whole, so even that cut needs no padding."""
    model = model_of(family, cut, tokenizer=True)
    report = export(model, tmp_path / "toy.gguf", type="F32")
    back = load_model(report.path)
    assert report.architecture == {"mistral": "llama"}.get(family, family)
    assert not report.padded
    torch.testing.assert_close(logits_of(back.module, IDS), logits_of(model.module, IDS), atol=2e-6, rtol=1e-5)
    text = "hello the 12 <think>\n é 日本"
    assert back.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert back.tokenizer.chat_template == model.tokenizer.chat_template


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("cut", [name for name in CUTS if name != "dense"])
def test_uneven_blocks_padded_come_back_equal(family, cut, tmp_path):
    """What padding adds is read back too, and changes nothing."""
    model = model_of(family, cut, tokenizer=True, tie_word_embeddings=family != "qwen3")
    report = export(model, tmp_path / "toy.gguf", type="F32", pad=True)
    back = load_model(report.path)
    assert report.architecture == family
    torch.testing.assert_close(logits_of(back.module, IDS), logits_of(model.module, IDS), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {}, "deci"),
        ("mistral", {}, "deci"),
        ("qwen2", {}, "deci"),
        ("phi3", {}, "deci"),
        ("qwen3", {"tie_word_embeddings": True}, "openelm"),
        ("qwen3", {"tie_word_embeddings": False}, None),
        ("gemma2", {}, None),
        ("gemma3", {}, None),
    ],
)
def test_which_families_have_an_architecture_for_uneven_blocks(family, changes, expected, tmp_path):
    model = model_of(family, "attention gone", **changes)
    if expected is None:
        with pytest.raises(ExportError, match=r"some blocks lack a branch.*--pad"):
            export(model, tmp_path / "toy.gguf")
        assert not list(tmp_path.iterdir())
        return
    report = export(model, tmp_path / "toy.gguf", type="F32")
    assert report.architecture == expected
    written = fields_of(report.path)
    heads = [4, 0, 4] if expected == "deci" else [4, 1, 4]
    assert written[f"{expected}.attention.head_count"] == heads
    assert written[f"{expected}.feed_forward_length"] == [96, 96, 64]
    assert [one.part for one in report.padded] == ([] if expected == "deci" else ["block 1 attention"])


def test_deci_is_given_what_its_loader_needs(tmp_path):
    """Its first block must have an attention, and a block without MLP would lose its attention."""
    first = export(model_of("llama", "first attention gone"), tmp_path / "a.gguf", type="F32")
    assert fields_of(first.path)["deci.attention.head_count"] == [1, 4, 4]
    assert [(one.part, one.change) for one in first.padded] == [
        ("block 0 attention", "absent -> 1 query and 1 KV heads")
    ]
    meeting = export(model_of("llama", "two attentions meet"), tmp_path / "b.gguf", type="F32")
    assert fields_of(meeting.path)["deci.feed_forward_length"] == [32, 96, 32]
    assert meeting.padded_bytes == 2 * 4 * (3 * 32 * 64 + 64)  # gate, up, down and a norm, in float32


def test_heads_that_do_not_fill_the_hidden_size_leave_qwen2s_own_architecture(tmp_path):
    cut = {f"layers.{index}.attention.groups": 1 for index in range(3)}
    assert export(model_of("qwen2", cut), tmp_path / "toy.gguf").architecture == "deci"
    assert export(model_of("llama", cut), tmp_path / "toy.gguf").architecture == "llama"


@pytest.mark.parametrize(
    ("kind", "outer"), [("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q8_0"), ("Q4_1", "Q8_0")]
)
def test_types(kind, outer, tmp_path):
    report = export(model_of("llama"), tmp_path / "toy.gguf", type=kind)
    kinds = kinds_of(report.path)
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.0.attn_q.weight"] == kind
    assert kinds["token_embd.weight"] == kinds["output.weight"] == outer
    assert kinds["blk.1.ffn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert sum(report.types.values()) < report.bytes == report.path.stat().st_size


def test_the_embedding_has_a_type_of_its_own(tmp_path):
    report = export(model_of("llama"), tmp_path / "toy.gguf", type="Q8_0", embedding="Q4_0")
    assert kinds_of(report.path)["token_embd.weight"] == "Q4_0"


def test_rows_that_no_block_divides_become_float16_and_padding_fills_them(tmp_path):
    model = model_of("llama", {f"layers.{index}.mlp.width": 64 for index in range(3)}, intermediate_size=96)
    odd = model_of("llama", intermediate_size=90)
    assert not [note for note in export(model, tmp_path / "a.gguf", type="Q4_0").notes if "F16" in note]
    report = export(odd, tmp_path / "b.gguf", type="Q4_0")
    assert kinds_of(report.path)["blk.0.ffn_down.weight"] == "F16"
    assert any("3 tensors are F16" in note and "--pad" in note for note in report.notes)
    filled = export(odd, tmp_path / "c.gguf", type="Q4_0", pad=True)
    assert kinds_of(filled.path)["blk.0.ffn_down.weight"] == "Q4_0"
    assert [one.change for one in filled.padded] == ["width 90 -> 96"] * 3
    assert filled.bytes < report.bytes


def test_quantised_numbers_are_those_of_the_gguf_package(tmp_path):
    model = model_of("qwen3")
    report = export(model, tmp_path / "toy.gguf", type="Q4_0")
    stored = next(tensor for tensor in gguf.GGUFReader(report.path).tensors if tensor.name == "blk.2.ffn_up.weight")
    weight = model.module.model.layers[2].mlp.up_proj.weight.detach().numpy()
    expected = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(stored.data, expected)


def test_a_model_from_a_gguf_file_goes_back_in_its_type_bit_for_bit(tmp_path):
    """Rounding to the same blocks again changes nothing, so an uncut model is its file again."""
    first = export(model_of("llama", tokenizer=True), tmp_path / "a.gguf", type="Q4_1")
    loaded = load_model(first.path)
    assert source_type(loaded) == "Q4_1"
    second = export(loaded, tmp_path / "b.gguf")
    one, two = (gguf.GGUFReader(path).tensors for path in (first.path, second.path))
    assert [tensor.name for tensor in one] == [tensor.name for tensor in two]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one, two, strict=True))


def test_without_a_gguf_source_the_type_is_float16(tmp_path):
    model = model_of("llama")
    assert source_type(model) is None
    assert source_type(Model(model.module, None, Source("gone", tmp_path / "gone.gguf"))) is None
    assert kinds_of(export(model, tmp_path / "toy.gguf").path)["blk.0.attn_q.weight"] == "F16"


def test_an_artifact_remembers_the_type_of_the_file_it_was_made_from(tmp_path):
    base = Base(name="a", architecture="llama", gguf_type="Q4_1")
    folder = model_of("llama").save(tmp_path / "small", manifest=Manifest(name="small", base=base))
    assert source_type(load_model(folder)) == "Q4_1"


def test_windows(tmp_path):
    """Gemma's pattern is written block by block; llama.cpp's llama has none, so its context is one window."""
    gemma = export(model_of("gemma3", "a block's two halves", sliding_window=5), tmp_path / "a.gguf")
    written = fields_of(gemma.path)
    assert written["gemma3.attention.sliding_window_pattern"] == [True, False]
    assert written["gemma3.attention.sliding_window"] == 5
    mistral = export(model_of("mistral", sliding_window=7), tmp_path / "b.gguf")
    assert fields_of(mistral.path)["llama.context_length"] == 7
    assert any("see 7 tokens" in note for note in mistral.notes)


def test_same_model_same_bytes(tmp_path):
    paths = [export(model_of("gemma2", tokenizer=True), tmp_path / f"{name}.gguf").path for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("toy.bin", {}, "must end in .gguf"),
        ("toy.gguf", {"type": "Q8-0"}, "did you mean 'Q8_0'"),
        ("toy.gguf", {"type": "Q4_K"}, "known: BF16, F16"),
        ("toy.gguf", {"embedding": "int8"}, "unknown GGUF number type 'int8'"),
    ],
)
def test_impossible_requests(target, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export(model_of("llama"), tmp_path / target, **options)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(float("nan"), "Q8_0", "NaN or infinite"), (-float("inf"), "F16", "NaN"), (1e5, "F16", "float16 cannot")],
)
def test_bad_numbers_leave_nothing_behind(value, kind, message, tmp_path):
    model = model_of("llama")
    model.module.model.layers[2].mlp.down_proj.weight.data[3, 5] = value
    target = tmp_path / "toy.gguf"
    target.write_bytes(b"older")
    with pytest.raises(NumericsError, match=rf"blk.2.ffn_down.weight.*{message}"):
        export(model, target, type=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.gguf"]
    assert target.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation is not gelu"),
        ("gemma2", {"final_logit_softcapping": None}, "always caps its logits"),
        ("qwen3", {"attention_bias": True}, "no bias in"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "this kind of yarn"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(family, changes, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(model_of(family, **changes), tmp_path / "toy.gguf", pad=True)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match="1,000 free"):
        export(model_of("llama"), tmp_path / "toy.gguf")
    assert not list(tmp_path.iterdir())


def test_progress_and_report(tmp_path):
    seen = []
    report = export(model_of("gemma2", "widths"), tmp_path / "toy.gguf", pad=True, events=EventStream(seen.append))
    assert seen[0].stage == "export toy.gguf"
    assert seen[-1].step == seen[0].total == len(kinds_of(report.path))
    written = report.to_json()
    assert written["padded_bytes"] == sum(one["bytes"] for one in written["padded"]) > 0
    assert {one["change"] for one in written["padded"]} == {"width 64 -> 96", "width 32 -> 96"}
