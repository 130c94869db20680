"""What every operation does to the marks of the tensors that go through it.

Operations that are not listed make what goes into them rigid, with their name as the reason: a coupling that is not
understood costs choices, never correctness.
"""

# B examples, C channels, K what a product sums over, N what it makes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lissome.models.traced.atoms import Mark, compressed, varying

if TYPE_CHECKING:
    from lissome.models.traced.recorder import Recorder

Marks = tuple[Mark, ...]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation that ran.

    Attributes:
        name: What it is, without its overload.
        call: Does it again.
        args: What it takes.
        kwargs: What it takes by name.
        given: The tensors that it gave.
        pointwise: Whether torch says that it treats every element alike.
    """

    name: str
    call: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    given: list[Tensor]
    pointwise: bool

    @property
    def taken(self) -> list[Tensor]:
        """All tensors that it takes."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]


Rule = Callable[["Recorder", Operation], list[Marks]]


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
    every = [[_raised(mark, rank) for mark in recorder.marks(value)] for value in taken]
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


def _raised(mark: Mark, rank: int) -> Mark:
    """Return a mark with as many dimensions as wanted, new ones first."""
    return mark.view(*[1] * (rank - mark.ndim), *mark.shape)


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
        covers = [frozenset[int]().union(*map(varying, marks)) for marks in every]
        for marks in every:
            for mark in marks:
                if not all(varying(mark) <= cover for cover in covers):
                    atoms.freeze(mark, reason)
        return [atoms.merged([mark for marks in every for mark in marks], reason)]
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
    """What is summed over is rigid; the rest passes."""
    value: Tensor = op.args[0]
    named = [*op.args[1:], *op.kwargs.values()]
    lists = [each for each in named if isinstance(each, list | tuple) and all(isinstance(one, int) for one in each)]
    single = [each for each in named if isinstance(each, int) and not isinstance(each, bool)]
    dims = lists[0] if lists else single[:1] if op.given[0].ndim or single else []
    gone = {int(dim) % value.ndim - value.ndim for dim in dims} or {dim - value.ndim for dim in range(value.ndim)}
    passing = []
    for mark in recorder.marks(value):
        if varying(mark) & gone:
            recorder.seen.atoms.freeze(mark, f"{op.name} over them in {recorder.place()}")
        elif op.given[0].ndim == value.ndim:
            passing.append(mark)
        else:
            passing.append(mark.view([size for dim, size in enumerate(mark.shape) if dim - mark.ndim not in gone]))
    return [tuple(passing)] * len(op.given)


def normalised(recorder: Recorder, op: Operation) -> list[Marks]:
    """Softmax and its like: what they run over is rigid."""
    value, dim = op.args[0], int(op.args[1]) if len(op.args) > 1 and isinstance(op.args[1], int) else -1
    here = dim % value.ndim - value.ndim
    passing = []
    for mark in recorder.marks(value):
        if here in varying(mark):
            recorder.seen.atoms.freeze(mark, f"{op.name} over them in {recorder.place()}")
        else:
            passing.append(mark)
    return [tuple(passing)] * len(op.given)


def _per_channel(recorder: Recorder, value: Tensor, others: Sequence[Any], reason: str) -> Marks:
    """Join vectors of one number per channel (dimension 1) with the channels."""
    vectors = [mark.view(1, -1, *[1] * (value.ndim - 2)) for each in others for mark in recorder.marks(each)]
    marks = recorder.marks(value)
    if not marks and value.shape[1] > 1:
        for vector in vectors:
            recorder.seen.atoms.freeze(vector, reason)
    return recorder.seen.atoms.merged([*marks, *vectors], reason)


def batch_norm(recorder: Recorder, op: Operation) -> list[Marks]:
    """Weight, bias and running statistics go with the channels."""
    marks = _per_channel(recorder, op.args[0], op.args[1:5], f"the input of {recorder.place()}")
    return [marks, *[()] * (len(op.given) - 1)]


def group_norm(recorder: Recorder, op: Operation) -> list[Marks]:
    """The channels of a group, over which statistics are taken, go together."""
    channels, groups = int(op.args[4]), int(op.args[6])
    marks = _per_channel(recorder, op.args[0], op.args[1:3], f"the input of {recorder.place()}")
    for mark in marks:
        if groups == 1 or mark.shape[1] != channels:
            recorder.seen.atoms.freeze(mark, f"one group of group_norm in {recorder.place()}")
        else:
            recorder.seen.atoms.collapse(mark.view(groups, -1), 1, f"group_norm in {recorder.place()}")
    return [marks, *[()] * (len(op.given) - 1)]


def layer_norm(recorder: Recorder, op: Operation) -> list[Marks]:
    """What statistics are taken over is rigid."""
    value, rank = op.args[0], len(op.args[1])
    over = {-dim for dim in range(1, rank + 1)}
    passing = []
    for mark in (*recorder.marks(value), *(mark for each in op.args[2:4] for mark in recorder.marks(each))):
        if varying(mark) & over:
            recorder.seen.atoms.freeze(mark, f"layer_norm over them in {recorder.place()}")
        else:
            passing.append(mark)
    return [tuple(passing), *[()] * (len(op.given) - 1)]


def embedded(recorder: Recorder, op: Operation) -> list[Marks]:
    """A table's rows are rigid, its columns are channels."""
    weight, passing = op.args[0], []
    for mark in recorder.marks(weight):
        if -2 in varying(mark):
            recorder.seen.atoms.freeze(mark, f"the rows of {recorder.place()}")
        else:
            _note(recorder, mark, makes=True)
            passing.append(mark.view(*[1] * (op.given[0].ndim - 1), -1))
    return [tuple(passing)]


def _note(recorder: Recorder, mark: Mark, *, makes: bool) -> None:
    """Write down that the sides of a mark make, or read, channels."""
    for side in recorder.seen.atoms.sides_of(mark):
        (recorder.seen.makers if makes else recorder.seen.readers).add((side.tensor, side.dim))


def product(recorder: Recorder, op: Operation) -> list[Marks]:
    """Matrix products: what is summed over goes together on both sides, the rest passes."""
    added = op.args[0] if op.name in {"addmm", "baddbmm"} else None
    one, other = (op.args[1], op.args[2]) if added is not None else (op.args[0], op.args[1])
    atoms, place = recorder.seen.atoms, recorder.place()
    first, first_out = _split(recorder, one, -1)
    second, second_out = _split(recorder, other, -2)
    for value, marks, outs in ((one, first, first_out), (other, second, second_out)):
        if recorder.source(value) is not None:
            for mark in outs:
                _note(recorder, mark, makes=True)
            for mark in marks:
                _note(recorder, mark, makes=False)
    left = [mark.transpose(-1, -2) for mark in first]
    if left and second:
        for mark, counterpart in zip(left, second, strict=False):
            atoms.join(mark, counterpart, f"{op.name} in {place}")
    else:
        for mark in (*left, *second):
            atoms.freeze(mark, f"a product with what no layer makes in {place}")
    _count(recorder, one, other, op.given[0])
    outs = [*first_out, *second_out]
    if added is not None:
        outs += [_raised(mark, op.given[0].ndim) for mark in recorder.marks(added)]
    return [atoms.merged(outs, f"{op.name} in {place}")]


def _split(recorder: Recorder, value: Tensor, summed: int) -> tuple[list[Mark], list[Mark]]:
    """Marks along what is summed over, and those of the rest; a mark along both goes together as a whole."""
    along, rest = [], []
    for mark in recorder.marks(value):
        if varying(mark) == {summed}:
            along.append(mark)
        elif summed in varying(mark):
            rest.append(recorder.seen.atoms.collapse(mark, mark.ndim + summed, f"a product in {recorder.place()}"))
        else:
            rest.append(mark)
    return along, rest


def _count(recorder: Recorder, one: Tensor, other: Tensor, made: Tensor) -> None:
    """Note the multiply-accumulates: of a weight, or between values."""
    macs = made.numel() * one.shape[-1]
    name = recorder.source(other) or recorder.source(one)
    if name is not None:
        recorder.seen.products[name] = recorder.seen.products.get(name, 0) + macs
    else:
        marks = [mark for value in (one, other) for mark in recorder.marks(value)]
        sides = [side for mark in marks for side in recorder.seen.atoms.sides_of(mark)]
        recorder.seen.mixings.append((macs, sides, recorder.where()))


def convolution(recorder: Recorder, op: Operation) -> list[Marks]:
    """A dense one reads and makes channels; in one with groups, inputs and outputs of a group go together."""
    value, weight, bias, transposed, groups = op.args[0], op.args[1], op.args[2], bool(op.args[6]), int(op.args[8])
    atoms, place, rank = recorder.seen.atoms, recorder.place(), op.given[0].ndim
    rows, columns = (1, 0) if transposed else (0, 1)
    sides = {dim: _side(recorder, weight, dim) for dim in (0, 1)}
    inputs = None
    for mark in recorder.marks(value):
        if varying(mark) == {1 - value.ndim}:
            inputs = mark.flatten()
        else:
            atoms.freeze(mark, f"convolution in {place}")
    name = recorder.source(weight)
    if name is not None:
        swept = value if transposed else op.given[0]
        macs = weight.numel() * (swept.numel() // swept.shape[0] // swept.shape[1])
        recorder.seen.products[name] = recorder.seen.products.get(name, 0) + macs
    if groups > 1:
        made = _grouped(recorder, inputs, sides, (value.shape[1], op.given[0].shape[1], groups), transposed)
    else:
        made, read = sides[rows], sides[columns]
        if read is not None:
            _note(recorder, read, makes=False)
            met = torch.zeros(1, dtype=torch.long) if inputs is None else inputs
            atoms.join(read, met, f"the input of {place}")
        elif inputs is not None:
            atoms.freeze(inputs, f"the weight of {place}")
        if made is not None:
            _note(recorder, made, makes=True)
    outs = [] if made is None else [made]
    outs += [mark.flatten() for mark in recorder.marks(bias)]
    shaped = [mark.view(1, -1, *[1] * (rank - 2)) for mark in outs]
    return [atoms.merged(shaped, f"convolution in {place}"), *[()] * (len(op.given) - 1)]


def _side(recorder: Recorder, weight: Tensor, dim: int) -> Mark | None:
    """Mark of one dimension of a weight, flat; marks along others are of a kernel's size and do not matter."""
    for mark in recorder.marks(weight):
        if varying(mark) == {dim - weight.ndim}:
            return mark.flatten()
    return None


def _grouped(
    recorder: Recorder,
    inputs: Mark | None,
    sides: dict[int, Mark | None],
    sizes: tuple[int, int, int],
    transposed: bool,
) -> Mark | None:
    """Couple the inputs and outputs of each group; return the mark of the outputs."""
    taken, made, groups = sizes
    atoms, reason = recorder.seen.atoms, f"the groups of {recorder.place()}"
    weight = sides[0]  # all outputs, or, transposed, all inputs: the other dimension is inside a group
    ends = [(inputs, taken), (weight, taken if transposed else made)]
    tables = [end.view(groups, -1) for end, size in ends if end is not None and end.numel() == size]
    if inputs is None:
        for table in tables:
            atoms.freeze(table, f"the input of {recorder.place()}")
    firsts = [atoms.collapse(table, 1, reason) for table in tables]
    for first in firsts[1:]:
        atoms.join(firsts[0], first, reason)
    if not transposed:
        return weight
    return None if weight is None else firsts[-1].expand(groups, made // groups).reshape(-1)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, moved),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_REDUCES, reduced),
    **dict.fromkeys(_SOFTMAXES, normalised),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), product),
    "cat": joined,
    "convolution": convolution,
    "native_batch_norm": batch_norm,
    "native_group_norm": group_norm,
    "native_layer_norm": layer_norm,
    "embedding": embedded,
}
