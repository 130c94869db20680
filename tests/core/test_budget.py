"""The budget language: every term and unit, both operators, what is refused, and how a broken bound is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import TERMS, Budget, Term, Verdict, figure
from lissome.core.errors import BudgetError, BudgetUnmetError

TABLE = {
    "params": ("count", "<="),
    "block_params": ("count", "<="),
    "disk": ("bytes", "<="),
    "memory": ("bytes", "<="),
    "macs": ("count", "<="),
    "latency": ("s", "<="),
    "prefill": ("tokens/s", ">="),
    "decode": ("tokens/s", ">="),
    "energy": ("J", "<="),
    "uplink": ("bytes", "<="),
    "risk": ("", "<="),
}


def test_the_terms_are_those_of_the_documentation() -> None:
    assert {name: kind.unit for name, kind in TERMS.items()} == {name: unit for name, (unit, _) in TABLE.items()}


@pytest.mark.parametrize(("name", "op"), [(name, op) for name, (_, op) in TABLE.items()])
def test_equals_means_the_bound_one_would_want(name: str, op: str) -> None:
    assert Term.parse(f"{name}=50%").op == op


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("params<=100M", 100e6),
        ("params<=100m", 100e6),
        ("block_params=1.5B", 1.5e9),
        ("macs=2G", 2e9),
        ("params=135000000", 135e6),
        ("params=1.35e8", 135e6),
        ("disk<=90MB", 90e6),
        ("disk<=90mb", 90e6),
        ("disk=7", 7),
        ("memory<=1.5GiB", 1.5 * 2**30),
        ("memory=512kib", 512 * 1024),
        ("uplink=3KB", 3000),
        ("latency=250ms", 0.25),
        ("latency = 2 min", 120),
        ("latency=7us", 7e-6),
        ("decode=33.5tokens/s", 33.5),
        ("prefill >= 120 t/s", 120),
        ("energy=5mJ", 0.005),
        ("energy=2kJ", 2000),
        ("risk=0.05", 0.05),
        ("risk<=5%", 0.05),
    ],
)
def test_absolute_bounds(text: str, value: float) -> None:
    term = Term.parse(text)
    assert not term.relative
    assert term.value == pytest.approx(value, rel=1e-15)
    assert term.limit({}) == term.value


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"risk"}))
def test_relative_bounds(name: str) -> None:
    term = Term.parse(f"{name}=85%")
    assert term.relative
    assert term.limit({name: 200.0}) == pytest.approx(170.0)
    with pytest.raises(BudgetError, match=f"original's {name} is not known"):
        term.limit({})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("latency=85%", 1),
        ("latency=85%,params<=100M", 2),
        ("latency=85%; params<=100M", 2),
        ("latency=85% params<=100M decode>=120%", 3),
        (" latency = 85 % , params <= 100 M ,", 2),
        ("params>=5M params<=10M", 2),
    ],
)
def test_terms_stand_together(text: str, count: int) -> None:
    assert len(Budget.parse(text).terms) == count


def test_budgets_stand_for_their_text() -> None:
    first, second = Budget.parse("latency=85%"), Budget.parse("disk<=90MB, params<=50%")
    assert Budget.parse(first) == first
    assert Budget.parse([first, "disk<=90MB", Budget.parse("params<=50%")]) == Budget(first.terms + second.terms)
    with pytest.raises(BudgetError, match="bounded twice"):
        Budget.parse([first, "latency=85%"])


@pytest.mark.parametrize("given", [85, ["latency=85%", 3], [None], Budget(), [Budget(), ""]])
def test_what_is_no_budget_is_refused(given: Any) -> None:
    with pytest.raises(BudgetError, match=r"write for example|a budget is text"):
        Budget.parse(given)


def test_the_flag_may_be_given_again() -> None:
    assert Budget.parse(["latency=85%", "disk<=90MB, params=50%"]) == Budget.parse("latency=85% disk<=90MB params=50%")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" , ;", "empty"),
        ("memroy=85%", "did you mean 'memory'"),
        ("block-params=85%", "did you mean 'block_params'"),
        ("latency", "not a budget term"),
        ("=85%", "not a budget term"),
        ("latency=85% of it", "not a budget term"),
        ("latency=fast", "not a budget term"),
        ("latency<85%", "allowed: =, <=, >="),
        ("latency==85%", "allowed: =, <=, >="),
        ("params=1.2.3", "not a number"),
        ("params=0", "positive"),
        ("params=-5M", "positive"),
        ("params=1e999", "positive"),
        ("params=1e-999", "positive"),
        ("disk=90parsecs", "allowed: B, KB"),
        ("latency=90MB", "allowed: s, ms"),
        ("energy=5MJ", "allowed: J, mJ, kJ"),
        ("risk=1.5", "at most 1"),
        ("latency=85%, latency=90%", "bounded twice"),
        ("params>=10M, params<=5M", "exclude each other"),
    ],
)
def test_what_cannot_be_read_is_explained_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, BudgetUnmetError)


@given(
    name=st.sampled_from(sorted(TABLE)),
    op=st.sampled_from(["<=", ">="]),
    value=st.floats(min_value=1e-30, max_value=1e30),
    relative=st.booleans(),
)
def test_what_is_printed_reads_back(name: str, op: str, value: float, relative: bool) -> None:
    if name == "risk":
        relative, value = False, min(value, 1.0)
    term = Term(name, "<=" if op == "<=" else ">=", value, relative)
    assert Term.parse(str(term)) == term


@given(st.text(max_size=40))
def test_no_text_does_worse_than_a_budget_error(text: str) -> None:
    for expression in (text, f"latency={text}", f"{text}=85%", f"params<=10M {text}"):
        try:
            budget = Budget.parse(expression)
        except BudgetError:
            continue
        assert Budget.parse(str(budget)) == budget


def test_printing_is_short() -> None:
    assert str(Budget.parse("params<=100000000, memory=1610612736, latency=0.25")) == (
        "params<=100M, memory<=1.5GiB, latency<=0.25s"
    )


def test_check_names_every_term_and_require_the_broken_one() -> None:
    budget = Budget.parse("latency=85%, decode>=120%, disk<=90MB")
    original = {"latency": 2.0, "decode": 10.0}
    got = {"latency": 1.6, "decode": 11.0, "disk": 80e6}
    verdicts = budget.check(got, original)
    assert [verdict.ok for verdict in verdicts] == [True, False, True]
    assert [round(verdict.slack, 3) for verdict in verdicts] == [0.059, -0.083, 0.111]
    with pytest.raises(BudgetUnmetError) as caught:
        budget.require(got, original)
    assert "decode>=120% NOT met: 11 tokens/s against 12 tokens/s" in str(caught.value)
    assert "latency" not in str(caught.value)
    assert budget.require({**got, "decode": 12.0}, original)


def test_a_figure_that_was_not_taken_cannot_pass() -> None:
    with pytest.raises(BudgetError, match="latency was not counted or measured"):
        Budget.parse("latency=85%").check({"params": 1.0}, {"latency": 1.0})


def test_nan_meets_no_bound() -> None:
    for text in ("latency=1s", "decode=1"):
        assert not Budget.parse(text).check({"latency": math.nan, "decode": math.nan}, {})[0].ok


def test_an_original_that_costs_nothing_has_a_slack() -> None:
    term = Term.parse("uplink=50%")
    assert Verdict(term, 0.0, 0.0).slack == 0
    assert Verdict(term, 0.0, 1.0).slack == -math.inf


def test_an_impossible_bound_shows_the_reachable_range() -> None:
    smallest, full = {"params": 30e6, "decode": 10.0}, {"params": 120e6, "decode": 25.0}
    original = {"params": 120e6, "decode": 10.0}
    with pytest.raises(
        BudgetUnmetError, match=r"params<=1% cannot be met: the bound is 1\.2M.*30M to 120M \(25\.0% to 100"
    ):
        Budget.parse("params=1%").require_reachable(smallest, full, original)
    with pytest.raises(BudgetUnmetError, match="10 tokens/s to 25 tokens/s"):
        Budget.parse("decode>=26").require_reachable(smallest, full, original)
    Budget.parse("params=25%, decode>=120%, disk<=1KB").require_reachable(smallest, full, original)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("params", 134_515_008, "134.5M"),
        ("params", 12, "12"),
        ("disk", 98.2e6, "98.2MB"),
        ("disk", 0, "0B"),
        ("latency", 0.0813, "81.3ms"),
        ("latency", 12.34, "12.34s"),
        ("decode", 33.1234, "33.12 tokens/s"),
        ("risk", 0.05, "0.05"),
        ("energy", 3.1, "3.1 J"),
    ],
)
def test_figures_for_a_person(name: str, value: float, text: str) -> None:
    assert figure(name, value) == text


def test_an_empty_budget_is_false() -> None:
    assert not Budget()
    assert Budget.parse("params=50%")
    assert Budget.parse("params=50% disk=1B").names == {"params", "disk"}
