"""Hugging Face export: stock folders that transformers opens alone, padded where blocks differ."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lissome.core.errors import ArtifactError, ConfigError, ExportError
from lissome.core.registry import public_files
from lissome.export.hf import export
from lissome.testing.toys import DECODERS
from tests.export.toys import CUTS, logits_of, model_of

IDS = [5, 9, 300, 17, 2, 88, 41, 6, 7, 12, 13, 250]


def test_formats_are_found_by_file_name():
    assert [info.name for info in public_files("lissome.export")] == ["gguf", "hf", "nested"]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("cut", ["dense", "attention gone", "two attentions meet", "heads", "no mlp"])
def test_transformers_opens_it_and_computes_the_same(family, cut, tmp_path):
    model = model_of(family, cut)
    report = export(model, tmp_path / "out", pad=True)
    stock = AutoModelForCausalLM.from_pretrained(report.path).eval()
    assert json.loads((report.path / "config.json").read_text())["model_type"] == model.module.config.model_type
    torch.testing.assert_close(logits_of(stock, IDS), logits_of(model.module, IDS), atol=2e-6, rtol=1e-5)
    assert bool(report.padded) == (cut != "dense")
    ids = torch.tensor([IDS[:5]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(stock.generate(ids, **options), model.module.generate(ids, **options))


@pytest.mark.parametrize("cut", [name for name in CUTS if name not in {"dense", "narrow everywhere", "one attention"}])
def test_uneven_blocks_need_padding(cut, tmp_path):
    model = model_of("llama", cut)
    if cut == "a block's two halves":  # two half blocks are one whole block, with nothing added
        report = export(model, tmp_path / "out")
        assert (report.blocks, report.padded) == (2, ())
        assert report.notes == ("3 blocks became 2: an attention and the MLP that follows it share one",)
        return
    with pytest.raises(ExportError, match=r"cannot say this model.*--pad.*lissome\.load"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_padding_is_counted(tmp_path):
    report = export(model_of("llama", "widths"), tmp_path / "out", pad=True)
    assert [(one.part, one.change, one.bytes) for one in report.padded] == [
        ("block 0 mlp", "width 64 -> 96", 3 * 32 * 64 * 4),
        ("block 2 mlp", "width 32 -> 96", 3 * 64 * 64 * 4),
    ]
    assert report.padded_bytes < sum(report.types.values()) < report.bytes


def test_heads_that_transformers_refuses_are_padded_to_some_it_takes(tmp_path):
    """Its Llama wants heads to divide the hidden size; 3 of 64 do not, 4 do."""
    model = model_of("llama", {f"layers.{index}.attention.groups": 3 for index in range(3)}, num_key_value_heads=4)
    with pytest.raises(ExportError, match="refuses 3 heads"):
        export(model, tmp_path / "out")
    report = export(model, tmp_path / "out", pad=True)
    assert {one.change for one in report.padded} == {"3 query and 3 KV heads -> 4 and 4"}
    stock = AutoModelForCausalLM.from_pretrained(report.path)
    torch.testing.assert_close(logits_of(stock, IDS), logits_of(model.module, IDS), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [(None, torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_number_types(kind, dtype, tmp_path):
    report = export(model_of("qwen2", tokenizer=True), tmp_path / "out", type=kind)
    stock = AutoModelForCausalLM.from_pretrained(report.path)
    assert stock.dtype == dtype
    assert list(report.types) == [str(dtype).removeprefix("torch.")]
    assert AutoTokenizer.from_pretrained(report.path)("hello <think>")["input_ids"]


def test_places_and_types_that_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ArtifactError):
        export(model_of("llama"), tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    with pytest.raises(ConfigError, match="did you mean 'BF16'"):
        export(model_of("llama"), tmp_path / "out", type="BF-16")
