"""What is searched: a Space, what its Subnets give, and what for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lissome.core.budget import TERMS, figure
from lissome.core.errors import BudgetUnmetError, NumericsError, SubnetError
from lissome.core.metrics import Provenance
from lissome.engine.search.goal import Goal
from lissome.models.space import Space, Subnet

Evaluate = Callable[[Subnet], Mapping[str, float]]
"""Figures of a Subnet by name: of the Subnet alone, so the same ones every time."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A search to be made.

    Attributes:
        space: What is searched; it may have nothing to do with a model.
        goal: What for.
        evaluate: Figures of a Subnet on the search split; without `costs` all of them.
        costs: Figures that take next to no time. A Subnet whose costs break a bound is not evaluated further: how far
            it breaks the bound is all that the search needs of it.
        selection: Figures of quality on the selection split, on which the front is compared.
        test: Figures of quality on the test split, on which the chosen Subnet is reported.
        start: Subnets to begin with; None for the full one, the smallest one, and `Space.levels` between.
        monotone: Whether no Subnet costs more than the full one or less than the smallest, so that a bound beyond both
            can be refused before any work.
        original: Figures of the original, which relative bounds refer to.
        provenance: How each figure comes about.
        splits: What each split is: a name, or a hash of its data.
        key: What figures depend on besides the Space, JSON-able: the model's hash, data, settings.
    """

    space: Space
    goal: Goal
    evaluate: Evaluate
    costs: Evaluate | None = None
    selection: Evaluate | None = None
    test: Evaluate | None = None
    start: tuple[Subnet, ...] | None = None
    monotone: bool = False
    original: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    key: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse, before any work, what cannot be searched.

        Raises:
            SubnetError: When the Space leaves nothing to choose, or a Subnet to start from is not of it.
            BudgetUnmetError: When no Subnet can hold a bound; names the range that can be reached.
        """
        if not any(len(axis.choices) > 1 for axis in self.space.axes):
            raise SubnetError(
                f"the Space leaves nothing to choose ({len(self.space.axes)} axes, one choice each); "
                "give one in which an axis has two choices or more."
            )
        self.beginning()
        if self.costs is not None and self.monotone:
            require_reachable(self.goal, self.costs(self.space.smallest), self.costs(self.space.full), self.original)

    def beginning(self) -> tuple[Subnet, ...]:
        """Return the Subnets to start from, each once.

        Raises:
            SubnetError: When one is not of the Space.
        """
        space = self.space
        given = (space.full, space.smallest, *space.levels()) if self.start is None else self.start
        return tuple(dict.fromkeys(self.space.check(subnet) for subnet in given))

    def figures(self, subnet: Subnet) -> dict[str, float]:
        """Return the figures of a Subnet: costs, and those of quality unless a cost breaks a bound.

        Raises:
            BudgetError: When a figure that the goal speaks of was not taken.
            NumericsError: When a figure is NaN or infinite.
        """
        found = dict(self.costs(subnet)) if self.costs is not None else {}
        if self.goal.breach(found) == 0:
            found |= self.evaluate(subnet)
            self.goal.require(found)
        for name, value in found.items():
            if not math.isfinite(value):
                raise NumericsError(f"the figure {name} of a Subnet is {value}.")
        return {name: float(value) for name, value in found.items()}

    def identity(self) -> dict[str, Any]:
        """What makes this search itself: another one is not continued in its place."""
        text = json.dumps(self.space.to_json(), sort_keys=True)
        return {
            **self.key,
            "space": hashlib.sha256(text.encode()).hexdigest()[:16],
            "objectives": [str(objective) for objective in self.goal.objectives],
            "bounds": [str(bound) for bound in self.goal.bounds],
        }


def require_reachable(
    goal: Goal, least: Mapping[str, float], most: Mapping[str, float], original: Mapping[str, float]
) -> None:
    """Refuse bounds that neither end of the reachable range holds.

    Args:
        goal: The bounds.
        least: Figures of the smallest Subnet; bounds on others are not checked.
        most: Figures of the full Subnet.
        original: Figures of the original, to say the range in percent too.

    Raises:
        BudgetUnmetError: Names each such bound and the range.
    """
    broken = []
    for bound in goal.bounds:
        if bound.name in least and bound.name in most:
            low, high = sorted((least[bound.name], most[bound.name]))
            if bound.excess(low) > 0 and bound.excess(high) > 0:
                text = " to ".join(_figure(bound.name, value) for value in (low, high))
                whole = original.get(bound.name)
                share = f" ({low / whole:.1%} to {high / whole:.1%} of the original)" if whole else ""
                broken.append(f"{bound} cannot be met: reachable is {text}{share}")
    if broken:
        raise BudgetUnmetError("; ".join(broken) + "; give a bound in this range.")


def _figure(name: str, value: float) -> str:
    return figure(name, value) if name in TERMS else f"{value:.4g}"
