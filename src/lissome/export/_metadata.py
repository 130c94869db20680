"""The header of a GGUF file: sizes, positions, windows and the tokenizer, under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lissome
from lissome.export._architectures import Architecture
from lissome.export._rope import Rope
from lissome.export._stack import Stack
from lissome.export._vocabulary import Vocabulary
from lissome.models.model import Model

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}


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
    writer.add_string("general.name", Path(model.name).name)
    writer.add_uint32("general.file_type", _FILE_TYPES[kind])
    writer.add_uint32("general.quantization_version", 2)
    writer.add_string("lissome.version", lissome.__version__)
    writer.add_string("lissome.source", Path(model.name).name)
    if model.source.sha256:
        writer.add_string("lissome.source_sha256", model.source.sha256)
    for key, value in (*_sizes(stack, architecture), *((f"rope.{key}", value) for key, value in rope.metadata())):
        _add(writer, f"{architecture.name}.{key}", value)
    for key, value in vocabulary.entries.items():
        _add(writer, f"tokenizer.{key}", value)


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
    if stack.window:
        yield "attention.sliding_window", stack.window
        if architecture.windows:
            yield "attention.sliding_window_pattern", [bool(one and one.sliding) for one in _attentions(stack)]
    elif architecture.windows:
        # Gemma-2's loader assumes a window in every second block unless it is told
        yield "attention.sliding_window", context_of(stack, architecture)
        yield "attention.sliding_window_pattern", [False] * len(stack.layers)


def _attentions(stack: Stack) -> Iterator[Any]:
    return (layer.attention for layer in stack.layers)


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
