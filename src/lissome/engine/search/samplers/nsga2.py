"""NSGA-II (Deb et al. 2002), Optuna's: generations of Subnets, the better half crossed and mutated; the default.

The first generation is drawn by `lissome.engine.search.moves.draw`, together with the Subnets to start from. An axis is
mutated once per child on average. Bounds act by constrained domination.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial

from lissome.engine.search.history import History
from lissome.engine.search.moves import draw
from lissome.engine.search.samplers import Options, Proposal
from lissome.engine.search.samplers._mirror import Mirror


class Generations:
    """NSGA-II."""

    def __init__(self, options: Options) -> None:
        self._mirror = Mirror(options.space, len(options.goal.objectives))
        self._population = options.population

    def propose(self, history: History, rng: Random) -> Proposal:
        """Return a child of the best, or a draw for the first generation."""
        subnet, notes = self._ask(history, rng)
        return Proposal(draw(history.space, rng) if subnet is None else subnet, "nsga2", notes)

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Note the generation that it belongs to, so that it becomes a parent like any other."""
        return self._ask(history, Random(0))[1]

    def _ask(self, history: History, rng: Random) -> tuple[Any, dict[str, Any]]:
        self._mirror.follow(history)
        # A sampler of its own each time: what it does then follows from the history and the generator.
        sampler = NSGAIISampler(population_size=self._population, seed=rng.getrandbits(32))
        study = self._mirror.study

        def settle(trial: FrozenTrial) -> None:
            """Work the parents out in order: they come in another order when they are first asked for."""
            for generation in range(1, sampler.get_trial_generation(study, trial) + 1):
                sampler.get_parent_population(study, generation)

        return self._mirror.ask(sampler, rng, settle)


def make(options: Options) -> Generations:
    """Return the sampler."""
    return Generations(options)
