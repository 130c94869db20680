"""Llama-like decoders: Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3 and Phi-3, dense or already cut.

Each block is ``x += attention(norm(x)); x += mlp(norm(x))``, Gemma with norms after the branch too, Phi-3 with fused
projections. A removed branch adds the number 0.0, so the stock forward of transformers keeps working; its norms
become identities, its attention holds no cache (the configuration marks it so), its block goes when nothing is left.
"""

# G KV groups, Q query heads per group, H = G*Q query heads, E head size, F MLP channels

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim, span
from lissome.models.mixing import Attention
from lissome.models.parts import require_architecture

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


class RemovedAttention(nn.Module):
    """Stands where an attention was: adds nothing, holds no cache."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[float, None]:
        """Return the number that leaves a residual stream as it is."""
        return 0.0, None


class RemovedMLP(nn.Module):
    """Stands where an MLP was: adds nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> float:
        """Return the number that leaves a residual stream as it is."""
        return 0.0


def attention_shape(attention: Any) -> AttentionShape | None:
    """Read the sizes of an attention from its weights; None when it is removed."""
    if isinstance(attention, RemovedAttention):
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
            0 if isinstance(layer.mlp, RemovedMLP) else layer.mlp.down_proj.weight.shape[1],
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
        for index, layer in enumerate(layers)
        for branch in (_attention(index, layer, architecture), _mlp(index, layer, architecture))
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


def _branch(kind: str, index: int, layer: Any, architecture: str, dims: tuple[Dim, ...]) -> Branch:
    root, part = f"model.layers.{index}", _MODULES[kind]
    companions = tuple(f"{root}.{name}" for name in COMPANIONS[architecture][kind])
    owners = (part, *COMPANIONS[architecture][kind])
    parameters = tuple(f"{root}.{name}" for name, _ in layer.named_parameters() if name.split(".", 1)[0] in owners)
    module: Any = layer.get_submodule(part)
    linears = tuple(f"{root}.{part}.{name}" for name, child in module.named_modules() if isinstance(child, nn.Linear))
    window = getattr(module, "sliding_window", None)
    mixing = Attention(int(module.head_dim), window) if kind == "attention" else None
    return Branch(
        f"layers.{index}.{kind}", kind, index, f"{root}.{part}", companions, dims, parameters, linears, mixing
    )


def _rows(parent: Any, path: str, name: str, units: Tensor) -> list[Cut]:
    """Cuts of the output side of a linear layer: its rows, and its bias when there is one."""
    linear = parent.get_submodule(name)
    suffixes = ["weight"] + (["bias"] if linear.bias is not None else [])
    return [Cut(f"{path}.{name}.{suffix}", 0, units) for suffix in suffixes]


def _attention(index: int, layer: Any, architecture: str) -> Branch | None:
    if attention_shape(layer.self_attn) is None:
        return None
    dims = attention_dims(layer.self_attn, f"model.layers.{index}.self_attn")
    return _branch("attention", index, layer, architecture, dims)


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
    groups = [*_rows(attention, path, names[0], span(starts[0], g, q * e))]
    for name, start in zip(names[1:], starts[1:], strict=True):
        groups += _rows(attention, path, name, span(start, g, e))
    groups.append(Cut(f"{path}.o_proj.weight", 1, span(0, g, q * e), reads=True))
    heads = span(0, q, e, lanes=g, lane_stride=q * e, stride=e)
    queries = [*_rows(attention, path, names[0], heads), Cut(f"{path}.o_proj.weight", 1, heads, reads=True)]
    return Dim("groups", g, tuple(groups)), Dim("queries", q, tuple(queries))


def _mlp(index: int, layer: Any, architecture: str) -> Branch | None:
    mlp, path = layer.mlp, f"model.layers.{index}.mlp"
    if isinstance(mlp, RemovedMLP):
        return None
    if not hasattr(mlp, "down_proj"):
        raise UnsupportedModelError(f"block {index} has no dense gated MLP but {type(mlp).__name__}")
    width = int(mlp.down_proj.weight.shape[1])
    cuts: list[Cut] = []
    if hasattr(mlp, "gate_up_proj"):
        for start in (0, width):
            cuts += _rows(mlp, path, "gate_up_proj", span(start, width, 1))
    else:
        for name in ("gate_proj", "up_proj"):
            cuts += _rows(mlp, path, name, span(0, width, 1))
    cuts.append(Cut(f"{path}.down_proj.weight", 1, span(0, width, 1), reads=True))
    return _branch("mlp", index, layer, architecture, (Dim("width", width, tuple(cuts), step=_width_step(width)),))


def _width_step(width: int) -> int:
    """About an eighth of the width, in multiples of 32 (what matrix kernels like) where that is possible."""
    coarse = max(1, width // 8)
    return coarse // 32 * 32 or coarse


class Decoder:
    """Operations on Llama-like decoders; see `lissome.models.anatomy.Family`."""

    name = "decoder"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return RemovedAttention() if branch.kind == "attention" else RemovedMLP()

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
        modes = [
            "reuse" if branch is None or branch.name in removed else None
            for branch in (anatomy.by_name.get(f"layers.{index}.attention") for index in range(len(anatomy.blocks)))
        ]
        return {"kv_sharing_modes": modes if any(modes) else None}

    def finish(self, module: Any) -> None:
        """Drop empty blocks, renumber the rest, and write uniform sizes into the configuration."""
        config, layers = module.config, module.model.layers
        kept = [index for index, shape in enumerate(layer_shapes(module)) if shape.attention or shape.mlp]
        types = getattr(config, "layer_types", None)
        module.model.layers = nn.ModuleList([layers[index] for index in kept])
        config.num_hidden_layers = len(kept)
        if types is not None:
            config.layer_types = [types[index] for index in kept]
        for index, layer in enumerate(module.model.layers):
            for part in (layer, layer.self_attn):
                if hasattr(part, "layer_idx"):
                    part.layer_idx = index
        shapes = layer_shapes(module)
        modes = [None if shape.attention else "reuse" for shape in shapes]
        if any(modes):
            config.kv_sharing_modes = modes
        elif hasattr(config, "kv_sharing_modes"):
            del config.kv_sharing_modes
        if is_uniform(shapes):
            _write_uniform(config, shapes[0])

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm, vocabulary projection and, for Gemma-2, the soft cap: [..., D] → [..., V]."""
        logits: Tensor = module.lm_head(module.model.norm(hidden))
        cap = getattr(module.config, "final_logit_softcapping", None)
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


def _write_uniform(config: Any, shape: LayerShape) -> None:
    """Write the sizes of uniform blocks into a configuration, unless its class refuses them (odd head counts)."""
    fields = {**config.to_dict(), **_uniform(shape)}
    try:
        type(config).from_dict(fields)
    except (ValueError, StrictDataclassError):
        return
    for name, value in _uniform(shape).items():
        setattr(config, name, value)
