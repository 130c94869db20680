"""How far a Subnet is from its budget, as one number that a removal loop can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lissome.core.budget import Budget, Term
from lissome.core.errors import BudgetError
from lissome.models.space import Space, Subnet

Figures = Callable[[Subnet], Mapping[str, float]]


class Target:
    """A budget seen from one Space.

    Args:
        budget: The bounds.
        original: Figures of the original, for relative bounds.
        figures: Predicts a Subnet's figures by budget term.
        margin: Share by which predicted terms must undershoot their bound, because a prediction errs.
        exact: Names of terms that are counted and need no margin.
    """

    def __init__(
        self,
        budget: Budget,
        original: Mapping[str, float],
        figures: Figures,
        *,
        margin: float = 0.0,
        exact: frozenset[str] = frozenset(),
    ) -> None:
        self._figures, self._budget, self._original = figures, budget, original
        self._limits = {
            term: self._limit(term, original, 0.0 if term.name in exact else margin) for term in budget.terms
        }

    @staticmethod
    def _limit(term: Term, original: Mapping[str, float], margin: float) -> float:
        limit = term.limit(original)
        return limit * (1 - margin) if term.op == "<=" else limit * (1 + margin)

    def correct(self, subnet: Subnet, measured: Mapping[str, float]) -> None:
        """Scale the predictions so that they equal what was measured for `subnet`."""
        predicted, former = self._figures(subnet), self._figures
        scale = {name: value / predicted[name] for name, value in measured.items() if predicted.get(name)}
        self._figures = lambda other: {name: value * scale.get(name, 1.0) for name, value in former(other).items()}

    def loads(self, subnet: Subnet) -> dict[str, float]:
        """Load of every term: figure over bound (bound over figure for speeds); at most 1 when it holds.

        Raises:
            BudgetError: When a term cannot be predicted for a Subnet.
        """
        figures = self._figures(subnet)
        loads = {}
        for term, limit in self._limits.items():
            if term.name not in figures:
                raise BudgetError(
                    f"{term} cannot be planned: removal has no prediction of {term.name}; it can follow "
                    f"{', '.join(sorted(figures))}."
                )
            got = figures[term.name]
            loads[str(term)] = got / limit if term.op == "<=" else limit / got
        return loads

    def gap(self, subnet: Subnet) -> float:
        """Sum over terms of the load above 1; 0 when the budget holds."""
        return sum(max(0.0, load - 1.0) for load in self.loads(subnet).values())

    def holds(self, subnet: Subnet) -> bool:
        """Whether every bound is predicted to hold."""
        return self.gap(subnet) <= 0.0

    def weight(self, unmet: Subnet) -> Callable[[Subnet], float]:
        """Return a cost that counts only the terms which `unmet` still breaks."""
        names = [name for name, load in self.loads(unmet).items() if load > 1.0]
        return lambda subnet: sum(load for name, load in self.loads(subnet).items() if name in names)

    def progress(self, space: Space) -> Callable[[Subnet], float]:
        """Return the share of the way from the full Subnet to the budget, 0..1."""
        whole = self.gap(space.full)
        return lambda subnet: 1.0 - self.gap(subnet) / whole if whole > 0 else 1.0

    def require_reachable(self, space: Space) -> None:
        """Refuse a budget that no Subnet of a Space can meet.

        Raises:
            BudgetUnmetError: Names each such term and the range that can be reached.
        """
        self._budget.require_reachable(self._figures(space.smallest), self._figures(space.full), self._original)
