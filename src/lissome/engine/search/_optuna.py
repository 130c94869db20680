"""What is particular to Optuna: its distributions of our axes, and how to keep it from talking."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from lissome.models.space import Axis, Space


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every axis that has a choice.

    Evenly spaced choices keep their order; others are told apart by name only.
    """
    return {axis.name: _distribution(axis) for axis in space.axes if len(axis.choices) > 1}


def _distribution(axis: Axis) -> BaseDistribution:
    low, high, step = axis.choices[0], axis.choices[-1], axis.choices[1] - axis.choices[0]
    if axis.choices == tuple(range(low, high + 1, step)):
        return IntDistribution(low, high, step=step)
    return CategoricalDistribution(axis.choices)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes on new studies and on its experimental parts to itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
