"""What a search has seen so far: every Subnet with its figures, and those that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from lissome.engine.search.goal import Goal
from lissome.engine.search.pareto import dominates
from lissome.models.space import Space, Subnet


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One Subnet that was evaluated.

    Attributes:
        number: Its place in the order of proposals.
        subnet: The Subnet.
        figures: Its figures; without those of quality when a cost broke a bound before they were taken.
        by: Who proposed it.
        notes: What the sampler wants to remember of it.
        seconds: What the evaluation took.
        values: Objectives to minimise.
        breach: How far bounds are broken; 0 when all hold.
        gain: How much better it is than all before it for the mixture of objectives that it was proposed for (a list
            ``weights`` among its notes), 0..1; 0 without one.
    """

    number: int
    subnet: Subnet
    figures: Mapping[str, float]
    by: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    values: tuple[float, ...] = ()
    breach: float = 0.0
    gain: float = 0.0


Weights = tuple[float, ...]
"""How much each objective matters; they add up to 1."""


def draw_weights(count: int, rng: Random) -> Weights:
    """Draw weights of `count` objectives, all mixtures equally likely."""
    parts = [rng.expovariate(1.0) for _ in range(count)]
    return tuple(part / sum(parts) for part in parts)


@dataclass(frozen=True)
class Scale:
    """What makes objectives comparable: the least value of each on the front, and the front's reach in it."""

    low: tuple[float, ...]
    reach: tuple[float, ...]

    def merit(self, one: Seen, weights: Weights) -> tuple[float, float]:
        """Return how good one is for these weights, lower is better: its breach, then Chebyshev's distance.

        The distance is augmented by a twentieth of the sum, so that of two with the same worst objective the better one
        wins (Knowles 2006, ParEGO).
        """
        parts = [
            weight * (value - low) / reach
            for weight, value, low, reach in zip(weights, one.values, self.low, self.reach, strict=True)
        ]
        return one.breach, max(parts) + 0.05 * sum(parts)


class History:
    """The Subnets that were evaluated, in the order in which they became known, and those still under way.

    Args:
        space: The Space.
        goal: What is searched for.
    """

    def __init__(self, space: Space, goal: Goal) -> None:
        self.space, self.goal = space, goal
        self.seen: list[Seen] = []
        self.tried: set[Subnet] = set()
        self.best: list[Seen] = []
        """Those that nothing beats: the Pareto front, or, while no bound holds anywhere, the least breach."""

    def add(self, one: Seen) -> Seen:
        """Note an evaluated Subnet; returns it with what follows from its figures."""
        values, breach = self.goal.values(one.figures), self.goal.breach(one.figures)
        one = replace(one, values=values, breach=breach)
        if not any(_beats(other, values, breach) for other in self.best):
            self.best = [other for other in self.best if not _beats(one, other.values, other.breach)] + [one]
        one = replace(one, gain=self._gain(one))
        self.seen.append(one)
        self.tried.add(one.subnet)
        return one

    def _gain(self, one: Seen) -> float:
        weights = tuple(one.notes.get("weights", ()))
        if not weights or not self.seen:
            return 0.0
        scale = self.scale()
        breach, distance = scale.merit(one, weights)
        least, nearest = min(scale.merit(other, weights) for other in self.seen)
        return min(1.0, max(0.0, least - breach if least != breach else nearest - distance))

    def scale(self) -> Scale:
        """Return what makes objectives comparable: where the front begins, and how far it reaches, in each of them."""
        columns = list(zip(*(one.values for one in self.best if all(map(math.isfinite, one.values))), strict=True))
        if not columns:
            return Scale((0.0,) * len(self.goal.objectives), (1.0,) * len(self.goal.objectives))
        low = tuple(map(min, columns))
        reach = tuple(max(column) - least for column, least in zip(columns, low, strict=True))
        return Scale(low, tuple(span or 1.0 for span in reach))


def _beats(one: Seen, values: tuple[float, ...], breach: float) -> bool:
    """Constrained domination."""
    if one.breach > 0 or breach > 0:
        return one.breach < breach
    return dominates(one.values, values)
