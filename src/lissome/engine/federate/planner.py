"""Which Subnet a device gets: the largest one, or one drawn at random, within its budget.

Budgets are counted for the Subnet alone (parameters, multiply-accumulates, bytes on disk, memory of a run); ``uplink``
is what one answer sends. Choices other than these, such as a search for the most accurate one, are a method's business.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lissome.core.budget import Budget, figure
from lissome.core.errors import BudgetError, BudgetUnmetError, unknown_name
from lissome.core.protocols import CostOracle
from lissome.engine.paths import share_of
from lissome.models.space import Space, Subnet

Uplink = Callable[[Subnet], float]
"""Bytes that a client with such a Subnet sends in a round."""


class Planner:
    """Finds Subnets of one Space within budgets.

    Args:
        space: The axes to choose from; others stay full.
        cost: What a Subnet costs.
        uplink: What it sends; without it budgets cannot bound that.
    """

    def __init__(self, space: Space, cost: CostOracle, uplink: Uplink | None = None) -> None:
        self.space, self._cost, self._uplink = space, cost, uplink
        self._figures: dict[Subnet, dict[str, float]] = {}
        self._largest: dict[str, Subnet] = {}
        self.full = self.figures(space.full)

    def figures(self, subnet: Subnet) -> dict[str, float]:
        """Return what a Subnet costs, by budget term."""
        if subnet not in self._figures:
            if len(self._figures) > 10_000:  # random Subnets of a long run
                self._figures.clear()
            found = dict(self._cost.figures(subnet))
            if self._uplink is not None:
                found["uplink"] = self._uplink(subnet)
            self._figures[subnet] = found
        return self._figures[subnet]

    def fits(self, subnet: Subnet, budget: Budget) -> bool:
        """Whether a Subnet respects every bound."""
        return all(verdict.ok for verdict in budget.check(self.figures(subnet), self.full))

    def use(self, subnet: Subnet, budget: Budget) -> float:
        """Return the share of a budget that a Subnet uses: of the bound that leaves least; 1 without bounds."""
        verdicts = budget.check(self.figures(subnet), self.full)
        return max((verdict.got / verdict.limit for verdict in verdicts if verdict.term.op == "<="), default=1.0)

    def largest(self, budget: Budget) -> Subnet:
        """Return the Subnet that all axes shrink to alike, then grown axis by axis while the budget lasts.

        Every axis takes its largest choice of at most the same share of the whole (HeteroFL's static widths, Diao et
        al. 2021, arXiv 2010.01264). Equal budgets get equal Subnets, so that one slice serves all devices of a kind.

        Raises:
            BudgetError: When it bounds what nobody can know before training; says what can be bounded.
            BudgetUnmetError: When even the smallest Subnet is too large; says the reachable range.
        """
        key = str(budget)
        if key not in self._largest:
            self._require_known(budget)
            self._largest[key] = self.grown(self._shrunk(budget), budget)
        return self._largest[key]

    def random(self, budget: Budget, rng: Random) -> Subnet:
        """Draw a Subnet: uniform over the choices of each axis, then random axes go down until it fits.

        Raises:
            BudgetUnmetError: As `largest`.
        """
        self._require_known(budget)
        subnet = self.space.sample(rng, keep=1.0)
        stuck: set[str] = set()
        while not self.fits(subnet, budget):
            movable = [one for one in self.space.axes if one.below(subnet[one.name]) is not None]
            movable = [one for one in movable if one.name not in stuck]
            if not movable:
                if not self.fits(self.space.smallest, budget):
                    raise self._unreachable(budget)
                return self.space.smallest
            axis = rng.choice(movable)
            below = axis.below(subnet[axis.name])
            assert below is not None
            changed = self.space.canonical(subnet.replace({axis.name: below}))
            if changed == subnet or not self.space.allows(changed):
                stuck.add(axis.name)  # a quorum forbids it, or its branch is gone
            else:
                subnet = changed
        return subnet

    def _shrunk(self, budget: Budget) -> Subnet:
        whole = {axis.name: axis for axis in self.space.axes}
        shares = sorted({value / axis.full for axis in whole.values() for value in axis.choices if axis.full > 1})
        for share in reversed(shares or [1.0]):
            values = {
                name: axis.full if axis.choices == (0, 1) else max(
                    (value for value in axis.choices if value <= share_of(axis.full, share)), default=axis.choices[0]
                )
                for name, axis in whole.items()
            }  # fmt: skip
            subnet = self.space.canonical(Subnet(values))
            if self.fits(subnet, budget):
                return subnet
        if self.fits(self.space.smallest, budget):
            return self.space.smallest
        raise self._unreachable(budget)

    def grown(self, subnet: Subnet, budget: Budget) -> Subnet:
        """Return a Subnet whose axes were raised, one after the other by one choice, while the result fits."""
        moved = True
        while moved:
            moved = False
            for axis in self.space.axes:
                index = axis.choices.index(subnet[axis.name])
                if index + 1 < len(axis.choices):
                    larger = self.space.canonical(subnet.replace({axis.name: axis.choices[index + 1]}))
                    if larger != subnet and self.fits(larger, budget):
                        subnet, moved = larger, True
        return subnet

    def _require_known(self, budget: Budget) -> None:
        for term in budget.terms:
            if term.name not in self.full:
                why = "A server cannot time what it does not run; bound macs for speed."
                raise BudgetError(unknown_name("term of a device's budget", term.name, tuple(self.full), why))

    def _unreachable(self, budget: Budget) -> BudgetUnmetError:
        least, names = self.figures(self.space.smallest), dict.fromkeys(term.name for term in budget.terms)
        ends = {name: sorted((least[name], self.full[name])) for name in names}
        ranges = ", ".join(f"{name} {figure(name, low)} to {figure(name, high)}" for name, (low, high) in ends.items())
        step = "give a bound in this range."
        if len(budget.terms) > 1:
            step = "sizes come in steps, so that bounds in this range may leave none between them: widen or drop one."
        return BudgetUnmetError(f"no Subnet meets {budget}; reachable is {ranges}; {step}")
