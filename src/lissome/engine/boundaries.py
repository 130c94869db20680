"""A Space from what units are worth: the sizes of each axis are those that thresholds on one global scale leave.

EFTNAS (LREC-COLING 2024) finds, for each of some costs between two bounds, the threshold whose survivors cost that
much, and takes the numbers of survivors as the choices of each group. So lists differ from layer to layer, and both
bounds are reached.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Counted
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lissome.core.budget import figure
from lissome.core.errors import BudgetUnmetError
from lissome.cost.counted import Counter
from lissome.models.anatomy import Branch, Dim
from lissome.models.model import Model
from lissome.models.space import Axis, Space, Subnet

NEAR = 0.02
"""How near to a wanted cost a found one must be, as a share of it."""

_NOTHING = 0.02  # share of a width below which the whole branch goes instead


_ENOUGH = NEAR / 8  # near enough to stop looking
_SHARES = 100  # shares that are tried for uniform lists


@dataclass(frozen=True)
class Sized:
    """Sizes that survive at one cost.

    Attributes:
        macs: What they cost.
        sizes: Units that stay by axis; 0 where a whole branch goes.
    """

    macs: float
    sizes: Mapping[str, int]


class Boundaries:
    """Sizes of every group at any cost, by what its units are worth.

    Args:
        model: The model, unmasked.
        values: By axis: what each unit is worth on one scale for all, Tensor[lanes, units].
        multiple: Sizes of channels are rounded up to a multiple.
    """

    def __init__(self, model: Model, values: Mapping[str, Tensor], *, multiple: int = 1) -> None:
        self._model, self._counter, self._multiple = model, Counter(model), multiple
        self._homes: dict[str, tuple[Branch, Dim]] = {}
        for branch in model.anatomy.branches:
            for dim in branch.dims:
                if branch.axis(dim.name) in values and not dim.shared:
                    self._homes[branch.axis(dim.name)] = (branch, dim)
        # Lanes are ordered each by itself: place j of a dim holds the j-th best unit of every lane.
        worth = {name: values[name].sort(dim=-1, descending=True).values.amax(0) for name in self._homes}
        names = [name for name, value in worth.items() for _ in range(len(value))]
        flat = torch.cat(list(worth.values())) if worth else torch.empty(0)
        # One unit after the other, so that units of equal worth (never learnt, say) do not come and go together.
        self._order = [names[int(place)] for place in flat.argsort(descending=True, stable=True)]
        self._place: dict[str, int] = {}  # of the best unit of a branch
        for place, name in enumerate(self._order):
            self._place.setdefault(self._homes[name][0].name, place)
        falling = flat.sort(descending=True).values
        self._thresholds = [0, *((falling[1:] < falling[:-1]).nonzero().flatten() + 1).tolist(), len(falling)]

    def range(self) -> tuple[float, float]:
        """Least and most multiply-accumulates that can be reached."""
        return self._kept(()).macs, self._kept(self._order).macs

    def at(self, macs: float, *, within: Sized | None = None) -> Sized:
        """Return the sizes whose cost is nearest to a wanted one, by bisection on the number of units that stay.

        A head can be too coarse a step; then single units after it, or before it, fill the gap.

        Args:
            macs: The wanted cost.
            within: Sizes of a higher cost, beyond which none may go.

        Raises:
            BudgetUnmetError: When it is further away than `NEAR`; names the nearest and the range that can be reached.
        """
        order = self._order if within is None else self._within(within)
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._kept(order[:middle]).macs <= macs else (low, middle)
        tried = [self._filled(order, low, macs), self._emptied(order, high, macs)]
        best = min(tried, key=lambda one: abs(one.macs - macs))
        if abs(best.macs - macs) > NEAR * macs:
            near, least, most = (figure("macs", value) for value in (best.macs, *self.range()))
            raise BudgetUnmetError(
                f"no sizes cost {figure('macs', macs)} to {NEAR:.0%}; nearest is {near}, and reachable is {least} to "
                f"{most}; choose bounds in this range (smallest, largest), fewer targets or a smaller multiple."
            )
        return best

    def nested(self, costs: Sequence[float]) -> list[Sized]:
        """Return the sizes at each of some ascending costs; those of a lower one are nowhere larger.

        Raises:
            BudgetUnmetError: As `at`.
        """
        found: list[Sized] = []
        for macs in reversed(costs):
            found.append(self.at(macs, within=found[-1] if found else None))
        return found[::-1]

    def _within(self, most: Sized) -> list[str]:
        seen: dict[str, int] = {}
        kept = []
        for name in self._order:
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= most.sizes[name]:
                kept.append(name)
        return kept

    def _filled(self, order: Sequence[str], start: int, macs: float) -> Sized:
        """The first units, and of those behind them all that still fit."""
        kept, best = list(order[:start]), self._kept(order[:start])
        for name in order[start:]:
            if abs(best.macs - macs) <= _ENOUGH * macs:
                break
            more = self._kept([*kept, name])
            if more.macs <= macs:
                kept, best = [*kept, name], more
        return best

    def _emptied(self, order: Sequence[str], stop: int, macs: float) -> Sized:
        """The first units, without those of the last that are too many."""
        kept, best = list(order[:stop]), self._kept(order[:stop])
        for place in reversed(range(stop)):
            if abs(best.macs - macs) <= _ENOUGH * macs:
                break
            fewer = self._kept([*kept[:place], *kept[place + 1 :]])
            if fewer.macs >= macs:
                kept, best = [*kept[:place], *kept[place + 1 :]], fewer
        return best

    def threshold(self, macs: float) -> Sized:
        """Return the sizes that one threshold leaves whose cost is nearest to a wanted one.

        Units of equal worth go together and nothing fills the gap, so that it can be far off: the published rule.
        """
        place = bisect_right(self._thresholds, macs, key=lambda count: self._kept(self._order[:count]).macs)
        near = self._thresholds[max(0, place - 1) : place + 1]
        return min((self._kept(self._order[:count]) for count in near), key=lambda one: abs(one.macs - macs))

    def uniform(self, macs: float) -> Sized:
        """Return the sizes of the same share of every group whose cost is nearest to a wanted one."""
        shares = [place / _SHARES for place in range(1, _SHARES + 1)]
        return min(map(self._of_share, shares), key=lambda one: abs(one.macs - macs))

    def _of_share(self, share: float) -> Sized:
        return self._sized({name: max(1, round(share * dim.size)) for name, (_, dim) in self._homes.items()})

    def _kept(self, units: Iterable[str]) -> Sized:
        return self._sized(Counted(units))

    def _sized(self, counts: Mapping[str, int]) -> Sized:
        gone = {
            branch.name
            for name, (branch, dim) in self._homes.items()
            if branch.removable and counts[name] < _NOTHING * dim.size
        }
        for names in self._model.anatomy.quorums:
            if gone.issuperset(names):
                gone.remove(min(names, key=self._place.__getitem__))  # it is there at every higher cost too
        sizes: dict[str, int] = {}
        for name, (branch, dim) in self._homes.items():
            unit = self._multiple if dim.kind in {"width", "channels"} else 1
            kept = min(dim.size, -(-max(1, dim.least, counts[name]) // unit) * unit)
            sizes[name] = 0 if branch.name in gone else kept
        subnet = {name: size for name, size in sizes.items() if size} | dict.fromkeys(gone, 0)
        return Sized(self._counter.figures(subnet)["macs"], sizes)

    def space(self, found: Sequence[Sized]) -> Space:
        """Return the Space of the sizes that were found: a branch that goes in some can go, with its own sizes else."""
        axes: dict[str, Axis] = {}
        for name, (branch, dim) in self._homes.items():
            sizes = {one.sizes[name] for one in found}
            if 0 in sizes:
                axes[branch.name] = Axis(branch.name, (0, 1))
            choices = tuple(sorted((sizes - {0}) | {dim.size}))
            if len(choices) > 1:
                axes[name] = Axis(name, choices, switch=branch.name if 0 in sizes else None)
        quorums = tuple(names for names in self._model.anatomy.quorums if all(name in axes for name in names))
        return Space(tuple(axes.values()), quorums)

    def subnet(self, space: Space, one: Sized) -> Subnet:
        """Return the Subnet of a Space that has the sizes that were found."""
        values = dict(space.full)
        for name, (branch, _) in self._homes.items():
            if one.sizes[name] == 0:
                values[branch.name] = 0
            elif name in values:
                values[name] = one.sizes[name]
        return space.check(values)


def renamed(whole: Model, cut: Model, subnet: Mapping[str, int]) -> dict[str, str]:
    """Return how axes of a model are called in what a Subnet leaves of it: layers that went shift those behind them.

    Args:
        whole: The model.
        cut: What was cut out of it.
        subnet: What was chosen; axes of branches that went are left out.
    """
    stayed = [branch for branch in whole.anatomy.branches if subnet.get(branch.name, 1)]
    return {
        before.axis(dim.name): after.axis(dim.name)
        for before, after in zip(stayed, cut.anatomy.branches, strict=True)
        for dim in before.dims
        if not dim.shared
    }
