"""Which Subnets a step trains: one at random, the largest and the smallest with some between, or stage by stage.

A sampler draws from (step, generator) alone, so that a run that was killed and continued sees the same paths.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lissome.core.errors import ConfigError
from lissome.models.anatomy import Anatomy
from lissome.models.space import Axis, Space, Subnet


class PathSampler(Protocol):
    """Draws the Subnets that a micro-batch goes through."""

    @property
    def space(self) -> Space:
        """The whole Space that is trained."""

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Return the Subnets of one micro-batch, in the order in which they are trained."""


@dataclass(frozen=True)
class Depth:
    """How blocks are skipped together: in each group only the last ones, so that deep blocks learn to be optional.

    Attributes:
        groups: Keep-axes of neighbouring blocks, in order; see `depth_groups`.
        most: Blocks of a group that may be skipped at most; None for all.
    """

    groups: tuple[tuple[str, ...], ...]
    most: int | None = None

    def optional(self, group: Sequence[str]) -> tuple[str, ...]:
        """Return the blocks of a group that may be skipped, the first to go last."""
        return tuple(group if self.most is None else group[max(0, len(group) - self.most) :])

    def drawn(self, rng: random.Random) -> dict[str, int]:
        """Skip a number of blocks of each group, every number equally likely."""
        values: dict[str, int] = {}
        for group in self.groups:
            optional = self.optional(group)
            kept = len(group) - rng.randint(0, len(optional))
            values |= {name: int(index < kept) for index, name in enumerate(group)}
        return values

    def within(self, space: Space) -> Space:
        """Return a Space that leaves no more to choose than this: its chains, and blocks that must stay, do."""
        groups = [tuple(name for name in group if name in space.by_name) for group in self.groups]
        stay = {name for group in groups for name in group} - {n for group in groups for n in self.optional(group)}
        axes = (replace(axis, choices=axis.choices[-1:]) if axis.name in stay else axis for axis in space.axes)
        chains = tuple(dict.fromkeys((*space.chains, *filter(None, groups))))
        return replace(space, axes=tuple(axes), chains=chains)

    def allows(self, subnet: Mapping[str, int]) -> bool:
        """Whether only last blocks of each group are skipped, and not too many."""
        for group in self.groups:
            kept = [bool(subnet.get(name, 1)) for name in group]
            if kept != sorted(kept, reverse=True) or kept.count(False) > len(self.optional(group)):
                return False
        return True


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

    Args:
        space: The axes to draw from.
        depth: How blocks are skipped (default: as the Space's chains say, all others each by itself).
        count: Subnets per micro-batch.
    """

    def __init__(self, space: Space, *, depth: Depth | None = None, count: int = 1) -> None:
        depth = Depth(space.chains) if depth is None and space.chains else depth
        self.space, self.depth, self._count = space, depth, count
        self._within = space
        if depth is not None:
            loose = {axis.name for axis in space.axes if 0 in axis.choices}
            groups = (tuple(name for name in group if name in loose) for group in depth.groups)
            self.depth = replace(depth, groups=tuple(group for group in groups if group))
            self._within = self.depth.within(space)

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw them."""
        return tuple(self.one(rng) for _ in range(self._count))

    def one(self, rng: random.Random) -> Subnet:
        """Draw one Subnet."""
        values = {axis.name: rng.choice(axis.choices) for axis in self.space.axes}
        return self._within.repaired(values | (self.depth.drawn(rng) if self.depth else {}), rng)

    def smallest(self) -> Subnet:
        """Return the smallest Subnet that can be drawn."""
        return self._within.smallest


class Sandwich:
    """The largest, some random ones, and the smallest, on the same examples (Yu & Huang 2019, arXiv 1903.05134).

    Args:
        space: The axes to draw from.
        between: Random Subnets per micro-batch.
        depth: As in `RandomPath`.
    """

    def __init__(self, space: Space, *, between: int = 1, depth: Depth | None = None) -> None:
        self.space = space
        self._random = RandomPath(space, depth=depth, count=between)

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw those between; the largest comes first, so that the others can learn from it."""
        return (self.space.full, *self._random.draw(step, rng), self._random.smallest())


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
        axis.name: max((one for one in axis.choices if one <= share * axis.full), default=axis.choices[0])
        for axis in space.axes
    }
    return space.canonical(Subnet(values))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of progressive shrinking.

    Attributes:
        steps: Steps that it lasts.
        kinds: Kinds of axes that are elastic in it, such as ``("kernel", "depth")``; see `kind_of`. All others stay at
            their largest.
        choices: The largest choices of each axis that it has; None for all.
        depth: Blocks of a group that may be skipped at most; None for all.
    """

    steps: int
    kinds: tuple[str, ...]
    choices: int | None = None
    depth: int | None = None


class Shrinking:
    """Stages in which more and more becomes elastic (Cai et al. 2020, arXiv 1908.09791), one random Subnet at a time.

    Args:
        space: All axes.
        stages: In order; the last one goes on until training ends.
        groups: Blocks that are skipped together, the last ones first; see `depth_groups` (default: the Space's chains).

    Raises:
        ConfigError: When there is no stage, one has no step, or one names a kind that no axis has.
    """

    def __init__(self, space: Space, stages: Sequence[Stage], *, groups: tuple[tuple[str, ...], ...] = ()) -> None:
        if not stages or min(stage.steps for stage in stages) < 1:
            raise ConfigError("progressive shrinking needs stages of at least one step each.")
        known = sorted({kind_of(axis) for axis in space.axes})
        for kind in (kind for stage in stages for kind in stage.kinds):
            if kind not in known:
                raise ConfigError(f"no axis is of the kind {kind!r}; there are: {', '.join(known)}.")
        self.space = space
        self._ends = [sum(stage.steps for stage in stages[: index + 1]) for index in range(len(stages))]
        self._stages = [self._sampler(stage, groups or space.chains) for stage in stages]

    def _sampler(self, stage: Stage, groups: tuple[tuple[str, ...], ...]) -> RandomPath:
        axes = []
        for axis in self.space.axes:
            elastic, most = kind_of(axis) in stage.kinds, None if axis.choices == (0, 1) else stage.choices
            axes.append(
                replace(axis, choices=axis.choices[-(most or len(axis.choices)) :] if elastic else (axis.full,))
            )
        skips = "depth" in stage.kinds and groups
        opened = replace(self.space, axes=tuple(axes))
        return RandomPath(opened, depth=Depth(groups, stage.depth) if skips else None)

    def stage(self, step: int) -> int:
        """Return the number of the stage that a step belongs to."""
        return min(sum(step >= end for end in self._ends), len(self._stages) - 1)

    def draw(self, step: int, rng: random.Random) -> tuple[Subnet, ...]:
        """Draw from the stage."""
        return tuple(self.space.canonical(subnet) for subnet in self._stages[self.stage(step)].draw(step, rng))


def kind_of(axis: Axis) -> str:
    """Return what an axis decides: ``"depth"``, ``"kernel"``, ``"rank"``, or ``"width"`` for channels and heads."""
    if axis.choices == (0, 1):
        return "depth"
    last = axis.name.rpartition(".")[2]
    return last if last in {"kernel", "rank"} else "width"
