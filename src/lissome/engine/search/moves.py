"""Ways to make a Subnet out of nothing or out of others; each result is allowed and canonical."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from random import Random

from lissome.models.space import Axis, Space, Subnet

ENUMERABLE = 100_000
"""Combinations of choices up to which a Space is gone through one by one when drawing finds nothing new."""


_Change = Callable[[Axis, int], int]


def draw(space: Space, rng: Random) -> Subnet:
    """Draw a Subnet: every other time each choice is as likely as any, else all axes lie about one level.

    Drawn apart, the choices of a hundred axes come out at half of everything; a level in common reaches small and large
    Subnets too.
    """
    if rng.random() < 0.5:
        values = {axis.name: rng.choice(axis.choices) for axis in space.axes}
    else:
        level = rng.random()
        values = {axis.name: _near(axis, level, rng) for axis in space.axes}
    return space.repaired(values, rng)


def _near(axis: Axis, level: float, rng: Random) -> int:
    """A choice near a level of 0 to 1; of two choices the upper one with that probability."""
    if len(axis.choices) == 2:
        return axis.choices[rng.random() < level]
    place = rng.gauss(level, 0.2) * (len(axis.choices) - 1)
    return _at(axis, place)


def _at(axis: Axis, place: float) -> int:
    return axis.choices[min(max(round(place), 0), len(axis.choices) - 1)]


def redrawn(space: Space, subnet: Subnet, rng: Random, rate: float = 0.1) -> Subnet:
    """Draw a share of the axes anew, at least one."""
    return _changed(space, subnet, rng, rate, lambda axis, value: _other(axis, value, rng))


def nudged(space: Space, subnet: Subnet, rng: Random, rate: float = 0.3, spread: float = 0.1) -> Subnet:
    """Move a share of the axes by normal steps of `spread` times the number of choices, at least by one choice."""

    def step(axis: Axis, value: int) -> int:
        way = rng.gauss(0.0, spread * len(axis.choices))
        place = axis.choices.index(value) + math.copysign(max(1.0, abs(way)), way)
        moved = _at(axis, place)
        return moved if moved != value else _other(axis, value, rng)

    return _changed(space, subnet, rng, rate, step)


def _other(axis: Axis, value: int, rng: Random) -> int:
    return rng.choice([choice for choice in axis.choices if choice != value])


def _changed(space: Space, subnet: Subnet, rng: Random, rate: float, change: _Change) -> Subnet:
    movable = space.movable(subnet)
    chosen = [axis for axis in movable if rng.random() < rate] or ([rng.choice(movable)] if movable else [])
    return space.repaired({**subnet, **{axis.name: change(axis, subnet[axis.name]) for axis in chosen}}, rng)


def crossed(space: Space, first: Subnet, second: Subnet, rng: Random) -> Subnet:
    """Take each axis from one of two parents."""
    return space.repaired({name: rng.choice((first[name], second[name])) for name in first}, rng)


def differed(space: Space, parents: Sequence[Subnet], rng: Random, *, rate: float = 0.5, factor: float = 0.7) -> Subnet:
    """Differential evolution (Storn & Price 1997) on the places of choices: a + factor · (b − c), crossed with a base.

    Args:
        space: The Space.
        parents: The base, a, b and c.
        rng: Chooses which axes come from the sum.
        rate: Share of the axes that do, at least one.
        factor: Length of the difference.
    """
    base, first, plus, minus = parents
    forced = rng.choice(space.axes).name
    values = dict(base)
    for axis in space.axes:
        if axis.name == forced or rng.random() < rate:
            place = axis.choices.index
            step = factor * (place(plus[axis.name]) - place(minus[axis.name]))
            # Rounding would lose every difference of one choice; chance keeps it as often as it is large.
            whole = math.floor(step)
            values[axis.name] = _at(axis, place(first[axis.name]) + whole + (rng.random() < step - whole))
    return space.repaired(values, rng)


def polls(space: Space, subnet: Subnet, rng: Random) -> Iterator[Subnet]:
    """Pattern search (Hooke & Jeeves 1961): one axis at a time, up and down, by half its choices, a quarter … one."""
    movable = space.movable(subnet)
    widest = max((len(axis.choices) for axis in movable), default=1)
    step = max(1, widest // 2)
    while movable and step:
        moves = [(axis, way) for axis in movable for way in (-step, step) if step < len(axis.choices)]
        rng.shuffle(moves)
        for axis, way in moves:
            moved = _at(axis, axis.choices.index(subnet[axis.name]) + way)
            made = space.repaired({**subnet, axis.name: moved}, rng)
            if made != subnet:
                yield made
        step //= 2


def every(space: Space) -> Iterable[Subnet]:
    """Return all Subnets of a small Space, smallest first, some of them more than once; none of a large one."""
    if math.prod(len(axis.choices) for axis in space.axes) > ENUMERABLE:
        return ()
    return _product(space)


def _product(space: Space) -> Iterator[Subnet]:
    for values in product(*(axis.choices for axis in space.axes)):
        subnet = space.canonical(Subnet(dict(zip((axis.name for axis in space.axes), values, strict=True))))
        if space.allows(subnet):
            yield subnet
