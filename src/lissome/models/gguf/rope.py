"""Rotary position settings: from GGUF metadata and factor tensors to transformers' ``rope_parameters``."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np

from lissome.core.errors import UnsupportedModelError
from lissome.models.gguf.header import Header, damaged

# Llama 3.1, 3.2 and 3.3 differ only in `factor`; the file stores the resulting factors, not these.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_of(header: Header, model_type: str, head_dim: int) -> dict[str, Any]:
    """Return ``rope_parameters`` for a model whose heads have `head_dim` numbers.

    Raises:
        UnsupportedModelError: When the file scales positions in a way that is not known.
    """
    theta = header.number("rope.freq_base", 10000.0)
    scaling = _scaling(header, theta, head_dim)
    if model_type == "gemma3_text":
        local = header.number("rope.freq_base_swa", 10000.0)
        return {
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
            "full_attention": {"rope_theta": theta, **scaling},
        }
    rotated = header.whole("rope.dimension_count", head_dim)
    if rotated == head_dim:
        return {"rope_theta": theta, **scaling}
    if model_type != "phi3":
        raise UnsupportedModelError(
            f"{header.path.name} rotates {rotated} of {head_dim} numbers per head, which no {model_type} model does."
        )
    return {"rope_theta": theta, "partial_rotary_factor": rotated / head_dim, **scaling}


def _scaling(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    if "rope_factors_long.weight" in header.tensors:
        original = header.whole("rope.scaling.original_context_length", 4096)
        return {
            "rope_type": "longrope",
            "factor": header.whole("context_length", original) / original,
            "long_factor": _floats(header, "rope_factors_long.weight"),
            "short_factor": _floats(header, "rope_factors_short.weight"),
            "original_max_position_embeddings": original,
        }
    if "rope_freqs.weight" in header.tensors:
        return _llama3(header, theta, head_dim)
    kind = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    factor = header.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = header.whole("rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModelError(
        f"{header.path.name} scales positions by {str(kind)[:40]!r}; known: none, linear, yarn, Llama-3 and LongRoPE."
    )


def _floats(header: Header, name: str) -> list[float]:
    entry = header.tensors.get(name)
    if entry is None or entry.kind.name != "F32":
        raise damaged(header.path, f"tensor {name} is missing or not float32")
    values = np.memmap(header.path, dtype="<f4", mode="r", offset=entry.offset, shape=entry.shape)
    return [float(value) for value in values.reshape(-1)]


def _llama3(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3's scaling from the stored divisors: the longest wave tells `factor`, the rest must agree."""
    stored = np.array(_floats(header, "rope_freqs.weight"))
    settings = {"factor": float(stored[-1]), **_LLAMA3}
    wave = 2 * pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    smooth = (settings["original_max_position_embeddings"] / wave - low) / (high - low)
    expected = 1 / np.clip((1 - np.clip(smooth, 0, 1)) / settings["factor"] + np.clip(smooth, 0, 1), 1e-9, None)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise UnsupportedModelError(
            f"{header.path.name} scales positions by its own factors, which are not those of Llama 3; "
            "give the original Hugging Face folder instead."
        )
    return {"rope_type": "llama3", **settings}
