"""The contract of methods: what a plan expects, and points of the curve as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.errors import ArtifactError, BudgetUnmetError
from lissome.core.method import CurvePoint, Method, ModelCard, Outcome, Plan, expected_figures

CARD = ModelCard(
    name="toy",
    family="decoder",
    architecture="llama",
    tags=frozenset({"dense", "decoder"}),
    figures={"params": 100e6, "decode": 20.0},
    reachable={"params": 40e6, "decode": 50.0},
    hidden=64,
    layers=4,
    vocabulary=100,
)


def test_expected_figures_are_the_bounds_in_units() -> None:
    assert expected_figures(CARD, Budget.parse("params=85%, decode>=30")) == {"params": 85e6, "decode": 30.0}


def test_a_loose_bound_expects_no_change() -> None:
    assert expected_figures(CARD, Budget.parse("params<=200%, decode>=1")) == {"params": 100e6, "decode": 20.0}


def test_a_bound_against_getting_better_expects_nothing() -> None:
    assert expected_figures(CARD, Budget.parse("params<=80%, params>=50%, decode<=400%")) == {"params": 80e6}


@pytest.mark.parametrize("text", ["params=39%", "params<=39M", "decode>=51", "decode=300%"])
def test_a_bound_out_of_reach_is_refused_by_the_plan(text: str) -> None:
    with pytest.raises(BudgetUnmetError, match="cannot be met"):
        expected_figures(CARD, Budget.parse(["disk=1GB", text]))


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        CurvePoint,
        step=st.integers(0),
        change=st.text(),
        subnet=st.dictionaries(st.text(), st.integers(), max_size=3),
        figures=st.dictionaries(st.text(), FINITE, max_size=3),
        quality=st.dictionaries(st.text(), FINITE, max_size=3),
    )
)
def test_a_curve_point_there_and_back(point: CurvePoint) -> None:
    assert CurvePoint.from_json(json.loads(json.dumps(point.to_json()))) == point


@pytest.mark.parametrize(
    "change", [{"step": "1"}, {"subnet": {"a": 1.5}}, {"subnet": [1]}, {"quality": {"ppl": "x"}}, {"x": 1}]
)
def test_a_damaged_curve_point(change: dict[str, Any]) -> None:
    whole = {"step": 1, "change": "", "subnet": {"a": 1}, "figures": {}, "quality": {}}
    assert CurvePoint.from_json(whole).step == 1
    with pytest.raises(ArtifactError):
        CurvePoint.from_json(whole | change)


def test_a_method_must_plan_and_run() -> None:
    class PlansOnly(Method):
        def plan(self, card: ModelCard, budget: Budget) -> Plan:
            return Plan(figures={}, peak_memory=0.0)

    with pytest.raises(TypeError, match="run"):
        PlansOnly(Method.Config())  # type: ignore[abstract]


def test_an_outcome_needs_only_its_value() -> None:
    assert Outcome(kind="model", value=3).curve == ()
