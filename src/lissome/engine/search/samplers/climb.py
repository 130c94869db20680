"""Hill climbing: neighbours of the best so far, one axis in ten moved by one choice.

With several objectives the best is that of a mixture of them, drawn anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from lissome.engine.search.history import History, draw_weights
from lissome.engine.search.moves import draw
from lissome.engine.search.samplers import Options, Proposal

_TRIES = 20  # neighbours looked at; when all were tried the summit is reached, and it begins anew elsewhere


class Climber:
    """Hill climbing with restarts.

    Args:
        drawn: Subnets to draw before the first step, from the best of which it climbs.
    """

    def __init__(self, drawn: int) -> None:
        self._drawn = drawn

    def propose(self, history: History, rng: Random) -> Proposal:
        """Return a neighbour that was not tried; a draw when there is none."""
        if len(history.seen) < max(1, self._drawn):
            return Proposal(draw(history.space, rng), "random")
        weights, scale = draw_weights(len(history.goal.objectives), rng), history.scale()
        best = min(history.best, key=lambda one: scale.merit(one, weights))
        for _ in range(_TRIES):
            subnet = history.space.neighbour(best.subnet, rng)
            if subnet not in history.tried:
                return Proposal(subnet, "climb")
        return Proposal(draw(history.space, rng), "random")

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Nothing to note."""
        return {}


def make(options: Options) -> Climber:
    """Return the sampler."""
    return Climber(options.population // 2)
