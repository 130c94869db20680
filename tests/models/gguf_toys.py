"""Tiny GGUF files, written with the `gguf` package from toy models, as llama.cpp's own converter would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from torch import nn

from lissome.testing.toys import toy_module

F32 = GGMLQuantizationType.F32
# Sizes that the block types divide (32) and that llama.cpp runs; heads × head_dim ≠ hidden only where it allows that.
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma3": {"head_dim": 32, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
}
_ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3": MODEL_ARCH.GEMMA3,
    "phi3": MODEL_ARCH.PHI3,
}
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def module_of(family: str, **changes: Any) -> nn.Module:
    """A toy model with sizes that suit GGUF files."""
    fields = {**SIZES, **CHANGES.get(family, {}), **changes}
    if family in ("gemma2", "gemma3"):
        fields.setdefault("query_pre_attn_scalar", fields["head_dim"])
    return toy_module(family, **fields)


def bytes_tokenizer(writer: gguf.GGUFWriter, vocab: int = SIZES["vocab_size"]) -> None:
    """A byte-level vocabulary: two control tokens, 256 bytes, a few merges, one user-defined token, filler."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "Ġ t", "Ġt he", "1 2"]
    tokens = [
        "<pad>",
        "<s>",
        "</s>",
        *letters,
        *(merge.replace(" ", "") for merge in merges),
        "<think>",
    ]
    types = [3, 3, 3, *[1] * (len(letters) + len(merges)), 4]
    filler = vocab - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(filler)])
    writer.add_token_types(types + [5] * filler)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def pieces_tokenizer(writer: gguf.GGUFWriter, vocab: int = SIZES["vocab_size"], *, prefix: bool = False) -> None:
    """A SentencePiece vocabulary: control tokens, byte tokens, scored pieces, a run of spaces, filler."""
    pieces = ["▁t", "he", "▁the", "ll", "▁a", "aa", "aaa", *"▁abcdefghijklmnopqrstuvwxyz.,\n"]
    tokens = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "  ",
        "<|endoftext|>",
        *pieces,
    ]
    types = [3, 3, 3, 2, *[6] * 256, 4, 3, *[1] * len(pieces)]
    filler = vocab - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"<unused{index}>" for index in range(filler)])
    writer.add_token_scores([-1000.0] * 262 + [-float(index) for index in range(len(pieces))] + [-1000.0] * filler)
    writer.add_token_types(types + [5] * filler)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(prefix)


def write_gguf(
    path: Path,
    family: str = "llama",
    *,
    module: nn.Module | None = None,
    kind: GGMLQuantizationType = F32,
    tokenizer: Callable[[gguf.GGUFWriter], None] = bytes_tokenizer,
    extend: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> nn.Module:
    """Write a toy model to `path`; matrices are stored as `kind`. Returns the module."""
    module = module or module_of(family)
    architecture = _ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(f"Toy {family}")
    _facts(writer, module.config, family)
    tokenizer(writer)
    extend(writer)
    _tensors(writer, module, architecture, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return module


def _facts(writer: gguf.GGUFWriter, config: Any, family: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if family not in ("gemma2", "gemma3"):
        writer.add_rope_dimension_count(config.head_dim)
    else:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _tensors(writer: gguf.GGUFWriter, module: nn.Module, architecture: MODEL_ARCH, kind: GGMLQuantizationType) -> None:
    config = module.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        values = tensor.numpy()
        if architecture is MODEL_ARCH.LLAMA and (".q_proj" in name or ".k_proj" in name):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3) and name.endswith("norm.weight"):
            values = values + np.float32(1)
        stored = kind if values.ndim > 1 else F32
        writer.add_tensor(target, gguf.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
