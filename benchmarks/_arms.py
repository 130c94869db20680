"""What is read from the cells of an arm, one per seed: accuracy at the end and at the bytes of another, and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

Cell = Mapping[str, Any]

SWEPT = "sweep-"
"""Beginning of the names of cells that try settings."""
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantile of Student's t by the number of values; of more than five, the normal one is near enough."""


def by_arm(cells: Mapping[str, Cell]) -> dict[str, list[Cell]]:
    """Return the cells ``ARM-SEED`` of each arm, over seeds; others, and those that try settings, belong to no arm."""
    found: dict[str, list[Cell]] = {}
    for name, cell in cells.items():
        arm, _, seed = name.rpartition("-")
        if seed.isdigit() and arm and not name.startswith(SWEPT):
            found.setdefault(arm, []).append(cell)
    return found


def final(cells: Sequence[Cell]) -> float:
    """Return the accuracy of the global model at the end, the mean over seeds."""
    return mean(finals(cells))


def at_bytes(cells: Sequence[Cell], others: Sequence[Cell]) -> list[float]:
    """Return the accuracy of the global model after the last whole round within the bytes of another arm, by seed.

    After rounds in which it was not judged, it lies on the line between those before and after: else arms whose rounds
    take more bytes would be judged by an earlier one than they can afford.
    """
    limits = [other["spent"][-1] for other in others]
    return [
        _after(cell["accuracy"], sum(sent <= limit for sent in cell["spent"]) - 1)
        for cell, limit in zip(cells, limits, strict=True)
    ]


def at_bytes_of(cells: Sequence[Cell], others: Sequence[Cell]) -> str:
    """Write `at_bytes`; of an arm that cannot end a round with so few bytes, that after its first round, which says so.

    Its first round is then as near as it comes, and takes the stated multiple of all bytes of the other arm.
    """
    first = [next((sent for sent in cell["spent"] if sent), 0) for cell in cells]
    limits = [other["spent"][-1] for other in others]
    if all(one <= limit for one, limit in zip(first, limits, strict=True)):
        return spread(at_bytes(cells, others))
    more = mean(one / limit for one, limit in zip(first, limits, strict=True) if limit)
    return f"{spread([_after(cell['accuracy'], 1) for cell in cells])} (one round, {more:.1f} × the bytes)"


def _after(scores: Sequence[float | None], number: int) -> float:
    """Accuracy after a round; the first and the last one were judged."""
    known = {at: score for at, score in enumerate(scores) if score is not None}
    left, right = max(at for at in known if at <= number), min(at for at in known if at >= number)
    share = (number - left) / max(1, right - left)
    return (1 - share) * known[left] + share * known[right]


def finals(cells: Sequence[Cell]) -> list[float]:
    """Return the accuracy of the global model at the end, by seed."""
    return [cell["accuracy"][-1] for cell in cells]


def spread(shares: Sequence[float]) -> str:
    """Write shares of several seeds as their mean in percent, with half of the 95 % interval of it (Student's t)."""
    if len(shares) < 2:
        return f"{100 * shares[0]:.1f}"
    half = _STUDENT.get(len(shares), 1.96) * stdev(shares) / math.sqrt(len(shares))
    return f"{100 * mean(shares):.1f} ± {100 * half:.1f}"


def paired_told(cells: Sequence[Cell], others: Sequence[Cell]) -> tuple[float, float]:
    """Return by how much more losses tell of the same clients in one arm than in another: mean, half of its interval.

    The interval of 95 % is that of the mean over clients of all seeds, each counting alike.
    """
    apart = [
        one["told"] - other["own"][name]["told"]
        for cell, other in zip(cells, others, strict=True)
        for name, one in cell["own"].items()
        if "told" in one and "told" in other["own"].get(name, {})
    ]
    return mean(apart), 1.96 * stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf


def told_of(cells: Sequence[Cell]) -> float:
    """Return the mean of `told` over the clients of all seeds, each counting by its texts."""
    found = [one for cell in cells for one in cell["own"].values() if "told" in one]
    return sum(one["told"] * one["learned"] for one in found) / sum(one["learned"] for one in found)
