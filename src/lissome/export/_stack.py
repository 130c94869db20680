"""A decoder as the formats see it: attentions and MLPs in order, spelt the same for every family, without copies."""

# G KV groups, Q query heads per group, E head size, F MLP channels, D residual width, V tokens

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ExportError
from lissome.models.families.decoder import COMPANIONS, AttentionShape, attention_shape
from lissome.models.model import Model


@dataclass(frozen=True, eq=False)
class Piece:
    """One tensor to be written, made only when its turn comes.

    Attributes:
        shape: Its shape.
        make: Returns it.
        added: How many of its numbers are padding.
    """

    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    added: int = 0

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Piece:
        """Return the piece with its numbers changed and its shape kept."""
        return replace(self, make=lambda: change(self.make()))


def whole(tensor: Tensor) -> Piece:
    """Return a piece that is a tensor as it stands."""
    return Piece(tuple(tensor.shape), lambda: tensor)


def rows(tensor: Tensor, start: int, count: int) -> Piece:
    """Return a piece that is a run of rows of a tensor."""
    return Piece((count, *tensor.shape[1:]), lambda: tensor.narrow(0, start, count))


def stacked(pieces: Sequence[Piece]) -> Piece:
    """Return a piece that has the rows of several, one after the other."""
    shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
    return Piece(shape, lambda: torch.cat([piece.make() for piece in pieces]), sum(piece.added for piece in pieces))


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention.

    Attributes:
        shape: Its sizes.
        pieces: Tensors by role: ``q k v o`` with ``_bias`` where there is one, ``q_norm k_norm norm post_norm``.
        sliding: Whether it sees a window only.
        origin: Index of its block in the model.
        padding: How it was padded; empty when it was not.
    """

    shape: AttentionShape
    pieces: Mapping[str, Piece]
    sliding: bool
    origin: int
    padding: str = ""


@dataclass(frozen=True, eq=False)
class MLP:
    """One gated MLP; `pieces` by role: ``gate up down`` with ``_bias`` where there is one, ``norm post_norm``."""

    width: int
    pieces: Mapping[str, Piece]
    origin: int
    padding: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """One written block; either branch may be absent."""

    attention: Attention | None
    mlp: MLP | None

    @property
    def whole(self) -> bool:
        """Whether both branches are there."""
        return self.attention is not None and self.mlp is not None


@dataclass(frozen=True, eq=False)
class Stack:
    """A causal language model.

    Attributes:
        module: The module that was read.
        model_type: transformers' name of its kind.
        layers: Its blocks.
        embedding: Token embedding, float[V, D].
        norm: Weight of the last norm, float[D].
        head: Output projection, float[V, D]; None when it is the embedding.
    """

    module: nn.Module
    model_type: str
    layers: tuple[Layer, ...]
    embedding: Tensor
    norm: Tensor
    head: Tensor | None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.module.config

    @property
    def hidden(self) -> int:
        """Residual width D."""
        return int(self.embedding.shape[1])

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The attentions, in order."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @property
    def mlps(self) -> tuple[MLP, ...]:
        """The MLPs, in order."""
        return tuple(layer.mlp for layer in self.layers if layer.mlp is not None)

    @property
    def window(self) -> int | None:
        """Tokens that a sliding attention sees; None when no attention slides."""
        return int(self.config.sliding_window) if any(one.sliding for one in self.attentions) else None

    @property
    def merging(self) -> str:
        """How blocks were put together for writing; empty when they are the model's own."""
        before = len(self.module.model.layers)  # type: ignore[union-attr,arg-type]
        if before == len(self.layers):
            return ""
        return f"{before} blocks became {len(self.layers)}: an attention and the MLP that follows it share one"

    @property
    def uneven(self) -> str:
        """What keeps one configuration from saying all blocks; empty when nothing does."""
        if not all(layer.whole for layer in self.layers):
            return "some blocks lack a branch"
        if len({attention.shape for attention in self.attentions}) > 1:
            return "the number of heads differs between blocks"
        return "the MLP width differs between blocks" if len({mlp.width for mlp in self.mlps}) > 1 else ""


def read_stack(model: Model) -> Stack:
    """Describe a model for writing, with as few blocks as its branches allow.

    An attention whose MLP was removed shares a block with the next MLP whose attention was removed: a block is
    ``x += attention(norm(x)); x += mlp(norm(x))``, so this changes nothing.

    Raises:
        UnsupportedModelError: When the model's parts are not understood.
        ExportError: When it is of a kind that no format file here knows, or has no attention left.
    """
    architecture, module = model.anatomy.architecture, model.module
    if architecture not in COMPANIONS:
        known = ", ".join(COMPANIONS)
        raise ExportError(f"GGUF files are written for {known}, not for {architecture}; write a folder with --to hf.")
    inner: Any = module.model
    head: Tensor = module.lm_head.weight  # type: ignore[assignment,union-attr]
    embedding: Tensor = inner.embed_tokens.weight
    blocks = [_layer(layer, index, architecture, module.config) for index, layer in enumerate(inner.layers)]
    if not any(block.attention for block in blocks):
        raise ExportError("the model has no attention left, so nothing tells one position from another; keep one.")
    return Stack(
        module=module,
        model_type=architecture,
        layers=tuple(_paired(blocks)),
        embedding=embedding.detach(),
        norm=inner.norm.weight.detach(),
        head=None if head.data_ptr() == embedding.data_ptr() else head.detach(),
    )


def _paired(blocks: Sequence[Layer]) -> list[Layer]:
    result: list[Layer] = []
    waiting: Attention | None = None
    for block in blocks:
        if block.attention is not None:
            if waiting is not None:
                result.append(Layer(waiting, None))
            waiting = block.attention
        if block.mlp is not None:
            result.append(Layer(waiting, block.mlp))
            waiting = None
    return result if waiting is None else [*result, Layer(waiting, None)]


def _layer(layer: nn.Module, index: int, architecture: str, config: Any) -> Layer:
    tensors = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    companions = COMPANIONS[architecture]
    attention, mlp = None, None
    shape = attention_shape(layer.self_attn)
    if shape is not None:
        pieces = _norms(tensors, companions["attention"])
        pieces |= _named(tensors, "self_attn.", {"o_proj": "o", "q_norm": "q_norm", "k_norm": "k_norm"})
        pieces |= _queries(tensors, shape)
        attention = Attention(shape, pieces, _slides(config, index), index)
    if "mlp.down_proj.weight" in tensors:
        width = tensors["mlp.down_proj.weight"].shape[1]
        pieces = _norms(tensors, companions["mlp"]) | _named(tensors, "mlp.", {"down_proj": "down"})
        mlp = MLP(width, pieces | _gates(tensors, width), index)
    return Layer(attention, mlp)


def _norms(tensors: Mapping[str, Tensor], companions: Sequence[str]) -> dict[str, Piece]:
    roles = zip(("norm", "post_norm"), companions, strict=True) if len(companions) == 2 else [("norm", companions[0])]
    return {role: whole(tensors[f"{name}.weight"]) for role, name in roles if f"{name}.weight" in tensors}


def _named(tensors: Mapping[str, Tensor], root: str, roles: Mapping[str, str]) -> dict[str, Piece]:
    found = {}
    for name, role in roles.items():
        for suffix, ending in (("weight", ""), ("bias", "_bias")):
            if f"{root}{name}.{suffix}" in tensors:
                found[role + ending] = whole(tensors[f"{root}{name}.{suffix}"])
    return found


def _queries(tensors: Mapping[str, Tensor], shape: AttentionShape) -> dict[str, Piece]:
    if "self_attn.qkv_proj.weight" not in tensors:
        return _named(tensors, "self_attn.", {"q_proj": "q", "k_proj": "k", "v_proj": "v"})
    counts = [shape.query_heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2]
    return _split(tensors, "self_attn.qkv_proj", dict(zip("qkv", counts, strict=True)))


def _gates(tensors: Mapping[str, Tensor], width: int) -> dict[str, Piece]:
    if "mlp.gate_up_proj.weight" not in tensors:
        return _named(tensors, "mlp.", {"gate_proj": "gate", "up_proj": "up"})
    return _split(tensors, "mlp.gate_up_proj", {"gate": width, "up": width})


def _split(tensors: Mapping[str, Tensor], name: str, counts: Mapping[str, int]) -> dict[str, Piece]:
    """Take a fused projection apart by rows."""
    found = {}
    for suffix, ending in (("weight", ""), ("bias", "_bias")):
        start = 0
        for role, count in counts.items():
            if f"{name}.{suffix}" in tensors:
                found[role + ending] = rows(tensors[f"{name}.{suffix}"], start, count)
            start += count
    return found


def _slides(config: Any, index: int) -> bool:
    """Whether the attention of a block sees a window only, as transformers' models of these families decide it."""
    if not getattr(config, "sliding_window", None):
        return False
    types = getattr(config, "layer_types", None)
    return bool(types[index] == "sliding_attention") if types else True
