"""What a removal will come out at, as far as its bounds say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lissome.core.budget import TERMS
from lissome.core.method import ModelCard
from lissome.cost.counted import COUNTED
from lissome.cost.memory import SLACK

_EXACT = ("params", "block_params")  # removal takes from the blocks alone, so that one follows from the other
_SIZES = (*_EXACT, "disk")  # these fall together


@dataclass(frozen=True)
class Expected:
    """Expected figures of a result.

    Attributes:
        figures: By budget term, in the terms' units; counts and bytes are whole numbers.
        at_most: Those of them that are bounds: a cost will be there or below, a speed there or above.
        notes: Lines for a person.
    """

    figures: Mapping[str, float]
    at_most: frozenset[str]
    notes: tuple[str, ...] = ()


def expected_of_removal(card: ModelCard, bounds: Mapping[str, float]) -> Expected:
    """Expect a removal to stop as soon as its bounds hold.

    Parameters and bytes fall together, from the original to the smallest that can be reached: where one is bounded, the
    others are as far on this way. Memory falls by the weights at least. What a bound on time or operations does to
    sizes, and the other way round, depends on what is removed; such figures are left out.

    Args:
        card: The original.
        bounds: Bounds by budget term in the terms' units, none beyond the original (`expected_figures`).
    """
    now, least = card.figures, card.reachable
    figures, sizes = dict(bounds), set[str]()
    ways = {
        name: (now[name] - bounds[name]) / (now[name] - least[name])
        for name in _SIZES
        if name in bounds and now[name] > least[name]
    }
    if ways:
        way = max(ways.values())
        figures |= {name: now[name] - way * (now[name] - least[name]) for name in _SIZES}
        run = now["memory"] - (1 + SLACK) * (now["disk"] - figures["disk"])
        figures["memory"] = min(run, bounds.get("memory", run))
        sizes = _bounds_of(ways, more=not bounds.keys() <= set(_SIZES))
    at_most = (bounds.keys() - set(_SIZES)) | sizes | (figures.keys() & {"memory"})
    idle = bool(bounds) and all(name in COUNTED and value == now[name] for name, value in bounds.items())
    return Expected(
        {name: _whole(name, value, name in at_most) for name, value in figures.items()},
        frozenset(at_most),
        ("the original meets this budget already: nothing will be removed",) if idle else (),
    )


def _bounds_of(ways: Mapping[str, float], *, more: bool) -> set[str]:
    """Names of the sizes that are bounds, not estimates: all, when other terms may ask for `more` than they do."""
    decisive = {name for name, way in ways.items() if way == max(ways.values())}
    if more:
        return set(_SIZES)
    return decisive.union(_EXACT) if decisive.intersection(_EXACT) else decisive


def _whole(name: str, value: float, bound: bool) -> float:
    """Counts and bytes as whole numbers, those of a bound within it."""
    if TERMS[name].unit not in ("count", "bytes"):
        return value
    return math.floor(value + 1e-6) if bound else round(value)
