"""Llama-like decoders: Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3 and Phi-3, dense or already cut.

Each block is ``x += attention(norm(x)); x += mlp(norm(x))``, Gemma with norms after the branch too, Phi-3 with fused
projections. A removed branch adds a zero, so the stock forward of transformers keeps working; its norms
become identities, its attention holds no cache (the configuration marks it so), its block goes when nothing is left.
"""

# G KV groups, Q query heads per group, H = G*Q query heads, E head size, F MLP channels

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim, span
from lissome.models.mixing import Attention
from lissome.models.parts import (
    NoAttention,
    NoMLP,
    cache_modes,
    drop_blocks,
    make_branch,
    makes,
    reads,
    require_architecture,
    width_dim,
    write_accepted,
    write_fields,
)

Parts = dict[str, tuple[str, ...]]

_LLAMA: Parts = {"attention": ("input_layernorm",), "mlp": ("post_attention_layernorm",)}
_GEMMA: Parts = {
    "attention": ("input_layernorm", "post_attention_layernorm"),
    "mlp": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
}
_PHI: Parts = {
    "attention": ("input_layernorm", "resid_attn_dropout"),
    "mlp": ("post_attention_layernorm", "resid_mlp_dropout"),
}
COMPANIONS: dict[str, Parts] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _PHI,
}
GEMMA = ("gemma2", "gemma3_text")
"""Those with norms after a branch too, and a soft cap of the logits; others keep a field of that name unread."""
_MODULES = {"attention": "self_attn", "mlp": "mlp"}


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention: query heads H, KV heads G, head size E."""

    query_heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one block; `attention` is None and `mlp` is 0 when the branch is removed."""

    attention: AttentionShape | None
    mlp: int


def attention_shape(attention: Any) -> AttentionShape | None:
    """Read the sizes of an attention from its weights; None when it is removed."""
    if isinstance(attention, NoAttention):
        return None
    head_dim = int(attention.head_dim)
    if hasattr(attention, "qkv_proj"):
        heads = attention.o_proj.weight.shape[1] // head_dim
        return AttentionShape(heads, (attention.qkv_proj.weight.shape[0] // head_dim - heads) // 2, head_dim)
    return AttentionShape(
        attention.q_proj.weight.shape[0] // head_dim,
        attention.k_proj.weight.shape[0] // head_dim,
        head_dim,
    )


def layer_shapes(module: Any) -> list[LayerShape]:
    """Sizes of every block of a causal language model of this family."""
    return [
        LayerShape(
            attention_shape(layer.self_attn),
            0 if isinstance(layer.mlp, NoMLP) else layer.mlp.down_proj.weight.shape[1],
        )
        for layer in module.model.layers
    ]


def read(module: Any) -> Anatomy:
    """Read the anatomy of a Llama-like causal language model.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, tuple(COMPANIONS))
    layers = getattr(getattr(module, "model", None), "layers", None)
    if layers is None or not hasattr(module, "lm_head"):
        raise UnsupportedModelError(
            f"{type(module).__name__} has no model.layers with lm_head; give the causal language model"
        )
    branches = [
        branch
        for index in range(len(layers))
        for branch in (_attention(module, index, architecture), _mlp(module, index, architecture))
        if branch is not None
    ]
    return Anatomy(
        family=Decoder(),
        architecture=architecture,
        module=module,
        blocks=tuple(f"model.layers.{index}" for index in range(len(layers))),
        branches=tuple(branches),
        hidden=int(config.hidden_size),
        vocabulary=int(module.lm_head.weight.shape[0]),
        quorums=(tuple(branch.name for branch in branches if branch.kind == "attention"),),
    )


def _branch(module: Any, kind: str, index: int, architecture: str, dims: tuple[Dim, ...]) -> Branch:
    block, part = f"model.layers.{index}", _MODULES[kind]
    inner: Any = module.get_submodule(f"{block}.{part}")
    mixing = Attention(int(inner.head_dim), getattr(inner, "sliding_window", None)) if kind == "attention" else None
    return make_branch(
        module, f"layers.{index}.{kind}", block, part, COMPANIONS[architecture][kind],
        kind=kind, block=index, dims=dims, mixing=mixing,
    )  # fmt: skip


def _attention(module: Any, index: int, architecture: str) -> Branch | None:
    attention = module.model.layers[index].self_attn
    if attention_shape(attention) is None:
        return None
    dims = attention_dims(attention, f"model.layers.{index}.self_attn")
    return _branch(module, "attention", index, architecture, dims)


def attention_dims(attention: Any, path: str) -> tuple[Dim, Dim]:
    """Describe KV groups, and query heads of each group, of an attention that is there.

    Args:
        attention: With ``q_proj``, ``k_proj`` and ``v_proj`` or a fused ``qkv_proj``, and ``o_proj``.
        path: Its dotted name.
    """
    shape = attention_shape(attention)
    assert shape is not None
    g, e = shape.kv_heads, shape.head_dim
    q = shape.query_heads // g
    starts = (0, g * q * e, g * q * e + g * e)
    names = ("qkv_proj",) * 3 if hasattr(attention, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
    if names[0] == "q_proj":
        starts = (0, 0, 0)

    def made(name: str, units: Tensor) -> list[Cut]:
        return makes(attention.get_submodule(name), f"{path}.{name}", units)

    def read_by_output(units: Tensor) -> Cut:
        return reads(attention.o_proj, f"{path}.o_proj", units)

    groups = made(names[0], span(starts[0], g, q * e))
    for name, start in zip(names[1:], starts[1:], strict=True):
        groups += made(name, span(start, g, e))
    groups.append(read_by_output(span(0, g, q * e)))
    heads = span(0, q, e, lanes=g, lane_stride=q * e, stride=e)
    queries = [*made(names[0], heads), read_by_output(heads)]
    return Dim("groups", g, tuple(groups)), Dim("queries", q, tuple(queries))


def _mlp(module: Any, index: int, architecture: str) -> Branch | None:
    mlp = module.model.layers[index].mlp
    if isinstance(mlp, NoMLP):
        return None
    if not hasattr(mlp, "down_proj"):
        raise UnsupportedModelError(f"block {index} has no dense gated MLP but {type(mlp).__name__}")
    names = ("gate_up_proj",) * 2 if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")
    width = width_dim(module, f"model.layers.{index}.mlp", names, "down_proj")
    return _branch(module, "mlp", index, architecture, (width,))


class Decoder:
    """Operations on Llama-like decoders; see `lissome.models.anatomy.Family`."""

    name = "decoder"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return NoAttention() if branch.kind == "attention" else NoMLP()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return attributes that the attention's forward reads and that follow its sizes."""
        if branch.kind != "attention":
            return {}
        groups, queries = sizes["groups"], sizes["queries"]
        attention = module.get_submodule(branch.path)
        fields: dict[str, Any] = {"num_key_value_groups": queries}
        if hasattr(attention, "num_key_value_heads"):
            fields["num_key_value_heads"] = groups
        if hasattr(attention, "qkv_proj"):  # Phi-3 splits its fused rows by the configuration's head count
            config = copy.copy(attention.config)
            config.num_attention_heads = groups * queries
            fields["config"] = config
        return {branch.path: fields}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Mark removed attentions for transformers' cache, which then holds a dummy in their place."""
        return {"kv_sharing_modes": cache_modes(anatomy, removed)}

    def finish(self, module: Any) -> None:
        """Drop empty blocks, renumber the rest, and write uniform sizes into the configuration."""
        config, layers = module.config, module.model.layers
        kept = [index for index, shape in enumerate(layer_shapes(module)) if shape.attention or shape.mlp]
        types = getattr(config, "layer_types", None)
        module.model.layers = drop_blocks(layers, kept)
        config.num_hidden_layers = len(kept)
        if types is not None:
            config.layer_types = [types[index] for index in kept]
        write_fields(config, self.settle(module, frozenset(), read(module)))
        shapes = layer_shapes(module)
        if is_uniform(shapes):
            write_accepted(config, _uniform(shapes[0]))

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm, vocabulary projection and, for Gemma, the soft cap: [..., D] → [..., V]."""
        logits: Tensor = module.lm_head(module.model.norm(hidden))
        cap = module.config.final_logit_softcapping if module.config.model_type in GEMMA else None
        return logits if cap is None else torch.tanh(logits / cap) * cap


def is_uniform(shapes: list[LayerShape]) -> bool:
    """Whether all blocks have one shape and both branches."""
    return bool(shapes) and shapes[0].attention is not None and shapes[0].mlp > 0 and len(set(shapes)) == 1


def _uniform(shape: LayerShape) -> dict[str, int]:
    assert shape.attention is not None
    return {
        "intermediate_size": shape.mlp,
        "head_dim": shape.attention.head_dim,
        "num_attention_heads": shape.attention.query_heads,
        "num_key_value_heads": shape.attention.kv_heads,
    }
