"""Uneven models written as GGUF and read again: the same blocks, the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lissome.core.errors import ArtifactError, LissomeError, UnsupportedModelError
from lissome.export.gguf import export
from lissome.models.load import load_model
from lissome.models.model import Model
from tests.export.toys import logits_of, model_of

IDS = [5, 17, 3, 99, 250, 42, 8, 61]
CUT = {"layers.0.mlp.width": 64, "layers.1.attention": 0, "layers.2.mlp.width": 32, "layers.2.attention.groups": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))


def written(model: Model, path: Path, kind: str = "F32") -> str:
    return export(model, path, type=kind).architecture


@pytest.mark.parametrize(
    ("family", "changes", "architecture"),
    [
        ("llama", {}, "deci"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, "deci"),
        ("mistral", {}, "deci"),
        ("qwen2", {}, "deci"),
        ("phi3", {}, "deci"),
        ("qwen3", {"tie_word_embeddings": True}, "openelm"),
    ],
)
@pytest.mark.parametrize(
    "cut",
    [
        CUT,
        "widths",
        "heads",
        "first attention gone",
        "mlp gone",
        "two attentions meet",
        {"layers.0.attention.queries": 1, "layers.1.attention.queries": 1, "layers.2.attention.queries": 1}
        | {"layers.0.mlp.width": 32},
    ],
)
def test_an_uneven_model_comes_back(
    family: str, changes: dict[str, Any], architecture: str, cut: Any, tmp_path: Path
) -> None:
    if "mlp_bias" in changes and cut in ("mlp gone", "two attentions meet"):
        pytest.skip("an MLP that stands in for a removed one has no biases")
    model = model_of(family, cut, tokenizer=True, **changes)
    assert written(model, tmp_path / "toy.gguf") == architecture
    back = load_model(tmp_path / "toy.gguf")
    torch.testing.assert_close(logits_of(back.module, IDS), logits_of(model.module, IDS), rtol=1e-5, atol=1e-5)
    assert back.tokenizer is not None
    assert back.tokenizer("hello the")["input_ids"] == model.tokenizer("hello the")["input_ids"]  # type: ignore[misc]
    again = back.save(tmp_path / "again")
    assert torch.equal(logits_of(load_model(again).module, IDS), logits_of(back.module, IDS))
    if cut == CUT:
        layers = model.anatomy.layers()
        if architecture == "openelm":  # the smallest that does nothing stands in for the attention that is gone
            layers[1] = {"attention": {"groups": 1, "queries": 1}, **layers[1]}
        assert back.anatomy.layers() == layers


def test_quantised_files_come_back(tmp_path: Path) -> None:
    model = model_of("qwen3", "widths", tokenizer=True, tie_word_embeddings=True)
    written(model, tmp_path / "toy.gguf", "Q8_0")
    given, wanted = logits_of(load_model(tmp_path / "toy.gguf").module, IDS), logits_of(model.module, IDS)
    assert (given - wanted).norm() / wanted.norm() < 0.05


def rewritten(source: Path, target: Path, key: str, values: Any) -> None:
    """Copy a GGUF file with another value of one key."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, entry in reader.fields.items():
        if name == key or name.startswith("GGUF.") or name == "general.architecture":
            continue
        kinds = entry.types
        writer.add_key_value(name, entry.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    if isinstance(values, list):
        writer.add_array(key, values)
    else:
        writer.add_uint32(key, values)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("family", "key", "values", "error", "words"),
    [
        ("llama", "attention.head_count", [4, 4], ArtifactError, "for each block"),
        ("llama", "attention.head_count", ["a", "b", "c"], ArtifactError, "for each block"),
        ("llama", "attention.head_count", [4, -4, 4], ArtifactError, "for each block"),
        ("llama", "attention.head_count", [4, 3, 4], ArtifactError, "do not fit"),
        ("llama", "attention.head_count", [4, 0, 4], UnsupportedModelError, "in block 1"),
        ("llama", "attention.head_count", [4, 2, 4], ArtifactError, "its header asks for"),
        ("llama", "attention.head_count", 10**9, ArtifactError, "toy"),
        ("llama", "feed_forward_length", [64, 0, 32], UnsupportedModelError, "in block 1"),
        ("llama", "feed_forward_length", [64, 10**9, 32], ArtifactError, "it asks for model"),
        ("llama", "feed_forward_length", [64, 10**6, 32], ArtifactError, "its header asks for"),
        ("llama", "attention.key_length", 15, ArtifactError, "heads of 15"),
        ("qwen3", "attention.head_count", [4, 8, 4], ArtifactError, "its heads need"),
    ],
)
def test_headers_that_lie(
    family: str, key: str, values: Any, error: type[LissomeError], words: str, tmp_path: Path
) -> None:
    model = model_of(family, "widths", tokenizer=True, **({"tie_word_embeddings": True} if family == "qwen3" else {}))
    architecture = written(model, tmp_path / "toy.gguf")
    rewritten(tmp_path / "toy.gguf", tmp_path / "toy-bad.gguf", f"{architecture}.{key}", values)
    with pytest.raises(error, match=words) as caught:
        load_model(tmp_path / "toy-bad.gguf")
    assert "\n" not in str(caught.value)
