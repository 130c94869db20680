"""What a search is after: figures to make better, and bounds that must hold, in the language of budgets.

A Subnet that breaks a bound is not thrown away: how far it breaks it guides the search (constrained domination, Deb
2000; Deb et al. 2002, NSGA-II): one that holds beats one that does not, the smaller breach beats the larger, and
only Subnets that hold are compared by their objectives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lissome.core.budget import TERMS, Budget, Operator, figure
from lissome.core.errors import BudgetError, ConfigError, unknown_name
from lissome.core.metrics import Better
from lissome.core.typed import as_json, from_json

QUALITIES: dict[str, Better] = {
    "accuracy": "higher",
    "agreement": "higher",
    "best_miou": "higher",
    "error": "lower",
    "exact": "higher",
    "f1": "higher",
    "kl": "lower",
    "loss": "lower",
    "miou": "higher",
    "ppl": "lower",
}
"""Which way is better, for figures of quality that are known by name; budget terms know it themselves."""

_WAYS: dict[str, Better] = {"min": "lower", "max": "higher"}


@dataclass(frozen=True)
class Objective:
    """A figure to make better."""

    name: str
    better: Better

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``"ppl"``, or ``"min NAME"`` and ``"max NAME"`` for a figure whose better side is not known by name.

        Raises:
            ConfigError: When the better side is not known and was not said.
        """
        way, _, rest = text.strip().partition(" ")
        if way in _WAYS and rest.strip():
            return cls(rest.strip(), _WAYS[way])
        known = QUALITIES | {name: kind.better for name, kind in TERMS.items()}
        name = text.strip()
        if name not in known:
            raise ConfigError(
                unknown_name("objective", name, known, "Of another figure say which way: 'min NAME' or 'max NAME'.")
            )
        return cls(name, known[name])

    def lower(self, value: float) -> float:
        """Return a value as something to minimise."""
        return value if self.better == "lower" else -value

    def __str__(self) -> str:
        return f"{'min' if self.better == 'lower' else 'max'} {self.name}"


@dataclass(frozen=True)
class Bound:
    """A figure that must not pass a limit; of any name, also such as no budget term has.

    Attributes:
        name: Name of the figure.
        op: ``"<="`` or ``">="``.
        limit: In the figure's own unit; never relative.
    """

    name: str
    op: Operator
    limit: float

    def excess(self, value: float) -> float:
        """How far a value passes the limit, as a share of it (a limit of 0 has none); at most 0 when it holds."""
        over = value - self.limit if self.op == "<=" else self.limit - value
        return over / abs(self.limit) if self.limit else over

    def __str__(self) -> str:
        text = figure(self.name, self.limit) if self.name in TERMS else f"{self.limit:g}"
        return f"{self.name}{self.op}{text}"


@dataclass(frozen=True)
class Goal:
    """Objectives, the most important one first, and bounds.

    Raises:
        ConfigError: When there is no objective, or one stands twice.
    """

    objectives: tuple[Objective, ...]
    bounds: tuple[Bound, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if not names:
            raise ConfigError("a search needs an objective; say for example ppl, latency or 'max accuracy'.")
        if len(set(names)) < len(names):
            raise ConfigError(f"an objective stands twice in {', '.join(names)}; keep one of them.")

    @classmethod
    def of(
        cls,
        objectives: Sequence[Objective | str] | str,
        budget: Budget | str | None = None,
        *,
        original: Mapping[str, float] | None = None,
    ) -> Goal:
        """Read objectives and a budget.

        Args:
            objectives: One or several; see `Objective.parse`.
            budget: The bounds.
            original: Figures of the original, which relative bounds refer to.

        Raises:
            BudgetError: When the budget cannot be read, or is relative to a figure that is not known.
            ConfigError: When an objective is not understood.
        """
        several = [objectives] if isinstance(objectives, str) else objectives
        read = [Objective.parse(one) if isinstance(one, str) else one for one in several]
        bounds = Budget.parse(budget) if isinstance(budget, str) else budget or Budget()
        limits = (Bound(term.name, term.op, term.limit(original or {})) for term in bounds.terms)
        return cls(tuple(read), tuple(limits))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives."""
        return tuple(objective.name for objective in self.objectives)

    def values(self, figures: Mapping[str, float]) -> tuple[float, ...]:
        """Return the objectives as numbers to minimise; infinite where a figure was not taken."""
        return tuple(
            objective.lower(figures[objective.name]) if objective.name in figures else math.inf
            for objective in self.objectives
        )

    def excesses(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return how far each bound is passed, by its text; bounds on figures that were not taken are left out."""
        return {str(bound): bound.excess(figures[bound.name]) for bound in self.bounds if bound.name in figures}

    def breach(self, figures: Mapping[str, float]) -> float:
        """Return the sum of all excesses above 0; 0 when every bound holds."""
        return sum(max(0.0, excess) for excess in self.excesses(figures).values())

    def require(self, figures: Collection[str]) -> None:
        """Refuse figures in which an objective or a bounded one is missing; see `check_figures`."""
        check_figures((*self.names, *(bound.name for bound in self.bounds)), figures)

    def to_json(self) -> dict[str, Any]:
        """Return the goal as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any, where: str = "goal") -> Goal:
        """Rebuild a goal from `to_json`.

        Raises:
            ArtifactError: When a field is unknown, missing or of another type.
        """
        return from_json(cls, fields, where)


def check_figures(names: Iterable[str], taken: Collection[str]) -> None:
    """Refuse to speak of figures that a search does not take.

    Args:
        names: What is spoken of.
        taken: Names of the figures that there are.

    Raises:
        BudgetError: Names the first that is missing, and what there is.
    """
    for name in names:
        if name not in taken:
            raise BudgetError(unknown_name("figure", name, taken, "This search takes no other ones."))
