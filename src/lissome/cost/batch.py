"""Adds up the cost of many Subnets at once, from a table of what each choice of each branch contributes.

What a branch costs depends on its own sizes alone, and what a block takes beside its branches on which of them it
keeps. Each contribution is worked out once, for the first Subnet that needs it; a batch is then one look-up per
branch for all of its Subnets together.
"""

# n Subnets, A axes, W numbers of a cost

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lissome.cost.blocks import Part, Vector, branch_shapes, sizes_of
from lissome.models.anatomy import Branch
from lissome.models.codes import Codes, Rows
from lissome.models.model import Model
from lissome.models.space import Space

PartCost = Callable[[Part], Vector]
"""Cost of a branch that is kept."""

BesideCost = Callable[[Sequence[Branch]], Vector]
"""What a block costs beside the branches that it keeps; a block without branches costs nothing."""

_PIECE = 4096  # Subnets at a time: their sums stay in the processor's cache


class _Slot:
    """One thing that costs: the columns that decide about it, and what each combination of their choices costs.

    Args:
        columns: Numbers of the columns.
        sizes: How many choices each of them has.
        cost: Cost of one combination, given as places of choices.
        known: Costs found so far, shared by slots that cost the same: sorted keys int64[k], and float64[k, W].
    """

    def __init__(self, columns: Rows, sizes: Rows, cost: Callable[[Rows], Vector], known: _Known) -> None:
        self._columns, self._sizes, self._cost, self._known = columns, sizes, cost, known
        # A number of as many digits as there are columns, each digit to its own base.
        self._strides = np.concatenate([np.cumprod(sizes[::-1])[::-1][1:], np.ones(min(1, len(sizes)), dtype=np.int64)])

    def costs(self, rows: Rows) -> NDArray[np.float64]:
        """Return float64[n, W]."""
        keys = rows[:, self._columns] @ self._strides
        places = self._known.places(keys)
        if places is None:
            for key in self._known.missing(keys):
                self._known.add(key, self._cost(key // self._strides % self._sizes))
            self._known.sort()
            places = self._known.places(keys)
        assert places is not None
        return self._known.costs[places]


class _Known:
    """Costs by key."""

    def __init__(self, width: int) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self.costs = np.empty((0, width))
        self._new: dict[int, Vector] = {}

    def places(self, keys: Rows) -> Rows | None:
        """Return where each key stands; None when one is not known."""
        if not len(self._keys):
            return None
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return places if bool((self._keys[places] == keys).all()) else None

    def missing(self, keys: Rows) -> Rows:
        """Return the keys that are not known, each once."""
        return np.setdiff1d(keys, self._keys)

    def add(self, key: np.int64, cost: Vector) -> None:
        """Note a cost; `sort` makes it known."""
        self._new[int(key)] = cost

    def sort(self) -> None:
        """Put what was noted in its place."""
        keys = np.concatenate([self._keys, np.array(list(self._new), dtype=np.int64)])
        costs = np.concatenate([self.costs, np.array(list(self._new.values()))])
        order = np.argsort(keys)
        self._keys, self.costs = keys[order], costs[order]
        self._new.clear()


class BatchSum:
    """Sums costs over the branches of many Subnets of one Space.

    Args:
        model: The model, not masked now.
        space: The Space; axes of the model that it lacks are full, axes of other things are not looked at.
        part: Cost of a branch.
        beside: Cost of a block beside its branches.
        width: Numbers of a cost W.
    """

    def __init__(self, model: Model, space: Space, part: PartCost, beside: BesideCost, width: int) -> None:
        self.space, self._codes, self._width = space, Codes(space), width
        self._part, self._beside = part, beside
        self._slots: list[_Slot] = []
        known: dict[object, _Known] = {}
        shapes = branch_shapes(model)
        for branch in model.anatomy.branches:
            names = [branch.name, *(branch.axis(dim.name) for dim in branch.dims)]
            choices = tuple((name.removeprefix(branch.name), self._choices(name)) for name in names)
            table = known.setdefault((shapes[branch.name], choices), _Known(width))
            self._add(names, partial(self._of_branch, branch), table)
        for _, group in groupby(model.anatomy.branches, key=lambda branch: branch.block):
            branches = tuple(group)
            kinds = tuple((branch.kind, self._choices(branch.name)) for branch in branches)
            table = known.setdefault(("block", kinds), _Known(width))
            self._add([branch.name for branch in branches], partial(self._of_block, branches), table)

    def totals(self, rows: Rows) -> NDArray[np.float64]:
        """Return the sums of Subnets int64[n, A] as float64[n, W]."""
        totals = np.zeros((len(rows), self._width))
        for start in range(0, len(rows), _PIECE):
            piece = slice(start, start + _PIECE)
            for slot in self._slots:
                totals[piece] += slot.costs(rows[piece])
        return totals

    def _choices(self, name: str) -> tuple[int, ...] | None:
        axis = self.space.by_name.get(name)
        return axis.choices if axis else None

    def _add(self, names: Sequence[str], cost: Callable[[Mapping[str, int]], Vector], known: _Known) -> None:
        axes = [self.space.by_name[name] for name in names if name in self.space.by_name]
        columns = np.array([self._codes.column[axis.name] for axis in axes], dtype=np.int64)

        def of(places: Rows) -> Vector:
            return cost({axis.name: axis.choices[place] for axis, place in zip(axes, places, strict=True)})

        self._slots.append(_Slot(columns, self._codes.sizes[columns], of, known))

    def _of_branch(self, branch: Branch, values: Mapping[str, int]) -> Vector:
        kept = values.get(branch.name, 1)
        return self._part(Part(branch, sizes_of(branch, values))) if kept else (0.0,) * self._width

    def _of_block(self, branches: Sequence[Branch], values: Mapping[str, int]) -> Vector:
        kept = [branch for branch in branches if values.get(branch.name, 1)]
        return self._beside(kept) if kept else (0.0,) * self._width
