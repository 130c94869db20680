"""Which Subnets a step trains: one at random, the largest and the smallest with some between, or nested ones.

A sampler draws from (step, generator) alone, so that a run that was killed and continued sees the same paths.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from lissome.models.anatomy import Anatomy
from lissome.models.space import Axis, Space, Subnet


class PathSampler(Protocol):
    """Draws the Subnets that a micro-batch goes through."""

    @property
    def space(self) -> Space:
        """The whole Space that is trained."""

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Return the Subnets of one micro-batch, in the order in which they are trained."""


def depth_groups(anatomy: Anatomy) -> tuple[tuple[str, ...], ...]:
    """Return the keep-axes of neighbouring blocks of one kind, in order.

    Blocks are of one kind when their names differ in numbers alone; one that cannot be removed ends a group.
    """
    groups: list[list[str]] = []
    open_groups: dict[str, list[str]] = {}
    for branch in anatomy.branches:
        kind = re.sub(r"\d+", "#", branch.name)
        if not branch.removable:
            open_groups.pop(kind, None)
            continue
        if kind not in open_groups:
            open_groups[kind] = []
            groups.append(open_groups[kind])
        open_groups[kind].append(branch.name)
    return tuple(map(tuple, groups))


class RandomPath:
    """One random Subnet per micro-batch: each choice of each axis equally likely, and independent of all others.

    Of a chain only the last blocks are skipped, every number of them equally likely: deep ones learn to be optional.

    Args:
        space: The axes to draw from.
        count: Subnets per micro-batch.
    """

    def __init__(self, space: Space, *, count: int = 1) -> None:
        self.space, self._count = space, count
        self._chains = [[name for name in chain if 0 in space.by_name[name].choices] for chain in space.chains]

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw them."""
        return tuple(self.one(rng) for _ in range(self._count))

    def one(self, rng: random.Random) -> Subnet:
        """Draw one Subnet."""
        values = {axis.name: rng.choice(axis.choices) for axis in self.space.axes}
        for names in filter(None, self._chains):
            kept = len(names) - rng.randint(0, len(names))
            values |= {name: int(index < kept) for index, name in enumerate(names)}
        return self.space.repaired(values, rng)


class Sandwich:
    """The largest, some random ones, and the smallest, on the same examples (Yu & Huang 2019, arXiv 1903.05134).

    Args:
        space: The axes to draw from.
        between: Random Subnets per micro-batch.
        even: Probability with which they are of `levels` instead.
        levels: Subnets between the ends (default: those of `Space.levels`). They are what people cut first, and what a
            random path hardly ever is.
    """

    def __init__(
        self, space: Space, *, between: int = 1, even: float = 0.0, levels: Sequence[Subnet] | None = None
    ) -> None:
        self.space, self._even, self._between = space, even, between
        self._random = RandomPath(space, count=between)
        self._levels = space.levels()[1:-1] if levels is None else tuple(levels)

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw those between; the largest comes first, so that the others can learn from it."""
        if self._even and self._levels and rng.random() < self._even:
            drawn = tuple(rng.choices(self._levels, k=self._between))
        else:
            drawn = self._random.draw(step, rng)
        return (self.space.full, *drawn, self.space.smallest)


class Together:
    """One random share for all axes: each takes its largest choice of at most that share of the whole.

    That is ordered dropout, which trains nested models (FjORD; Horváth et al. 2021, arXiv 2102.13451).

    Args:
        space: The axes.
        shares: Shares to draw from, each equally likely.
        within: A Subnet that is the whole for whoever draws, such as what a device holds; it can be drawn too, and
            shares beyond it cannot.
    """

    def __init__(self, space: Space, shares: Sequence[float], *, within: Mapping[str, int] | None = None) -> None:
        held = {axis.name: (within or space.full).get(axis.name, axis.full) for axis in space.axes}
        found = [at_share(space, share) for share in shares]
        fits = [one for one in found if all(value <= held[name] for name, value in one.items())]
        axes = (
            replace(one, choices=tuple(value for value in one.choices if value <= held[one.name])) for one in space.axes
        )
        self.space = replace(space, axes=tuple(axes))
        self._drawn = tuple(dict.fromkeys((*fits, self.space.full)))

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw one."""
        return (rng.choice(self._drawn),)


def at_share(space: Space, share: float) -> Subnet:
    """Return the Subnet in which every axis has its largest choice of at most a share of the whole, or its smallest."""
    values = {
        axis.name: max((one for one in axis.choices if one <= share_of(axis.full, share)), default=axis.choices[0])
        for axis in space.axes
    }
    return space.canonical(Subnet(values))


def share_of(size: int, share: float) -> int:
    """Return a share of a size, rounded down; 0.29 of 100 is 29, though their product as floats is a little less."""
    return int(size * share + 1e-6)


def kind_of(axis: Axis) -> str:
    """Return what an axis decides: ``"depth"``, ``"kernel"``, ``"rank"``, or ``"width"`` for channels and heads."""
    if axis.choices == (0, 1):
        return "depth"
    last = axis.name.rpartition(".")[2]
    return last if last in {"kernel", "rank"} else "width"
