"""Which points nothing beats, and how much they leave behind them. All values are to be minimised.

The sort and the hypervolume are Optuna's own, so that its dashboard and these figures agree; this file is the one place
that knows where they are in it.
"""

# n points, k objectives

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = Sequence[tuple[float, ...]]


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the first is nowhere worse and somewhere better."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def ranks(values: Values) -> list[int]:
    """Return for each point how many fronts must be taken away until nothing dominates it; 0 is the front."""
    from optuna.study._multi_objective import _fast_non_domination_rank

    return [int(rank) for rank in _fast_non_domination_rank(_bounded(values))] if len(values) else []


def front(values: Values) -> list[int]:
    """Return the places of the points that none dominates; of equal ones all."""
    return [index for index, rank in enumerate(ranks(values)) if rank == 0]


def hypervolume(values: Values, reference: Sequence[float]) -> float:
    """Return the volume between the points and a reference; a point that is not better than it adds nothing."""
    from optuna._hypervolume import compute_hypervolume

    edge = np.array(reference, dtype=np.float64)
    inside = [value for value in values if all(a < b for a, b in zip(value, edge, strict=True))]
    return float(compute_hypervolume(np.array(inside, dtype=np.float64), edge)) if inside else 0.0


def reference_of(values: Values) -> tuple[float, ...]:
    """Return a reference for points: their worst of each objective, a tenth of the range further out."""
    rows = _bounded(values)
    low, high = rows.min(axis=0), rows.max(axis=0)
    room = np.where(high > low, high - low, np.maximum(1.0, np.abs(high)))
    return tuple((high + 0.1 * room).tolist())


def _bounded(values: Values) -> NDArray[np.float64]:
    """Points as float64[n, k]; what is infinite becomes the largest number there is."""
    return np.nan_to_num(np.array(values, dtype=np.float64), nan=np.inf, posinf=np.finfo(np.float64).max)
