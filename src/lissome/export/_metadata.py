"""The header of a GGUF file: sizes, positions, windows and the tokenizer, under llama.cpp's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lissome
from lissome.export._architectures import GEMMA2, Architecture
from lissome.export._rope import Rope
from lissome.export._stack import Stack
from lissome.export._vocabulary import Vocabulary
from lissome.models.model import Model

_PHI3 = re.compile("phi-?3", re.IGNORECASE)
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""Ids of number types in `general.file_type`."""


def context_of(stack: Stack, architecture: Architecture) -> int:
    """Tokens up to which the file computes what the model does.

    llama.cpp gives most architectures no windows; there, a model with them is promised for one window only.
    """
    longest = int(stack.config.max_position_embeddings)
    return min(longest, stack.window) if stack.window and not architecture.windows else longest


def add_metadata(
    writer: Any, model: Model, stack: Stack, architecture: Architecture, rope: Rope, vocabulary: Vocabulary, kind: str
) -> None:
    """Put all entries into a `gguf.GGUFWriter`."""
    writer.add_string("general.type", "model")
    writer.add_string("general.name", _name(model, vocabulary))
    writer.add_uint32("general.file_type", FILE_TYPES[kind])
    writer.add_uint32("general.quantization_version", 2)
    writer.add_string("lissome.version", lissome.__version__)
    writer.add_string("lissome.source", Path(model.name).name)
    if model.source.sha256:
        writer.add_string("lissome.source_sha256", model.source.sha256)
    for key, value in (*_sizes(stack, architecture), *((f"rope.{key}", value) for key, value in rope.metadata())):
        _add(writer, f"{architecture.name}.{key}", value)
    for key, value in vocabulary.entries.items():
        _add(writer, f"tokenizer.{key}", value)


def _name(model: Model, vocabulary: Vocabulary) -> str:
    """Return the model's name, with "Phi-3" in it exactly where its tokenizer is Phi-3's.

    llama.cpp knows by this word alone that control tokens swallow spaces, and refuses another tokenizer under it.
    """
    name = Path(model.name).name
    if bool(_PHI3.search(name)) == vocabulary.swallows:
        return name
    return f"{name} (Phi-3 tokenizer)" if vocabulary.swallows else _PHI3.sub("Phi 3", name)


def _sizes(stack: Stack, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    config, shapes = stack.config, [layer.attention.shape if layer.attention else None for layer in stack.layers]
    head_dim = stack.attentions[0].shape.head_dim
    yield "vocab_size", stack.embedding.shape[0]
    yield "context_length", context_of(stack, architecture)
    yield "embedding_length", stack.hidden
    yield "block_count", len(stack.layers)
    yield "feed_forward_length", _one_or_all([layer.mlp.width if layer.mlp else 0 for layer in stack.layers])
    yield "attention.head_count", _one_or_all([shape.query_heads if shape else 0 for shape in shapes])
    yield "attention.head_count_kv", _one_or_all([shape.kv_heads if shape else 0 for shape in shapes])
    yield "attention.key_length", head_dim
    yield "attention.value_length", head_dim
    yield "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            yield name, float(getattr(config, name))
    yield from _windows(stack, architecture)


def _windows(stack: Stack, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    """Yield the window and which blocks have it; llama.cpp aborts when a window is stated but no block has it."""
    flags = [bool(layer.attention and layer.attention.sliding) for layer in stack.layers]
    if any(flags):
        yield "attention.sliding_window", stack.window
        if architecture.windows:
            yield "attention.sliding_window_pattern", flags
    elif architecture is GEMMA2:  # it always has windows: let them be as long as the context
        yield "attention.sliding_window", context_of(stack, architecture)
        yield "attention.sliding_window_pattern", [True] * len(flags)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    """Return one number where all are equal, which older loaders want."""
    return values[0] if len(set(values)) == 1 else list(values)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))
