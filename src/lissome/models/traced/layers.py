"""What layers do to the marks of what goes through them: norms, tables, matrix products and convolutions."""

# B examples, C channels, K what a product sums over, N what it makes

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lissome.models.traced.atoms import Mark, Mixed, varying
from lissome.models.traced.operation import Marks, Operation, gathered_in, raised

if TYPE_CHECKING:
    from lissome.models.traced.recorder import Recorder


def _per_channel(recorder: Recorder, value: Tensor, others: Sequence[Any], reason: str) -> Marks:
    """Join vectors of one number per channel (dimension 1) with the channels."""
    vectors = [mark.view(1, -1, *[1] * (value.ndim - 2)) for each in others for mark in recorder.marks(each)]
    marks = recorder.marks(value)
    if not marks and value.shape[1] > 1:
        for vector in vectors:
            recorder.seen.atoms.freeze(vector, reason)
    return recorder.seen.atoms.merged([*marks, *vectors], reason)


def batch_norm(recorder: Recorder, op: Operation) -> list[Marks]:
    """Weight, bias and running statistics go with the channels; what statistics are taken over now is rigid."""
    own = not op.args[5]  # the statistics that were kept
    for mark in recorder.marks(op.args[0]):
        if not own and varying(mark) != {1 - op.args[0].ndim}:
            recorder.seen.atoms.freeze(mark, f"batch_norm over them in {recorder.place()}")
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
    """Channels that statistics are taken over are rigid; inside of a channel, as of a head, they go together."""
    value, rank = op.args[0], len(op.args[1])
    over = {-dim for dim in range(1, rank + 1)}
    marks = [*recorder.marks(value), *(mark for each in op.args[2:4] for mark in recorder.marks(each))]
    free = [gathered_in(recorder, op, mark, over) is not None for mark in marks]
    passing = [mark for mark, is_free in zip(marks, free, strict=True) if is_free]
    # these pass as well, so that what they meet says why it is rigid
    rigid = [raised(mark, value.ndim) for mark, is_free in zip(marks, free, strict=True) if not is_free]
    merged = recorder.seen.atoms.merged(rigid, f"the input of {recorder.place()}")
    return [(*passing, *merged), *[()] * (len(op.given) - 1)]


def weight_norm(recorder: Recorder, op: Operation) -> list[Marks]:
    """Rows go with their lengths; what lengths are taken over is rigid."""
    value, lengths, dim = op.args[0], op.args[1], int(op.args[2]) if len(op.args) > 2 else 0
    passing, here = [], dim % value.ndim - value.ndim
    for mark in (*recorder.marks(value), *recorder.marks(lengths)):
        if varying(mark) == {here}:
            passing.append(mark)
        else:
            recorder.seen.atoms.freeze(mark, f"weight_norm over them in {recorder.place()}")
    return [recorder.seen.atoms.merged(passing, f"weight_norm in {recorder.place()}"), ()]


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
    made = atoms.merged([*first_out, *second_out], f"{op.name} in {place}")
    name = recorder.source(other)
    weight, rest = (first_out, second_out) if name is None else (second_out, first_out)
    own = frozenset[int]().union(*map(varying, weight))
    again = any(varying(mark) - own for mark in rest)  # channels that a weight is applied to, one after the other
    macs = op.given[0].numel() * one.shape[-1]
    _count(recorder, macs, name or recorder.source(one), [*made, *(left or second)[:1]], again=again)
    more = [] if added is None else [raised(mark, op.given[0].ndim) for mark in recorder.marks(added)]
    return [atoms.merged([*made, *more], f"{op.name} in {place}")]


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


def _count(recorder: Recorder, macs: int, name: str | None, marks: Sequence[Mark], *, again: bool = False) -> None:
    """Note the multiply-accumulates: of a weight, or between values, or of a weight that is applied to every channel.

    Args:
        recorder: The recorder.
        macs: How many.
        name: Of the weight.
        marks: Of each dimension that has channels.
        again: Whether the weight is applied to each of some channels.
    """
    if name is not None and not again:
        recorder.seen.products[name] = recorder.seen.products.get(name, 0) + macs
    else:
        over = tuple(recorder.seen.atoms.shares(mark) for mark in marks)
        recorder.seen.mixings.append(Mixed(macs, over, name or recorder.where()))


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
    swept = value if transposed else op.given[0]
    macs, known = (
        weight.numel() * (swept.numel() // swept.shape[1]),
        [side for side in sides.values() if side is not None],
    )
    _count(recorder, macs, recorder.source(weight), known)
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
