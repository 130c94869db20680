"""Objectives and bounds: what is read, what holds, and what is refused with a line that helps."""

from __future__ import annotations

import math

import pytest

from lissome.core.errors import ArtifactError, BudgetError, ConfigError
from lissome.engine.search import Bound, Goal, Objective


@pytest.mark.parametrize(
    ("text", "name", "better"),
    [
        ("ppl", "ppl", "lower"),
        ("decode", "decode", "higher"),
        (" accuracy ", "accuracy", "higher"),
        ("max dice", "dice", "higher"),
        ("min cycles", "cycles", "lower"),
        ("max ppl", "ppl", "higher"),
    ],
)
def test_objectives_know_or_are_told_which_way_is_better(text: str, name: str, better: str) -> None:
    assert Objective.parse(text) == Objective(name, better)  # type: ignore[arg-type]


def test_an_objective_of_unknown_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'latency'\?.*'min NAME' or 'max NAME'"):
        Objective.parse("latncy")
    with pytest.raises(ConfigError, match="needs an objective"):
        Goal(())
    with pytest.raises(ConfigError, match="stands twice in ppl, ppl"):
        Goal.of(["ppl", "ppl"])


def test_a_budget_becomes_bounds_in_the_units_of_the_figures() -> None:
    goal = Goal.of(["ppl", "latency"], "params<=80%, decode>=50", original={"params": 1e6})
    assert goal.bounds == (Bound("params", "<=", 8e5), Bound("decode", ">=", 50.0))
    assert [str(bound) for bound in goal.bounds] == ["params<=800K", "decode>=50 tokens/s"]
    figures = {"ppl": 20.0, "latency": 1.0, "params": 1e6, "decode": 40.0}
    assert goal.excesses(figures) == pytest.approx({"params<=800K": 0.25, "decode>=50 tokens/s": 0.2})
    assert goal.breach(figures) == pytest.approx(0.45)
    assert goal.breach({"params": 8e5, "decode": 50.0}) == 0
    with pytest.raises(BudgetError, match="relative, but the original's params is not known"):
        Goal.of("ppl", "params<=80%")


def test_values_are_to_be_minimised_and_infinite_where_not_taken() -> None:
    goal = Goal.of(["max accuracy", "macs"])
    assert goal.values({"accuracy": 0.9, "macs": 5.0}) == (-0.9, 5.0)
    assert goal.values({"macs": 5.0}) == (math.inf, 5.0)
    with pytest.raises(BudgetError, match=r"unknown figure 'accuracy'; .*known: acc, macs"):
        goal.require({"acc": 1.0, "macs": 2.0})


def test_a_bound_of_zero_and_of_any_figure() -> None:
    bound = Bound("violation", "<=", 0.0)
    assert [bound.excess(value) for value in (-1.0, 0.0, 2.0)] == [-1.0, 0.0, 2.0]
    assert str(bound) == "violation<=0"


def test_json_there_and_back() -> None:
    goal = Goal.of(["max accuracy", "macs"], "latency<=2ms")
    assert Goal.from_json(goal.to_json()) == goal
    with pytest.raises(ArtifactError):
        Goal.from_json({"objectives": [{"name": "a", "better": "sideways"}]})
