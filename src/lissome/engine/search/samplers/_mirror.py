"""Lets one of Optuna's samplers look at a history: a study in memory holds what was seen, and is asked what comes next.

Optuna would write every parameter of a trial into the study's database by itself, hundreds of small transactions for a
Space of a hundred axes. So its samplers work on this mirror, made anew from the history whenever a search is
continued. Objectives are mirrored as their logarithm, which leaves every comparison as it is and keeps a perplexity of
a million from outweighing all others in distances and volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from lissome.engine.search._optuna import distributions_of, quiet
from lissome.engine.search.history import History, Seen
from lissome.models.space import Space, Subnet

_MOST = 1e3  # above the logarithm of any float


class Mirror:
    """A study in memory.

    Args:
        space: The Space.
        objectives: How many there are.
    """

    def __init__(self, space: Space, objectives: int) -> None:
        self._space, self._distributions = space, distributions_of(space)
        with quiet():
            self.study = optuna.create_study(directions=["minimize"] * objectives, sampler=RandomSampler(seed=0))
        self._known = 0

    def follow(self, history: History) -> None:
        """Take over what was seen since the last time."""
        for one in history.seen[self._known :]:
            self.study.add_trial(self._trial(one))
        self._known = len(history.seen)

    def ask(
        self, sampler: BaseSampler, rng: Random, before: Callable[[FrozenTrial], None] = lambda _: None
    ) -> tuple[Subnet | None, dict[str, Any]]:
        """Ask a sampler for what comes next.

        Args:
            sampler: The sampler, with a seed of its own.
            rng: Decides about the axes that the sampler leaves open (mutations).
            before: Called with the new trial before the sampler is.

        Returns:
            The Subnet, or None when the sampler knows nothing yet; and what it noted at the trial.
        """
        trial = self.study.ask()
        with quiet():
            frozen = self._frozen(trial)
            before(frozen)
            values = sampler.sample_relative(self.study, frozen, self._distributions)
        notes = dict(self._frozen(trial).system_attrs)
        self.study.tell(trial, state=TrialState.FAIL)  # it lives on in the history; samplers do not look at these
        if not values:
            return None, notes
        whole = {
            axis.name: values[axis.name] if axis.name in values else rng.choice(axis.choices)
            for axis in self._space.axes
        }
        return self._space.repaired(whole, rng), notes

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _trial(self, one: Seen) -> FrozenTrial:
        notes = dict(one.notes)
        if one.breach > 0:
            notes["constraints:breach"] = one.breach
        return optuna.trial.create_trial(
            values=[_flat(value) for value in one.values],
            params={name: one.subnet[name] for name in self._distributions},
            distributions=self._distributions,
            system_attrs=notes,
        )


def _flat(value: float) -> float:
    return math.copysign(min(math.log1p(abs(value)), _MOST), value)
