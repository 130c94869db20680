"""An ensemble of techniques that share the trials by a bandit: the program autotuner's way (Ansel et al. 2014).

OpenTuner: An Extensible Framework for Program Autotuning (PACT 2014). Each technique's credit is the area under the
curve of its gains over its last uses, so that a late gain counts more than an early one; a bonus keeps rarely used ones
in play: credit + C · sqrt(2 · log2(uses of all) / uses of this one). A gain is a Subnet better than all before it.

Differs from OpenTuner: a gain counts by its size, relative to the largest of the window (in a Space of a hundred axes
a technique that changes one of them gains every other time, and gets nowhere); with several objectives, each proposal
is made, and its gain judged, for a mixture of them that is drawn anew, because nearly every step along a front adds a
point to it; a technique draws on the results of all others (there each keeps its own); crossing stands in the place of
the simplex, which means little for a hundred axes of a few choices; and bounds act by constrained domination instead of
a penalty in the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from random import Random
from typing import Any

from lissome.engine.search.history import History, Weights, draw_weights
from lissome.engine.search.moves import draw
from lissome.engine.search.samplers import Options, Proposal
from lissome.engine.search.samplers._techniques import POOL, TECHNIQUES, Technique
from lissome.models.space import Subnet

WINDOW = 500
"""Last uses of all techniques that count; OpenTuner's."""

EXPLORATION = 0.05
"""C; OpenTuner's."""


def credit(gains: Sequence[float]) -> float:
    """Return the area under the curve of gains (0..1 each), 0..1: the i-th of n uses weighs i."""
    uses = len(gains)
    area = sum(place * gain for place, gain in enumerate(gains, start=1))
    return 2.0 * area / (uses * (uses + 1)) if uses else 0.0


def score(gains: Sequence[float], uses: int) -> float:
    """Return what a technique is chosen by; infinite for one that was not used within the window."""
    if not gains:
        return math.inf
    return credit(gains) + EXPLORATION * math.sqrt(2.0 * math.log2(max(2, uses)) / len(gains))


class Ensemble:
    """The bandit.

    Args:
        techniques: By name.
        drawn: Subnets to draw before the techniques have something to work with.
    """

    def __init__(self, techniques: Mapping[str, Technique] = TECHNIQUES, *, drawn: int = 0) -> None:
        self._techniques, self._drawn = techniques, drawn

    def propose(self, history: History, rng: Random) -> Proposal:
        """Let the technique of the highest score propose; the next one when it can do nothing."""
        weights = draw_weights(len(history.goal.objectives), rng)
        best = _best(history, weights)
        for name in self.order(history) if len(history.seen) >= max(1, self._drawn) else ():
            subnet = self._techniques[name](history.space, best, history.tried.__contains__, rng)
            if subnet is not None and subnet not in history.tried:
                return Proposal(subnet, name, {"weights": list(weights)})
        return Proposal(draw(history.space, rng), "random", {"weights": list(weights)})

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Nothing to note."""
        return {}

    def order(self, history: History) -> list[str]:
        """Return the techniques, the highest score first."""
        used = [one for one in history.seen if one.by in self._techniques][-WINDOW:]
        most = max((one.gain for one in used), default=0.0) or 1.0
        gains = {name: [one.gain / most for one in used if one.by == name] for name in self._techniques}
        return sorted(gains, key=lambda name: score(gains[name], len(used)), reverse=True)


def _best(history: History, weights: Weights) -> list[Subnet]:
    """The best for a mixture of the objectives, the best first."""
    scale = history.scale()
    return [one.subnet for one in nsmallest(POOL, history.seen, key=lambda one: scale.merit(one, weights))]


def make(options: Options) -> Ensemble:
    """Return the sampler."""
    return Ensemble(drawn=options.population // 2)
