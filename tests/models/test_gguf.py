"""GGUF import: the converted folder is the model in the file."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from lissome.core.errors import ArtifactError, MissingExtraError, UnsupportedModelError
from lissome.core.events import EventStream
from lissome.core.files import cache_dir
from lissome.models.gguf import convert, weights
from lissome.testing.toys import DECODERS
from tests.models.gguf_toys import module_of, pieces_tokenizer, write_gguf

LONG = torch.arange(3, 23).view(1, -1)  # longer than the toys' window of 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))


def load(folder: Path, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(module, ids=LONG):
    return module(ids).logits.float()


@pytest.mark.parametrize("family", DECODERS)
def test_converted_model_computes_what_the_original_does(family, tmp_path):
    module = write_gguf(tmp_path / "toy.gguf", family)
    converted = load(convert(tmp_path / "toy.gguf"))
    assert type(converted) is type(module)
    torch.testing.assert_close(logits(converted), logits(module), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_quantised_model_stays_near(family, tmp_path):
    module = write_gguf(tmp_path / "toy.gguf", family, kind=Kind.Q8_0)
    given, wanted = logits(load(convert(tmp_path / "toy.gguf"))), logits(module)
    assert (given - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("changes", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_llama_variants(changes, tmp_path):
    module = write_gguf(tmp_path / "toy.gguf", module=module_of("llama", **changes))
    torch.testing.assert_close(logits(load(convert(tmp_path / "toy.gguf"))), logits(module), rtol=1e-5, atol=1e-5)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_weights_are_those_of_the_gguf_package_bit_for_bit(kind, tmp_path):
    write_gguf(tmp_path / "toy.gguf", "qwen2", kind=kind)
    stored = stored_tensors(convert(tmp_path / "toy.gguf"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "toy.gguf").tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }
    for source, target in pairs.items():
        expected = gguf.dequantize(tensors[source].data, tensors[source].tensor_type)
        assert stored[target].dtype is torch.float32
        assert np.array_equal(stored[target].numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)])
def test_half_precision_is_kept_where_it_is_exact(kind, dtype, tmp_path):
    exact = module_of("llama")
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(dtype).float()
    write_gguf(tmp_path / "exact.gguf", module=exact, kind=kind)
    folder = convert(tmp_path / "exact.gguf")
    assert {tensor.dtype for tensor in stored_tensors(folder).values()} == {dtype}
    assert load(folder, dtype="auto").dtype is dtype
    assert torch.equal(logits(load(folder, dtype=torch.float32)), logits(exact))

    write_gguf(tmp_path / "rounded.gguf", kind=kind)  # its norms are float32 and need all their bits
    assert {tensor.dtype for tensor in stored_tensors(convert(tmp_path / "rounded.gguf")).values()} == {torch.float32}


def test_size_of_a_piece_changes_nothing(tmp_path, monkeypatch):
    write_gguf(tmp_path / "toy.gguf", kind=Kind.Q4_0)
    whole = (convert(tmp_path / "toy.gguf") / "model.safetensors").read_bytes()
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(weights, "_PIECE", 192)  # three rows
    assert (convert(tmp_path / "toy.gguf") / "model.safetensors").read_bytes() == whole


def test_converted_once_and_again_only_when_not_whole(tmp_path):
    write_gguf(tmp_path / "toy.gguf")
    seen = []
    events = EventStream(seen.append)
    folder = convert(tmp_path / "toy.gguf", events=events)
    assert [event.kind for event in seen if event.kind != "advance"] == ["start", "finish"]
    assert seen[-1].step == seen[-1].total
    count = len(seen)
    (tmp_path / "moved.gguf").write_bytes((tmp_path / "toy.gguf").read_bytes())
    assert convert(tmp_path / "moved.gguf", events=events) == folder  # the content counts, not the name
    assert len(seen) == count
    (folder / "tokenizer.json").unlink()
    assert convert(tmp_path / "toy.gguf", events=events) == folder
    assert (folder / "tokenizer.json").exists()
    assert len(seen) > count


def test_changed_file_is_another_model(tmp_path):
    write_gguf(tmp_path / "toy.gguf")
    first = convert(tmp_path / "toy.gguf")
    write_gguf(tmp_path / "toy.gguf", "qwen2")
    assert convert(tmp_path / "toy.gguf") != first


def test_two_conversions_at_once(tmp_path):
    write_gguf(tmp_path / "toy.gguf")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(convert, [tmp_path / "toy.gguf"] * 2)
    assert first == second
    load(first)
    assert not [path for path in first.parent.iterdir() if path.suffix in (".part", ".old")]


def test_stamp_says_where_the_folder_comes_from(tmp_path):
    write_gguf(tmp_path / "toy.gguf")
    folder = convert(tmp_path / "toy.gguf")
    stamp = json.loads((folder / "source.json").read_text())
    assert (stamp["file"], stamp["stored"]) == ("toy.gguf", "F32")
    assert stamp["sha256"].startswith(folder.name)


def test_rope_scaling_of_llama_3_is_recovered(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    module = module_of("llama", rope_parameters=rope)
    base = 10000.0 ** -(np.arange(0, 16, 2, dtype=np.float32) / 16)
    factors = (base / module.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    write_gguf(
        tmp_path / "toy.gguf", module=module, extend=lambda writer: writer.add_tensor("rope_freqs.weight", factors)
    )
    converted = load(convert(tmp_path / "toy.gguf"))
    torch.testing.assert_close(converted.model.rotary_emb.inv_freq, module.model.rotary_emb.inv_freq)

    other = factors * np.linspace(1, 2, 8, dtype=np.float32)
    write_gguf(tmp_path / "other.gguf", extend=lambda writer: writer.add_tensor("rope_freqs.weight", other))
    with pytest.raises(UnsupportedModelError, match="not those of Llama 3"):
        convert(tmp_path / "other.gguf")


def test_linear_scaling_of_gemma_3_is_for_global_layers(tmp_path):
    def extend(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    write_gguf(tmp_path / "toy.gguf", "gemma3", extend=extend)
    rope = load(convert(tmp_path / "toy.gguf")).config.rope_parameters
    assert (rope["full_attention"]["rope_type"], rope["full_attention"]["factor"]) == ("linear", 8.0)
    assert rope["sliding_attention"]["rope_type"] == "default"


def test_long_rope_of_phi_3(tmp_path):
    short, long = np.linspace(1, 1.5, 8, dtype=np.float32), np.linspace(1, 9, 8, dtype=np.float32)

    def extend(writer):
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_tensor("rope_factors_long.weight", long)
        writer.add_tensor("rope_factors_short.weight", short)

    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
    }
    rope |= {"original_max_position_embeddings": 64, "factor": 2.0}
    module = module_of("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    write_gguf(tmp_path / "toy.gguf", "phi3", module=module, extend=extend)
    torch.testing.assert_close(logits(load(convert(tmp_path / "toy.gguf"))), logits(module), rtol=1e-5, atol=1e-5)


def test_end_of_turn_ends_generation_too(tmp_path):
    write_gguf(tmp_path / "toy.gguf", extend=lambda writer: writer.add_eot_token_id(5))
    folder = convert(tmp_path / "toy.gguf")
    assert load(folder).generation_config.eos_token_id == [2, 5]
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2


def refused(path: Path, error: type[Exception], match: str) -> None:
    """Converting fails with one line, and leaves nothing that looks converted."""
    with pytest.raises(error, match=match) as caught:
        convert(path)
    assert "\n" not in str(caught.value)
    assert not [left for left in (cache_dir() / "converted").glob("*") if left.suffix != ".lock"]


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Replace a name in the header by another of the same length."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_other_architectures_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "toy.gguf")
    rewrite(tmp_path / "toy.gguf", b"llama", b"mamba")
    refused(tmp_path / "toy.gguf", UnsupportedModelError, "'mamba'; GGUF files can be read for: deci, gemma2, gemma3")


def test_mixtures_of_experts_are_refused(tmp_path):
    write_gguf(tmp_path / "toy.gguf", extend=lambda writer: writer.add_expert_count(8))
    refused(tmp_path / "toy.gguf", UnsupportedModelError, "mixture of experts")


def test_unknown_tensors_are_refused(tmp_path):
    extra = np.zeros(4, np.float32)
    write_gguf(tmp_path / "toy.gguf", extend=lambda writer: writer.add_tensor("blk.0.surprise.weight", extra))
    refused(tmp_path / "toy.gguf", UnsupportedModelError, "surprise")


def test_missing_tensors_are_refused(tmp_path):
    module = module_of("qwen3")
    state = module.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    module.state_dict = lambda: state
    write_gguf(tmp_path / "toy.gguf", "qwen3", module=module)
    refused(tmp_path / "toy.gguf", ArtifactError, r"layers.1.mlp.up_proj.weight .* it holds nothing")


def test_sizes_that_contradict_each_other_are_refused(tmp_path):
    module = module_of("llama")
    module.config.intermediate_size = 128
    write_gguf(tmp_path / "toy.gguf", module=module)
    refused(tmp_path / "toy.gguf", ArtifactError, r"asks for \(64, 128\) and it holds \(64, 96\)")


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    write_gguf(tmp_path / "toy.gguf", tokenizer=lambda writer: pieces_tokenizer(writer, 400))
    refused(tmp_path / "toy.gguf", ArtifactError, "400 tokens, more than its embedding")


def test_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write_gguf(tmp_path / "toy.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    refused(tmp_path / "toy.gguf", ArtifactError, "more than is free")


def test_missing_gguf_package_says_how_to_install_it(tmp_path, monkeypatch):
    write_gguf(tmp_path / "toy.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lissome\[gguf\]'"):
        convert(tmp_path / "toy.gguf")
