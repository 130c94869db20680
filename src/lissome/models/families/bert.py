"""BERT-like encoders (MiniLM is one): norms after each sum, biases, with and without a head.

Each block is ``x = norm(x + attention(x)); x = norm(x + mlp(x))``. A removed branch adds a zero and its norm stays: x
becomes norm(x), since what follows was trained on normed inputs. The other choice, x stays x, was measured on MiniLM:
with any one branch gone, sentence embeddings keep a mean cosine of 0.92 to the original's with the norm and 0.83
without, and the norm is the better choice for each of the twelve branches. Blocks therefore never vanish: without
branches they still hold two norms.
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
    common_size,
    heads_dim,
    is_linear,
    make_branch,
    require_architecture,
    width_dim,
)

_POOLED = ("pooler.dense", "classifier", "seq_relationship")  # read the first token alone, where there is a pooler


def read(module: Any) -> Anatomy:
    """Read the anatomy of a BERT encoder, bare or with any head.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("bert",))
    if config.is_decoder:
        raise UnsupportedModelError("it is a BERT that writes text (is_decoder); only encoders are known")
    prefix = "bert." if hasattr(module, "bert") else ""
    layers = module.get_submodule(f"{prefix}encoder.layer")
    blocks = tuple(f"{prefix}encoder.layer.{index}" for index in range(len(layers)))
    branches = tuple(branch for index, block in enumerate(blocks) for branch in _branches(module, index, block))
    return Anatomy(
        family=BERT(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        task="encoder",
        outside=_outside(module, blocks),
    )


def _branches(module: Any, index: int, block: str) -> list[Branch]:
    found, layer = [], module.get_submodule(block)
    attention = layer.attention.self
    if not isinstance(attention, NoAttention):
        size = attention.attention_head_size
        producers = ("self.query", "self.key", "self.value")
        heads = heads_dim(module, f"{block}.attention", producers, "output.dense", size)
        found.append(
            make_branch(
                module, f"layers.{index}.attention", block, "attention.self", ("attention.output.dense",),
                kind="attention", block=index, dims=(heads,), mixing=Attention(size, causal=False, caches=False),
            )
        )  # fmt: skip
    if not isinstance(layer.intermediate, NoMLP):
        width = width_dim(module, block, ("intermediate.dense",), "output.dense")
        found.append(
            make_branch(
                module, f"layers.{index}.mlp", block, "intermediate", ("output.dense",),
                kind="mlp", block=index, dims=(width,),
            )
        )  # fmt: skip
    return found


def _outside(module: Any, blocks: tuple[str, ...]) -> dict[str, int | None]:
    """Linear layers of the pooler and of the head, without the projection to the vocabulary."""
    last, pooled = module.get_output_embeddings(), module.base_model.pooler is not None
    names = [name for name, layer in module.named_modules() if is_linear(layer) and layer is not last]
    return {
        name: 1 if pooled and name.endswith(_POOLED) else None
        for name in names
        if not name.startswith(tuple(f"{block}." for block in blocks))
    }


class BERT:
    """Operations on BERT; see `lissome.models.anatomy.Family`."""

    name = "bert"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        return NoAttention() if branch.kind == "attention" else NoMLP()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return what an attention states of its heads."""
        if branch.kind != "attention":
            return {}
        size = module.get_submodule(branch.path).attention_head_size
        heads = sizes["groups"]
        return {branch.path: {"num_attention_heads": heads, "all_head_size": heads * size}}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Nothing: an encoder has no cache."""
        return {}

    def finish(self, module: Any) -> None:
        """Write uniform widths into the configuration."""
        anatomy, config = read(module), module.config
        width = common_size(anatomy.branches, "mlp", "width", len(anatomy.blocks))
        config.intermediate_size = width or config.intermediate_size

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Projection to the vocabulary of a masked language model: [..., D] → [..., V].

        Raises:
            UnsupportedModelError: When it has none.
        """
        if not hasattr(getattr(module, "cls", None), "predictions"):
            raise UnsupportedModelError(f"{type(module).__name__} does not predict tokens; it has no such head.")
        logits: Tensor = module.cls.predictions(hidden)
        return logits
