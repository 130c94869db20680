"""Tree-structured Parzen estimators (Bergstra et al. 2011; Ozaki et al. 2022), Optuna's: draws like the good ones.

All axes are drawn together; one by one, the densities of a hundred axes would be worked out a hundred times for each
proposal. The first generation is drawn by `lissome.engine.search.moves.draw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from optuna.samplers import TPESampler

from lissome.engine.search.history import History
from lissome.engine.search.moves import draw
from lissome.engine.search.samplers import Options, Proposal
from lissome.engine.search.samplers._mirror import Mirror


class Densities:
    """TPE."""

    def __init__(self, options: Options) -> None:
        self._mirror = Mirror(options.space, len(options.goal.objectives))
        self._population = options.population

    def propose(self, history: History, rng: Random) -> Proposal:
        """Draw from the density of the good ones, or at random while there are too few."""
        self._mirror.follow(history)
        seed = rng.getrandbits(32)
        sampler = TPESampler(n_startup_trials=self._population, multivariate=True, seed=seed)
        subnet, _ = self._mirror.ask(sampler, rng)
        return Proposal(draw(history.space, rng) if subnet is None else subnet, "tpe")

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Nothing to note."""
        return {}


def make(options: Options) -> Densities:
    """Return the sampler."""
    return Densities(options)
