"""OPT: learned positions, biases, an MLP of two layers, norms before (most sizes) or after (350M) each sum.

Each block is ``x += attn(norm(x)); x += fc2(relu(fc1(norm(x))))``; with ``do_layer_norm_before=False`` it is
``x = norm(x + attn(x)); x = norm(x + …)``. A removed branch adds a zero in both. Norms before the branch go with it;
norms after the sum stay, since what follows was trained on normed inputs, and so do their blocks.
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
    """Read the anatomy of an OPT language model.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("opt",))
    if not hasattr(module, "lm_head"):
        raise UnsupportedModelError(f"{type(module).__name__} has no lm_head; give the causal language model")
    decoder = module.model.decoder
    blocks = tuple(f"model.decoder.layers.{index}" for index in range(len(decoder.layers)))
    branches = tuple(branch for index in range(len(blocks)) for branch in _branches(module, index))
    ends = [name for name in ("project_in", "project_out") if getattr(decoder, name) is not None]
    return Anatomy(
        family=OPT(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.hidden_size),
        vocabulary=int(module.lm_head.weight.shape[0]),
        quorums=(tuple(branch.name for branch in branches if branch.kind == "attention"),),
        outside=dict.fromkeys(f"model.decoder.{name}" for name in ends),
    )


def _branches(module: Any, index: int) -> list[Branch]:
    found, block = [], f"model.decoder.layers.{index}"
    layer = module.get_submodule(block)
    before = layer.do_layer_norm_before
    if not isinstance(layer.self_attn, NoAttention):
        size = layer.self_attn.head_dim
        heads = heads_dim(module, f"{block}.self_attn", ("q_proj", "k_proj", "v_proj"), "out_proj", size)
        norms = ("self_attn_layer_norm",) if before else ()
        found.append(
            make_branch(
                module, f"layers.{index}.attention", block, "self_attn", norms,
                kind="attention", block=index, dims=(heads,), mixing=Attention(size),
            )
        )  # fmt: skip
    if not isinstance(layer.fc2, NoMLP):
        width = width_dim(module, block, ("fc1",), "fc2")
        owners = ("fc1", "final_layer_norm") if before else ("fc1",)
        found.append(
            make_branch(
                module, f"layers.{index}.mlp", block, "fc2", owners, kind="mlp", block=index, dims=(width,)
            )
        )  # fmt: skip
    return found


class OPT:
    """Operations on OPT; see `lissome.models.anatomy.Family`."""

    name = "opt"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return NoAttention() if branch.kind == "attention" else NoMLP()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return the number of heads, which the attention's forward reads."""
        return {branch.path: {"num_heads": sizes["groups"]}} if branch.kind == "attention" else {}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Mark removed attentions for transformers' cache."""
        return {"kv_sharing_modes": cache_modes(anatomy, removed)}

    def finish(self, module: Any) -> None:
        """Drop empty blocks, renumber the rest, and write uniform widths into the configuration."""
        config, decoder, branches = module.config, module.model.decoder, read(module).branches
        kept = sorted({branch.block for branch in branches})
        if not config.do_layer_norm_before:  # their norms are left
            kept = list(range(len(decoder.layers)))
        decoder.layers = drop_blocks(decoder.layers, kept)
        config.num_hidden_layers = len(kept)
        write_fields(config, self.settle(module, frozenset(), read(module)))
        config.ffn_dim = common_size(branches, "mlp", "width", len(kept)) or config.ffn_dim

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm and projection, where there are any, and vocabulary projection: [..., D] → [..., V]."""
        decoder = module.model.decoder
        for layer in (decoder.final_layer_norm, decoder.project_out):
            hidden = hidden if layer is None else layer(hidden)
        logits: Tensor = module.lm_head(hidden)
        return logits
