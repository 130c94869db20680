"""Bamba: Mamba-2 mixers, attentions with grouped queries, and a gated MLP in every block; dense or already cut.

Each block is ``x += mixer or attention(norm(x)); x += feed_forward(norm(x))``. Each of the three can go, and its cache
or states with it; a block goes when nothing is left of it. One attention stays: transformers takes the length of the
text so far from its keys. Mixers lose their scan or heads as in `lissome.models.families.ssm`.
"""

# G KV groups, Q query heads per group, E head size

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch
from lissome.models.families.decoder import attention_dims
from lissome.models.families.ssm import NoMixer, drop_scans, mixer_branch, resized, uniform_sizes
from lissome.models.mixing import Attention
from lissome.models.parts import (
    NoAttention,
    NoMLP,
    cache_modes,
    common_size,
    drop_blocks,
    make_branch,
    require_architecture,
    width_dim,
    write_accepted,
    write_fields,
)

_BEFORE = {"attention": "input_layernorm", "mlp": "pre_ff_layernorm"}


def read(module: Any) -> Anatomy:
    """Read the anatomy of a Bamba language model.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("bamba",))
    if not hasattr(module, "model") or not hasattr(module, "lm_head"):
        raise UnsupportedModelError(f"{type(module).__name__} has no model with lm_head; give the language model")
    layers = module.model.layers
    branches = tuple(branch for index in range(len(layers)) for branch in _branches(module, index))
    attentions = tuple(branch.name for branch in branches if branch.kind == "attention")
    return Anatomy(
        family=Hybrid(),
        architecture=architecture,
        module=module,
        blocks=tuple(f"model.layers.{index}" for index in range(len(layers))),
        branches=branches,
        hidden=int(config.hidden_size),
        vocabulary=int(module.lm_head.weight.shape[0]),
        quorums=(attentions,) if attentions else (),
    )


def _branches(module: Any, index: int) -> list[Branch]:
    found, block, layer = [], f"model.layers.{index}", module.model.layers[index]
    if not isinstance(_mixing_module(layer), NoMixer | NoAttention):
        if _attends(layer):
            attention = layer.self_attn
            dims = attention_dims(attention, f"{block}.self_attn")
            found.append(
                make_branch(
                    module, f"layers.{index}.attention", block, "self_attn", (_BEFORE["attention"],),
                    kind="attention", block=index, dims=dims, mixing=Attention(int(attention.head_dim)),
                )
            )  # fmt: skip
        else:
            found.append(mixer_branch(module, index, block, "mamba", _BEFORE["attention"]))
    if not isinstance(layer.feed_forward, NoMLP):
        width = width_dim(module, f"{block}.feed_forward", ("gate_proj", "up_proj"), "down_proj")
        found.append(
            make_branch(
                module, f"layers.{index}.mlp", block, "feed_forward", (_BEFORE["mlp"],),
                kind="mlp", block=index, dims=(width,),
            )
        )  # fmt: skip
    return found


def _attends(layer: Any) -> bool:
    return bool(layer.block_type == "full_attention")


def _mixing_module(layer: Any) -> nn.Module:
    module: nn.Module = layer.self_attn if _attends(layer) else layer.mamba
    return module


class Hybrid:
    """Operations on Bamba; see `lissome.models.anatomy.Family`."""

    name = "hybrid"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return {"attention": NoAttention, "mixer": NoMixer, "mlp": NoMLP}[branch.kind]()

    def resize(self, module: nn.Module, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return attributes that the forward of a mixer or an attention reads and that follow its sizes."""
        if branch.kind == "mixer":
            return resized(module, branch, sizes)
        return {branch.path: {"num_key_value_groups": sizes["queries"]}} if branch.kind == "attention" else {}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Mark blocks without mixer and attention for transformers' cache, which then holds a dummy there."""
        return {"kv_sharing_modes": cache_modes(anatomy, removed)}

    def finish(self, module: Any) -> None:
        """Drop empty blocks, renumber the rest, and write uniform sizes into the configuration."""
        config = module.config
        drop_scans(module)
        kept = sorted({branch.block for branch in read(module).branches})
        module.model.layers = drop_blocks(module.model.layers, kept)
        config.num_hidden_layers = len(kept)
        config.attn_layer_indices = [index for index, layer in enumerate(module.model.layers) if _attends(layer)]
        anatomy = read(module)
        write_fields(config, self.settle(module, frozenset(), anatomy))
        fields = _uniform(module, anatomy)
        if fields:
            write_accepted(config, fields)

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm and vocabulary projection: [..., D] → [..., V]."""
        logits: Tensor = module.lm_head(module.model.final_layernorm(hidden))
        return logits


def _uniform(module: Any, anatomy: Anatomy) -> dict[str, Any]:
    """Fields of a configuration that builds blocks of these sizes; empty when none does."""
    branches, count = anatomy.branches, len(anatomy.blocks)
    attentions = [branch for branch in branches if branch.kind == "attention"]
    mixers = [branch for branch in branches if branch.kind == "mixer"]
    width = common_size(branches, "mlp", "width", count)
    groups, queries = (common_size(attentions, "attention", dim, len(attentions)) for dim in ("groups", "queries"))
    if width is None or groups is None or queries is None or len(attentions) + len(mixers) != count:
        return {}
    attention = module.get_submodule(attentions[0].path)
    fields = {
        "intermediate_size": width,
        "num_attention_heads": groups * queries,
        "num_key_value_heads": groups,
        "head_dim": int(attention.head_dim),
    }
    if not mixers:
        return fields
    mixer: Any = module.get_submodule(mixers[0].path)
    expand, rest = divmod(mixer.intermediate_size, anatomy.hidden)
    if uniform_sizes(branches) is None or rest:
        return {}
    return {**fields, "mamba_n_heads": mixer.num_heads, "mamba_expand": expand}
