"""Rotary positions, from transformers' settings to what llama.cpp reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import ExportError
from lissome.export._stack import Stack


@dataclass(frozen=True, kw_only=True, eq=False)
class Rope:
    """How positions turn queries and keys.

    Attributes:
        kind: transformers' ``rope_type``: default, linear, dynamic, yarn, llama3 or longrope.
        theta: Base of the frequencies.
        window_theta: Base in attentions that see a window, where it is another.
        dims: How many numbers of each head are turned.
        factor: How far positions are stretched (linear, yarn).
        original: Positions that the model was first trained on, where they are scaled.
        attention: What queries and keys are multiplied with beyond llama.cpp's own factor.
        divisors: What each frequency is divided by (llama3, and YaRN with a ramp of its own), float[dims/2].
        long: The same for contexts beyond `original` (longrope).
        short: The same for contexts up to `original` (longrope).
    """

    kind: str
    theta: float
    window_theta: float | None
    dims: int
    factor: float = 1.0
    original: int | None = None
    attention: float = 1.0
    divisors: Tensor | None = None
    long: Tensor | None = None
    short: Tensor | None = None

    def metadata(self) -> Iterator[tuple[str, Any]]:
        """Keys below ``<architecture>.rope.`` with their values."""
        yield "dimension_count", self.dims
        yield "freq_base", self.theta
        if self.window_theta is not None:
            yield "freq_base_swa", self.window_theta
        if self.kind in {"linear", "yarn", "longrope"} and self.divisors is None:
            yield "scaling.type", self.kind
        if self.kind in {"linear", "yarn"} and self.divisors is None:
            yield "scaling.factor", self.factor
        if self.original is not None:
            yield "scaling.original_context_length", self.original
        if not math.isclose(self.attention, 1.0, rel_tol=1e-6):
            yield "scaling.attn_factor", self.attention

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors that hold factors, by their name in the file."""
        if self.divisors is not None:
            yield "rope_freqs.weight", self.divisors
        if self.long is not None and self.short is not None:
            yield "rope_factors_long.weight", self.long
            yield "rope_factors_short.weight", self.short


def rope_of(stack: Stack) -> Rope:
    """Read the rotary settings of a model.

    Raises:
        ExportError: When llama.cpp has no words for them.
    """
    settings: Mapping[str, Any] = stack.config.rope_parameters
    rotary: Any = stack.module.model.rotary_emb  # type: ignore[union-attr]
    window_theta, prefix = None, ""
    if "rope_theta" not in settings:  # one setting for each kind of attention; a model may have one kind only
        local = settings.get("sliding_attention", settings.get("full_attention", {}))
        if local.get("rope_type", "default") != "default":
            raise ExportError(f"llama.cpp cannot scale the positions of window attentions by {local['rope_type']!r}.")
        window_theta = float(local["rope_theta"])
        settings = settings.get("full_attention", local)
        prefix = "full_attention_" if hasattr(rotary, "full_attention_inv_freq") else "sliding_attention_"
    frequencies: Tensor = getattr(rotary, f"{prefix}inv_freq")
    kind = str(settings.get("rope_type", "default"))
    common: dict[str, Any] = {
        "kind": kind,
        "theta": float(settings["rope_theta"]),
        "window_theta": window_theta,
        "dims": 2 * len(frequencies),
    }
    scaling = float(getattr(rotary, f"{prefix}attention_scaling"))
    reader = _READERS.get(kind)
    if reader is None:
        raise ExportError(f"llama.cpp cannot scale positions by {kind!r}; known: {', '.join(_READERS)}.")
    return Rope(**common, **reader(settings, stack.config, frequencies, scaling))


def _plain(settings: Mapping[str, Any], config: Any, frequencies: Tensor, scaling: float) -> dict[str, Any]:
    del settings, config, frequencies, scaling
    return {}


def _linear(settings: Mapping[str, Any], config: Any, frequencies: Tensor, scaling: float) -> dict[str, Any]:
    del config, frequencies, scaling
    return {"factor": float(settings["factor"])}


def _yarn(settings: Mapping[str, Any], config: Any, frequencies: Tensor, scaling: float) -> dict[str, Any]:
    ramp = (float(settings.get("beta_fast") or 32), float(settings.get("beta_slow") or 1))
    if ramp != (32, 1) or settings.get("truncate", True) is False:  # llama.cpp has one ramp for all but two models
        return {"attention": scaling, "divisors": _divisors(settings, frequencies)}
    factor = float(settings["factor"])
    original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
    return {
        "factor": factor,
        "original": int(original),
        "attention": scaling / (1 + 0.1 * math.log(factor)) if factor > 1 else scaling,
    }


def _llama3(settings: Mapping[str, Any], config: Any, frequencies: Tensor, scaling: float) -> dict[str, Any]:
    del config, scaling
    return {"divisors": _divisors(settings, frequencies)}


def _divisors(settings: Mapping[str, Any], frequencies: Tensor) -> Tensor:
    dims = 2 * len(frequencies)
    plain = float(settings["rope_theta"]) ** -(torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    return (plain / frequencies.double().cpu()).float()


def _longrope(settings: Mapping[str, Any], config: Any, frequencies: Tensor, scaling: float) -> dict[str, Any]:
    del frequencies
    original = settings.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return {
        "original": int(original),
        "attention": scaling,
        "long": torch.tensor(settings["long_factor"], dtype=torch.float32),
        "short": torch.tensor(settings["short_factor"], dtype=torch.float32),
    }


_READERS = {
    "default": _plain,
    "dynamic": _plain,  # it changes nothing up to the trained context, which is what the file promises
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
