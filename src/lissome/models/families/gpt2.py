"""GPT-2: learned positions, fused Conv1D projections, biases, an MLP without gate.

Each block is ``x += attn(ln_1(x)); x += mlp(ln_2(x))``. Weights of Conv1D are [in, out], so that heads are columns of
``c_attn`` (queries, keys and values one after the other) and rows of ``c_proj``. A removed branch adds a zero.
"""

# G heads, E head size

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
    cache_modes,
    common_size,
    drop_blocks,
    heads_dim,
    make_branch,
    require_architecture,
    width_dim,
    write_fields,
)


def read(module: Any) -> Anatomy:
    """Read the anatomy of a GPT-2 language model.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("gpt2",))
    if not hasattr(module, "lm_head") or config.add_cross_attention:
        raise UnsupportedModelError(f"{type(module).__name__} is not the causal language model alone; give that")
    if config.scale_attn_by_inverse_layer_idx:
        raise UnsupportedModelError("its attentions are scaled by the number of their block, which changes in a cut")
    blocks = tuple(f"transformer.h.{index}" for index in range(len(module.transformer.h)))
    branches = tuple(branch for index in range(len(blocks)) for branch in _branches(module, index))
    return Anatomy(
        family=GPT2(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.n_embd),
        vocabulary=int(module.lm_head.weight.shape[0]),
        quorums=(tuple(branch.name for branch in branches if branch.kind == "attention"),),
    )


def _branches(module: Any, index: int) -> list[Branch]:
    found, block = [], f"transformer.h.{index}"
    attention, mlp = module.transformer.h[index].attn, module.transformer.h[index].mlp
    if not isinstance(attention, NoAttention):
        heads = heads_dim(module, f"{block}.attn", ("c_attn",) * 3, "c_proj", attention.head_dim)
        found.append(
            make_branch(
                module, f"layers.{index}.attention", block, "attn", ("ln_1",),
                kind="attention", block=index, dims=(heads,), mixing=Attention(attention.head_dim),
            )
        )  # fmt: skip
    if not isinstance(mlp, NoMLP):
        width = width_dim(module, f"{block}.mlp", ("c_fc",), "c_proj")
        found.append(
            make_branch(module, f"layers.{index}.mlp", block, "mlp", ("ln_2",), kind="mlp", block=index, dims=(width,))
        )
    return found


class GPT2:
    """Operations on GPT-2; see `lissome.models.anatomy.Family`."""

    name = "gpt2"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return NoAttention() if branch.kind == "attention" else NoMLP()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return attributes that the attention's forward reads and that follow its heads."""
        if branch.kind != "attention":
            return {}
        attention = module.get_submodule(branch.path)
        return {branch.path: {"num_heads": sizes["groups"], "split_size": sizes["groups"] * attention.head_dim}}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Mark removed attentions for transformers' cache."""
        return {"kv_sharing_modes": cache_modes(anatomy, removed)}

    def finish(self, module: Any) -> None:
        """Drop empty blocks, renumber the rest, and write uniform widths into the configuration."""
        config, branches = module.config, read(module).branches
        kept = sorted({branch.block for branch in branches})
        module.transformer.h = drop_blocks(module.transformer.h, kept)
        config.n_layer = len(kept)
        write_fields(config, self.settle(module, frozenset(), read(module)))
        width = common_size(branches, "mlp", "width", len(kept))
        if width is not None and width != (config.n_inner or 4 * config.n_embd):
            config.n_inner = width

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm and vocabulary projection: [..., D] → [..., V]."""
        logits: Tensor = module.lm_head(module.transformer.ln_f(hidden))
        return logits
