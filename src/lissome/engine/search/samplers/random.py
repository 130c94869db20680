"""Draws without looking at what was seen: the baseline of every other sampler."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from lissome.engine.search.history import History
from lissome.engine.search.moves import draw
from lissome.engine.search.samplers import Options, Proposal


class Draws:
    """Random search."""

    def propose(self, history: History, rng: Random) -> Proposal:
        """Draw; see `lissome.engine.search.moves.draw`."""
        return Proposal(draw(history.space, rng), "random")

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Nothing to note."""
        return {}


def make(_: Options) -> Draws:
    """Return the sampler."""
    return Draws()
