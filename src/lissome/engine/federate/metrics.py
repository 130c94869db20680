"""Numbers that clients and the server give of a round: their means, and their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lissome.core.errors import NumericsError


def mean_metrics(reports: Sequence[Any]) -> dict[str, float]:
    """Means over the clients that gave a number, each weighted by its examples; without any there is no mean."""
    sums: dict[str, tuple[float, float]] = {}
    for report in reports:
        for name, value in report.metrics.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = (total + report.weight * value, weight + report.weight)
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


def named_metrics(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Put a prefix before the names of numbers.

    Raises:
        NumericsError: When one is not finite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NumericsError(f"{prefix}/{name} is {value}; lower the learning rate, or look for NaN in the model.")
    return {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
