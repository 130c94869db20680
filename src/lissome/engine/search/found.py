"""What a search found, as a JSON-able value: every Subnet with its figures, the front, and the choice.

Three splits, three purposes: the search itself looks at the first, the choice among the front is made on the second,
and the chosen one is reported on the third, which had no part in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lissome.core.budget import Budget
from lissome.core.errors import (
    ArtifactError,
    BudgetError,
    BudgetUnmetError,
    ConfigError,
    SubnetError,
    unknown_name,
)
from lissome.core.files import read_json, write_json
from lissome.core.metrics import Provenance
from lissome.core.typed import as_json, from_json
from lissome.engine.search.goal import Goal
from lissome.engine.search.pareto import front, hypervolume, reference_of
from lissome.models.space import Space, Subnet

Split = Literal["search", "selection", "test"]

SPLITS: tuple[Split, ...] = ("search", "selection", "test")
"""What figures of quality can come from, in the order of their use."""

_DAMAGED = "the file is damaged, restore it or give the search's command again."


@dataclass(frozen=True, kw_only=True)
class Point:
    """One Subnet that was evaluated.

    Attributes:
        number: Its place in the order of proposals.
        choices: Its choices, in the order of the Space's axes.
        figures: Costs, and quality on the search split; no quality when a cost broke a bound.
        selection: Quality on the selection split, for those that were compared there.
        test: Quality on the test split, for the chosen one and the original.
        by: Who proposed it.
        seconds: What the evaluation took.
    """

    number: int
    choices: tuple[int, ...]
    figures: Mapping[str, float]
    selection: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    seconds: float = 0.0

    @property
    def judged(self) -> dict[str, float]:
        """What it is chosen by: costs, and quality on the selection split where that is known."""
        return {**self.figures, **self.selection}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        space: What was searched.
        goal: What for.
        points: Every Subnet that was evaluated, in the order of proposals.
        front: Places, in `points`, of those that hold every bound and that nothing beats; best first objective first.
        chosen: Place of the one that is chosen under the goal; None when nothing holds, or when there are several
            objectives and no bound that would say which of them matters how much.
        original: Figures of the original, which relative bounds refer to.
        provenance: How each figure came about.
        splits: What each split is: a name, or a hash of its data.
        failed: How many Subnets gave no figures, by the reason.
        sampler: Name of the sampler.
        seed: Seed of the search.
    """

    space: Space
    goal: Goal
    points: tuple[Point, ...]
    front: tuple[int, ...] = ()
    chosen: int | None = None
    original: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    sampler: str = ""
    seed: int = 0

    def subnet(self, place: int) -> Subnet:
        """Return the Subnet at a place of `points`."""
        names = (axis.name for axis in self.space.axes)
        return Subnet(dict(zip(names, self.points[place].choices, strict=True)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Places of what is kept ready to be taken: the front, and the choice.

        The whole network, say, can be chosen for its quality on the selection split without being on the front.
        """
        chosen = () if self.chosen is None else (self.chosen,)
        return tuple(dict.fromkeys((*self.front, *chosen)))

    def sorted(self) -> Found:
        """Return it with its front and its choice worked out anew, after points or figures were added."""
        holding = self.holding(self.goal)
        values = [self.goal.values(self.points[place].figures) for place in holding]
        best = [index for index in front(values) if values.index(values[index]) == index]  # of equal ones the first
        places = tuple(holding[index] for index in sorted(best, key=lambda index: values[index]))
        found = replace(self, front=places)
        return replace(found, chosen=found.choice())

    def holding(self, goal: Goal) -> list[int]:
        """Return the places of the points whose figures hold every bound of a goal; unknown figures hold none."""
        return [
            place
            for place, point in enumerate(self.points)
            if all(name in point.figures for name in goal.names)
            and all(bound.name in point.judged and bound.excess(point.judged[bound.name]) <= 0 for bound in goal.bounds)
        ]

    def choice(self, goal: Goal | None = None) -> int | None:
        """Return the place of the best first objective among what holds; the next objectives decide between equals.

        Points that were compared on the selection split go before those that were not.
        """
        goal = goal or self.goal
        if len(goal.objectives) > 1 and not goal.bounds:
            return None
        holding = self.holding(goal)
        compared = [place for place in holding if self.points[place].selection] or holding
        return min(compared, key=lambda place: goal.values(self.points[place].judged), default=None)

    def choose(self, budget: Budget) -> int:
        """Return the place of the point to take under another budget, without any new evaluation.

        Raises:
            BudgetError: When the budget bounds a figure that was not taken.
            BudgetUnmetError: When no point holds it; names the range that the points reach.
        """
        figures = [point.judged for point in self.points]
        known = {name for each in figures for name in each}
        for name in sorted(budget.names - known):  # before a relative bound is read, which needs the original's
            raise BudgetError(unknown_name("figure", name, known, "This search took no other ones."))
        goal = replace(self.goal, bounds=Goal.of(self.goal.objectives, budget, original=self.original).bounds)
        place = self.choice(goal)
        if place is None:
            low, high = (
                {name: pick(each[name] for each in figures if name in each) for name in budget.names}
                for pick in (min, max)
            )
            budget.require_reachable(low, high, self.original)
            raise BudgetUnmetError(f"no evaluated Subnet holds {budget}; search on with more trials.")
        return place

    def hypervolume(self, reference: Sequence[float] | None = None, *, trials: int | None = None) -> float:
        """Return the volume that the points which hold every bound leave behind them.

        Args:
            reference: A corner, in objectives to minimise (default: the front's worst, a tenth further out).
            trials: Look at the first so many points only.
        """
        if reference is None:
            if not self.front:
                return 0.0
            reference = reference_of([self.goal.values(self.points[place].figures) for place in self.front])
        last = len(self.points) if trials is None else trials
        holding = [place for place in self.holding(self.goal) if place < last]
        return hypervolume([self.goal.values(self.points[place].figures) for place in holding], reference)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any, where: str = "found") -> Found:
        """Rebuild it from `to_json`.

        Raises:
            ArtifactError: When a field is unknown, missing or of another type, or its fields do not fit each other.
        """
        try:
            found = from_json(cls, fields, where)
        except (ConfigError, SubnetError) as error:  # of its goal and its Space
            raise ArtifactError(f"{where}: {str(error).removesuffix('.')}; {_DAMAGED}") from error
        found._check(where)
        return found

    def _check(self, where: str) -> None:
        """Refuse places and choices that there are not."""
        named = [(f"front[{index}]", place) for index, place in enumerate(self.front)]
        for name, place in [*named, *([] if self.chosen is None else [("chosen", self.chosen)])]:
            if not 0 <= place < len(self.points):
                shown = place if abs(place) < 10**9 else "a number far beyond them"
                raise ArtifactError(
                    f"{where}.{name} is {shown}, but there are {len(self.points)} points, counted from 0; {_DAMAGED}"
                )
        axes = self.space.axes
        for index, point in enumerate(self.points):
            if len(point.choices) != len(axes):
                raise ArtifactError(
                    f"{where}.points[{index}] has {len(point.choices)} choices for {len(axes)} axes; {_DAMAGED}"
                )
            wrong = next((axis for axis, one in zip(axes, point.choices, strict=True) if one not in axis.choices), None)
            if wrong is not None:
                raise ArtifactError(
                    f"{where}.points[{index}] makes a choice that {ascii(wrong.name)[:60]} does not have; {_DAMAGED}"
                )

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Found:
        """Read it from JSON.

        Raises:
            ArtifactError: When the file is missing, damaged, or of another version.
        """
        return cls.from_json(read_json(path), str(path))
