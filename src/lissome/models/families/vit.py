"""Vision transformers: patches of an image, norms before each branch, biases, with and without a head.

Each block is ``x += attention(norm(x)); x += mlp(norm(x))`` over one position per patch and one for the class. A
removed branch adds a zero; its norm goes with it.
"""

# G heads, E head size, P positions

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch
from lissome.models.mixing import Attention
from lissome.models.parts import (
    NoAttention,
    NoMLP,
    common_size,
    drop_blocks,
    heads_dim,
    make_branch,
    require_architecture,
    width_dim,
)


def read(module: Any) -> Anatomy:
    """Read the anatomy of a vision transformer, bare or with a classifier.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("vit",))
    prefix = "vit." if hasattr(module, "vit") else ""
    if hasattr(module, "decoder"):
        raise UnsupportedModelError(f"{type(module).__name__} draws images; give the encoder or the classifier")
    base = module.base_model
    blocks = tuple(f"{prefix}layers.{index}" for index in range(len(base.layers)))
    positions = base.embeddings.patch_embeddings.num_patches + 1
    branches = tuple(
        branch for index, block in enumerate(blocks) for branch in _branches(module, index, block, positions)
    )
    outside = {
        f"{prefix}embeddings.patch_embeddings.projection": positions - 1,
        f"{prefix}pooler.dense": 1 if base.pooler is not None else 0,
        "classifier": 1 if isinstance(getattr(module, "classifier", None), nn.Linear) else 0,
    }
    return Anatomy(
        family=ViT(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.hidden_size),
        vocabulary=0,
        quorums=(tuple(branch.name for branch in branches),),
        task="image",
        outside={name: count for name, count in outside.items() if count},
    )


def _branches(module: Any, index: int, block: str, positions: int) -> list[Branch]:
    found, layer = [], module.get_submodule(block)
    if not isinstance(layer.attention, NoAttention):
        size = layer.attention.head_dim
        heads = heads_dim(module, f"{block}.attention", ("q_proj", "k_proj", "v_proj"), "o_proj", size)
        mixing = Attention(size, causal=False, queries=positions, keys=positions, caches=False)
        found.append(
            make_branch(
                module, f"layers.{index}.attention", block, "attention", ("layernorm_before",), positions=positions,
                kind="attention", block=index, dims=(heads,), mixing=mixing,
            )
        )  # fmt: skip
    if not isinstance(layer.mlp, NoMLP):
        width = width_dim(module, f"{block}.mlp", ("fc1",), "fc2")
        found.append(
            make_branch(
                module, f"layers.{index}.mlp", block, "mlp", ("layernorm_after",), positions=positions,
                kind="mlp", block=index, dims=(width,),
            )
        )  # fmt: skip
    return found


class ViT:
    """Operations on vision transformers; see `lissome.models.anatomy.Family`."""

    name = "vit"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return NoAttention() if branch.kind == "attention" else NoMLP()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return what an attention states of its heads."""
        return {branch.path: {"num_attention_heads": sizes["groups"]}} if branch.kind == "attention" else {}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Nothing: an encoder has no cache."""
        return {}

    def finish(self, module: Any) -> None:
        """Drop empty blocks and write uniform sizes into the configuration."""
        config, base, branches = module.config, module.base_model, read(module).branches
        kept = sorted({branch.block for branch in branches})
        base.layers = drop_blocks(base.layers, kept)
        config.num_hidden_layers = len(kept)
        config.intermediate_size = common_size(branches, "mlp", "width", len(kept)) or config.intermediate_size
        heads = common_size(branches, "attention", "groups", len(kept))
        if heads is not None and heads != config.num_attention_heads:  # the class takes a head size that is stated
            config.head_dim, config.num_attention_heads = base.layers[0].attention.head_dim, heads

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Refuse: its head reads the class position alone.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(f"{type(module).__name__} labels images; it predicts no tokens.")
