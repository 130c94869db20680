"""Toy models of every family: real transformers classes with tiny random weights, built in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lissome.models.model import Model, Source

_SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {**_WINDOWED, "query_pre_attn_scalar": 8, "num_key_value_heads": 1}),
    "gemma3": ("Gemma3Text", {**_WINDOWED, "query_pre_attn_scalar": 8, "num_key_value_heads": 1}),
    "phi3": ("Phi3", {"resid_pdrop": 0.1}),
}
DECODERS: tuple[str, ...] = tuple(_FAMILIES)
"""Names that `toy_decoder` knows."""


def toy_module(family: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """Build a tiny random causal language model of a family.

    Args:
        family: One of `DECODERS`.
        seed: Seed of the weights; the global generator is left alone.
        changes: Configuration fields to change.
    """
    import transformers

    prefix, fields = _FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_SMALL, **fields, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():  # norms start at 0 or 1 and biases at 0, which would hide mistakes
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    eval_module: nn.Module = module.eval()
    return eval_module


def toy_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> Model:
    """Build a tiny random `Model` without a tokenizer; arguments as in `toy_module`."""
    return Model(toy_module(family, seed=seed, **changes), source=Source(f"toy-{family}"))
