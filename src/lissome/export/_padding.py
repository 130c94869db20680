"""Zeros for formats that cannot say a model's true sizes; what the model computes stays the same.

A padded MLP channel has a zero column in the output projection, a padded query head likewise, and a padded branch is
zero altogether: each adds exactly 0 to the residual stream (a norm after the branch maps 0 to 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lissome.core.errors import ExportError
from lissome.export._report import Padding
from lissome.export._stack import MLP, Attention, Layer, Piece, Stack
from lissome.models.families.decoder import AttentionShape

BRIDGE_WIDTH = 32
"""Channels of an MLP of zeros in a removed one's place: one quantisation block, the least that packs well."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that all blocks shall have: KV groups, query heads per group, MLP width."""

    groups: int
    queries: int
    width: int


def uniform_sizes(stack: Stack, *, align: int = 1, square: bool = False) -> Sizes:
    """Return the smallest sizes that hold every block.

    Args:
        stack: The model.
        align: The MLP width is rounded up to a multiple of it.
        square: Query heads times head size must equal the residual width, as some architectures assume.

    Raises:
        ExportError: When no number of heads fits.
    """
    shapes = [attention.shape for attention in stack.attentions]
    groups = max(shape.kv_heads for shape in shapes)
    queries = max(shape.query_heads // shape.kv_heads for shape in shapes)
    width = max((mlp.width for mlp in stack.mlps), default=BRIDGE_WIDTH)
    if square:
        heads = stack.hidden // shapes[0].head_dim
        fits = [(g, heads // g) for g in range(groups, heads + 1) if heads % g == 0 and heads // g >= queries]
        if not fits or heads * shapes[0].head_dim != stack.hidden:
            raise ExportError(f"no {heads} query heads hold {groups} KV groups of {queries}; keep fewer query heads.")
        groups, queries = fits[0]
    return Sizes(groups, queries, -(-width // align) * align)


def padded(stack: Stack, sizes: Sizes) -> Stack:
    """Return the model with every block grown to `sizes`, both branches present."""
    layers = tuple(
        Layer(
            _zero_attention(stack, sizes.groups, sizes.queries, index)
            if layer.attention is None
            else pad_attention(layer.attention, sizes.groups, sizes.queries),
            _zero_mlp(stack, sizes.width, index) if layer.mlp is None else pad_mlp(layer.mlp, sizes.width),
        )
        for index, layer in enumerate(stack.layers)
    )
    return replace(stack, layers=layers)


def bridged(stack: Stack, *, attention: str, align: int = 1) -> Stack:
    """Return the model with the smallest stand-ins for absent branches, and widths rounded up to `align`.

    Args:
        stack: The model.
        attention: Where an attention must stand: ``"first"`` (in the first block only) or ``"all"``.
        align: Every MLP width is rounded up to a multiple of it.
    """
    layers = []
    for index, layer in enumerate(stack.layers):
        head, mlp = layer.attention, layer.mlp
        if head is None and (attention == "all" or index == 0):
            head = _zero_attention(stack, 1, 1, index)
        if mlp is None:
            mlp = _zero_mlp(stack, BRIDGE_WIDTH, index)
        layers.append(Layer(head, pad_mlp(mlp, -(-mlp.width // align) * align)))
    return replace(stack, layers=tuple(layers))


def paddings_of(stack: Stack, added: Mapping[str, float]) -> tuple[Padding, ...]:
    """Say what was padded.

    Args:
        stack: The written model.
        added: Bytes of padding by branch, e.g. ``"block 3 mlp"``.
    """
    return tuple(
        Padding(part=name, change=branch.padding, bytes=round(added[name]))
        for index, layer in enumerate(stack.layers)
        for branch, name in ((layer.attention, f"block {index} attention"), (layer.mlp, f"block {index} mlp"))
        if branch is not None and branch.padding
    )


def pad_attention(attention: Attention, groups: int, queries: int) -> Attention:
    """Return an attention with more KV groups and more query heads in each group.

    A query head stays with the keys and values it has: new heads are put behind the old ones of each group.
    """
    shape = attention.shape
    g, q, e = shape.kv_heads, shape.query_heads // shape.kv_heads, shape.head_dim
    if (g, q) == (groups, queries):
        return attention
    grids = {"q": ((g, q, e), (groups, queries, e)), "k": ((g, e), (groups, e)), "v": ((g, e), (groups, e))}
    pieces: dict[str, Piece] = dict(attention.pieces)
    for role, (old, new) in grids.items():
        for name in (role, f"{role}_bias"):
            if name in pieces:
                pieces[name] = _padded(pieces[name], 0, old, new)
    pieces["o"] = _padded(pieces["o"], 1, *grids["q"])
    text = f"{g * q} query and {g} KV heads -> {groups * queries} and {groups}"
    return replace(attention, shape=AttentionShape(groups * queries, groups, e), pieces=pieces, padding=text)


def pad_mlp(mlp: MLP, width: int) -> MLP:
    """Return an MLP with more channels."""
    if mlp.width == width:
        return mlp
    pieces: dict[str, Piece] = dict(mlp.pieces)
    for name in ("gate", "up", "gate_bias", "up_bias"):
        if name in pieces:
            pieces[name] = _padded(pieces[name], 0, (mlp.width,), (width,))
    pieces["down"] = _padded(pieces["down"], 1, (mlp.width,), (width,))
    text = f"absent -> width {width}" if mlp.padding else f"width {mlp.width} -> {width}"
    return replace(mlp, width=width, pieces=pieces, padding=text)


def _padded(piece: Piece, dim: int, old: tuple[int, ...], new: tuple[int, ...]) -> Piece:
    """Grow dimension `dim`, seen as a grid of `old` sizes, to a grid of `new` sizes, with zeros behind."""
    before, after = piece.shape[:dim], piece.shape[dim + 1 :]
    shape = (*before, prod(new), *after)

    def make() -> Tensor:
        source = piece.make().reshape(*before, *old, *after)
        result = source.new_zeros((*before, *new, *after))
        result[tuple(slice(size) for size in source.shape)] = source
        return result.reshape(shape)

    return Piece(shape, make, piece.added + prod(shape) - piece.numel)


def _zero_attention(stack: Stack, groups: int, queries: int, origin: int) -> Attention:
    like = stack.attentions[0]
    e = like.shape.head_dim
    counts = {"q": groups * queries * e, "k": groups * e, "v": groups * e}
    shapes = {
        role: (counts.get(role.removesuffix("_bias"), piece.shape[0]), *piece.shape[1:])
        for role, piece in like.pieces.items()
    }
    shapes["o"] = (stack.hidden, counts["q"])
    text = f"absent -> {groups * queries} query and {groups} KV heads"
    # a window, where the model has one, keeps the cache of an attention that does nothing small
    return Attention(AttentionShape(groups * queries, groups, e), _zeros(stack, shapes), like.sliding, origin, text)


def _zero_mlp(stack: Stack, width: int, origin: int) -> MLP:
    shapes: dict[str, tuple[int, ...]] = {
        "norm": (stack.hidden,),
        "gate": (width, stack.hidden),
        "up": (width, stack.hidden),
        "down": (stack.hidden, width),
    }
    if "post_norm" in stack.attentions[0].pieces:
        shapes["post_norm"] = (stack.hidden,)
    return MLP(width, _zeros(stack, shapes), origin, f"absent -> width {width}")


def _zeros(stack: Stack, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    kind = stack.embedding.dtype

    def piece(shape: tuple[int, ...]) -> Piece:
        return Piece(shape, lambda: torch.zeros(shape, dtype=kind), prod(shape))

    return {role: piece(shape) for role, shape in shapes.items()}
