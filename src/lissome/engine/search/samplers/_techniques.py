"""The techniques that the ensemble shares its trials among; each makes one Subnet from what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from lissome.engine.search import moves
from lissome.models.space import Space, Subnet

POOL = 30
"""The best that a technique gets to see."""

Tried = Callable[[Subnet], bool]

Technique = Callable[[Space, Sequence[Subnet], Tried, Random], Subnet | None]
"""Makes a Subnet from the Space, the best so far (the best one first) and what was tried; None when it cannot."""


def greedy(space: Space, best: Sequence[Subnet], _: Tried, rng: Random) -> Subnet | None:
    """The best, a tenth of its axes drawn anew."""
    return moves.redrawn(space, best[0], rng)


def normal(space: Space, best: Sequence[Subnet], _: Tried, rng: Random) -> Subnet | None:
    """The best, a third of its axes moved a little."""
    return moves.nudged(space, best[0], rng)


def differential(space: Space, best: Sequence[Subnet], _: Tried, rng: Random) -> Subnet | None:
    """Differential evolution among the best."""
    return moves.differed(space, rng.sample(best, 4), rng) if len(best) >= 4 else None


def crossing(space: Space, best: Sequence[Subnet], _: Tried, rng: Random) -> Subnet | None:
    """The best crossed with another good one, and one axis of the child changed."""
    if len(best) < 2:
        return None
    return moves.redrawn(space, moves.crossed(space, best[0], rng.choice(best[1:]), rng), rng, rate=0.0)


def pattern(space: Space, best: Sequence[Subnet], tried: Tried, rng: Random) -> Subnet | None:
    """The best, one axis moved as far as that was not tried yet."""
    return next((subnet for subnet in moves.polls(space, best[0], rng) if not tried(subnet)), None)


def anew(space: Space, _best: Sequence[Subnet], _: Tried, rng: Random) -> Subnet | None:
    """A draw."""
    return moves.draw(space, rng)


TECHNIQUES: dict[str, Technique] = {
    "greedy": greedy,
    "normal": normal,
    "differential": differential,
    "crossing": crossing,
    "pattern": pattern,
    "random": anew,
}
"""By name, in the order in which they are first used."""
