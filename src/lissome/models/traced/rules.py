"""What every operation does to the marks of the tensors that go through it.

Operations that are not listed make what goes into them rigid, with their name as the reason: a coupling that is not
understood costs choices, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lissome.models.traced.atoms import Mark, compressed, varying
from lissome.models.traced.layers import (
    batch_norm,
    convolution,
    embedded,
    group_norm,
    layer_norm,
    product,
    weight_norm,
)
from lissome.models.traced.operation import Marks, Operation, Rule, gathered_in, raised

if TYPE_CHECKING:
    from lissome.models.traced.recorder import Recorder


_ALIKE = {
    "hardswish", "_prelu_kernel", "hardsigmoid", "clone", "alias", "detach", "_to_copy", "contiguous", "dropout",
    "lift_fresh", "rrelu_with_noise", "softplus", "copy", "log_sigmoid_forward", "where", "masked_fill",
}  # fmt: skip
"""Operations that treat every element alike, beside those that torch tags so."""

_MOVES = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice",
    "select", "split", "split_with_sizes", "unbind", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "movedim", "numpy_T", "flatten",
}  # fmt: skip
"""Operations that move elements without changing them: they are done to the marks as well."""

_SPATIAL = {
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "reflection_pad2d", "replication_pad2d", "max_pool1d", "max_pool2d", "avg_pool1d", "adaptive_avg_pool1d",
    "upsample_nearest1d", "upsample_linear1d", "reflection_pad1d", "replication_pad1d", "max_pool3d_with_indices",
    "avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest3d", "upsample_trilinear3d", "constant_pad_nd",
    "lp_pool2d", "_upsample_nearest_exact2d",
}  # fmt: skip
"""Operations that change sizes behind the channels alone."""

_REDUCES = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm",
    "prod", "any", "all", "logsumexp",
}  # fmt: skip
_SOFTMAXES = {"_softmax", "_safe_softmax", "_log_softmax", "cumsum", "sort", "topk"}


def follow(recorder: Recorder, op: Operation) -> list[Marks]:
    """Return the marks of what an operation gives; `recorder` knows those of what it takes."""
    if op.pointwise or op.name in _ALIKE:
        return pointwise(recorder, op)
    return _RULES.get(op.name, unknown)(recorder, op)


def unknown(recorder: Recorder, op: Operation) -> list[Marks]:
    """Make everything rigid that goes into an operation."""
    for value in op.taken:
        for mark in recorder.marks(value):
            recorder.seen.atoms.freeze(mark, f"{op.name} in {recorder.place()}")
    return [()] * len(op.given)


def pointwise(recorder: Recorder, op: Operation) -> list[Marks]:
    """Elements at equal places go together; a channel that meets plain numbers is rigid."""
    taken = op.taken
    reason = f"{op.name} with what no layer makes in {recorder.place()}"
    atoms, rank = recorder.seen.atoms, max(value.ndim for value in taken)
    every = [[raised(mark, rank) for mark in recorder.marks(value)] for value in taken]
    for index, marks in enumerate(every):
        for mark in marks:
            for other, value in enumerate(taken):
                covered = frozenset[int]().union(*(varying(each) for each in every[other]))
                if other != index and any(
                    value.ndim >= -dim and value.shape[dim] > 1 and dim not in covered for dim in varying(mark)
                ):
                    atoms.freeze(mark, reason)
    merged = atoms.merged([mark for marks in every for mark in marks], reason)
    return [merged] * len(op.given)


def moved(recorder: Recorder, op: Operation) -> list[Marks]:
    """Do the same to the marks."""
    value: Tensor = op.args[0]
    results: list[list[Mark]] = [[] for _ in op.given]
    for mark in recorder.marks(value):
        full = mark.expand(value.shape)
        _couple_pieces(recorder, op, mark)
        views = op.name in {"view", "_unsafe_view"}  # which want another layout in memory
        made = full.reshape(op.args[1]) if views else op.call(full, *op.args[1:], **op.kwargs)
        for found, each in zip(results, made if isinstance(made, list | tuple) else [made], strict=True):
            small = compressed(each)
            if small.numel() > 1:
                found.append(small)
    return [tuple(found) for found in results]


def _couple_pieces(recorder: Recorder, op: Operation, mark: Mark) -> None:
    """Equal pieces of a channel dimension are cut alike, because code finds them by dividing the channels."""
    if op.name not in {"slice", "split", "split_with_sizes"}:
        return
    at = 1 if op.name == "slice" else 2
    dim = op.args[at] if len(op.args) > at else 0
    size, piece = mark.shape[dim], op.given[0].shape[dim]
    start = (op.args[2] or 0) if op.name == "slice" and len(op.args) > 2 else 0
    if 1 < size != piece and piece and size % piece == 0 and start % piece == 0:
        parts = mark.split(piece, dim)
        for other in parts[1:]:
            recorder.seen.atoms.join(parts[0], other, f"{op.name} in {recorder.place()}")


def joined(recorder: Recorder, op: Operation) -> list[Marks]:
    """Concatenate: along the channels the marks follow each other; along another dimension they go together."""
    values: list[Tensor] = list(op.args[0])
    atoms, reason = recorder.seen.atoms, f"cat in {recorder.place()}"
    dim = int(op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % op.given[0].ndim
    here = dim - op.given[0].ndim
    values = [value for value in values if value.ndim == op.given[0].ndim]
    every = [recorder.marks(value) for value in values]
    if not any(here in varying(mark) for marks in every for mark in marks):
        return [_side_by_side(recorder, every, reason)]
    pieces = []
    for value, marks in zip(values, every, strict=True):
        fitting = [mark for mark in marks if varying(mark) == {here}]
        for mark in marks:
            if varying(mark) != {here}:
                atoms.freeze(mark, reason)
        shape = [1] * value.ndim
        shape[dim] = value.shape[dim]
        pieces.append(fitting[0] if fitting else torch.zeros(shape, dtype=torch.long))
    return [(torch.cat(pieces, dim),)]


def stacked(recorder: Recorder, op: Operation) -> list[Marks]:
    """Put side by side along a new dimension, of which each piece has its own marks as far as they are alike."""
    rank = op.given[0].ndim
    dim = int(op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % rank
    every = [tuple(raised(mark, rank - 1).unsqueeze(dim) for mark in recorder.marks(value)) for value in op.args[0]]
    if all(len(marks) == 1 and marks[0].shape == every[0][0].shape for marks in every):
        return [(torch.cat([marks[0] for marks in every], dim),)]
    return [_side_by_side(recorder, every, f"stack in {recorder.place()}")]


def _side_by_side(recorder: Recorder, every: Sequence[Marks], reason: str) -> Marks:
    """Join the marks of tensors that lie beside each other; what varies in some of them alone is rigid."""
    atoms = recorder.seen.atoms
    covers = [frozenset[int]().union(*map(varying, marks)) for marks in every]
    for marks in every:
        for mark in marks:
            if not all(varying(mark) <= cover for cover in covers):
                atoms.freeze(mark, reason)
    return atoms.merged([mark for marks in every for mark in marks], reason)


def spatial(recorder: Recorder, op: Operation) -> list[Marks]:
    """Channels pass; what lies behind them changes its size."""
    value: Tensor = op.args[0]
    changed = {
        dim - value.ndim
        for dim, (before, after) in enumerate(zip(value.shape, op.given[0].shape, strict=True))
        if before != after or dim > 1
    }
    passing = []
    for mark in recorder.marks(value):
        if varying(mark) & changed:
            recorder.seen.atoms.freeze(mark, f"{op.name} in {recorder.place()}")
        else:
            passing.append(mark)
    return [tuple(passing)] * len(op.given)


def reduced(recorder: Recorder, op: Operation) -> list[Marks]:
    """Channels that are summed over are rigid; what is summed over inside of one goes together, the rest passes."""
    value: Tensor = op.args[0]
    named = [*op.args[1:], *op.kwargs.values()]
    lists = [each for each in named if isinstance(each, list | tuple) and all(isinstance(one, int) for one in each)]
    single = [each for each in named if isinstance(each, int) and not isinstance(each, bool)]
    dims = lists[0] if lists else single[:1] if op.given[0].ndim or single else []
    gone = {int(dim) % value.ndim - value.ndim for dim in dims} or {dim - value.ndim for dim in range(value.ndim)}
    passing = []
    for mark in recorder.marks(value):
        left = gathered_in(recorder, op, mark, gone)
        if left is not None and op.given[0].ndim == value.ndim:
            passing.append(left)
        elif left is not None:
            passing.append(left.view([size for dim, size in enumerate(left.shape) if dim - left.ndim not in gone]))
    return [tuple(passing)] * len(op.given)


def normalised(recorder: Recorder, op: Operation) -> list[Marks]:
    """Softmax and its like: channels that they run over are rigid; inside of a channel they go together."""
    value, dim = op.args[0], int(op.args[1]) if len(op.args) > 1 and isinstance(op.args[1], int) else -1
    here = dim % value.ndim - value.ndim
    same, passing = op.given[0].shape == value.shape, []
    for mark in recorder.marks(value):
        left = gathered_in(recorder, op, mark, {here})
        if left is not None:
            passing.append(mark if same else left)
    return [tuple(passing)] * len(op.given)


def gated(recorder: Recorder, op: Operation) -> list[Marks]:
    """GLU: a channel goes with the one that gates it."""
    value, dim = op.args[0], int(op.args[1]) if len(op.args) > 1 else -1
    here, passing = dim % value.ndim - value.ndim, []
    for mark in recorder.marks(value):
        if here in varying(mark):
            first, second = mark.chunk(2, here)
            recorder.seen.atoms.join(first, second, f"glu in {recorder.place()}")
            passing.append(first)
        else:
            passing.append(mark)
    return [tuple(passing)]


def picked(recorder: Recorder, op: Operation) -> list[Marks]:
    """Entries picked along one dimension by a fixed table: along it channels are rigid, the rest passes."""
    value, tables = op.args[0], op.args[1] if op.name == "index" else [*[None] * op.args[1], op.args[2]]
    at = [dim for dim, table in enumerate(tables) if table is not None]
    if len(at) != 1 or tables[at[0]].dtype in (torch.bool, torch.uint8):
        return unknown(recorder, op)
    for mark in recorder.marks(tables[at[0]]):
        recorder.seen.atoms.freeze(mark, f"{op.name} by them in {recorder.place()}")
    passing, rank = [], tables[at[0]].ndim
    for mark in recorder.marks(value):
        full = raised(mark, value.ndim)
        if at[0] - value.ndim in varying(full):
            recorder.seen.atoms.freeze(mark, f"{op.name} of them in {recorder.place()}")
        else:
            passing.append(full.view(*full.shape[: at[0]], *[1] * rank, *full.shape[at[0] + 1 :]))
    return [tuple(passing)]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, moved),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_REDUCES, reduced),
    **dict.fromkeys(_SOFTMAXES, normalised),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), product),
    "cat": joined,
    "stack": stacked,
    "convolution": convolution,
    "native_batch_norm": batch_norm,
    "native_group_norm": group_norm,
    "native_layer_norm": layer_norm,
    "embedding": embedded,
    "glu": gated,
    "index": picked,
    "index_select": picked,
    "_weight_norm_interface": weight_norm,
}
