"""The distance to a budget: zero exactly when every bound holds, margins only where figures are predicted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.errors import BudgetError, BudgetUnmetError
from lissome.engine.target import Target
from lissome.models.space import Axis, Space, Subnet

_SPACE = Space((Axis("size", tuple(range(1, 101))),))
_ORIGINAL = {"params": 100.0, "latency": 2.0, "decode": 10.0}


def _figures(subnet: Subnet) -> dict[str, float]:
    share = subnet["size"] / 100
    return {"params": 100 * share, "latency": 1 + share, "decode": 10 / (0.5 + 0.5 * share)}


def _target(budget: str, margin: float = 0.0, exact: frozenset[str] = frozenset()) -> Target:
    return Target(Budget.parse(budget), _ORIGINAL, _figures, margin=margin, exact=exact)


@given(size=st.integers(1, 100), params=st.integers(1, 120), decode=st.integers(90, 200))
def test_the_gap_closes_exactly_when_the_budget_holds(size: int, params: int, decode: int) -> None:
    subnet, budget = Subnet({"size": size}), f"params<={params} decode>={decode}%"
    verdicts = Budget.parse(budget).check(_figures(subnet), _ORIGINAL)
    assert _target(budget).holds(subnet) == all(verdict.ok for verdict in verdicts)


def test_progress_runs_from_zero_to_one() -> None:
    target = _target("params=50%")
    progress = target.progress(_SPACE)
    shares = [progress(Subnet({"size": size})) for size in (100, 80, 60, 50, 20)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[3] == shares[4] == 1.0


def test_a_margin_tightens_predicted_terms_only() -> None:
    assert not _target("latency=80%", margin=0.1).holds(Subnet({"size": 60}))
    assert _target("latency=80%").holds(Subnet({"size": 60}))
    assert _target("params=60%", margin=0.1, exact=frozenset({"params"})).holds(Subnet({"size": 60}))


def test_only_unmet_terms_weigh() -> None:
    target = _target("params=50% latency=99%")
    cost = target.weight(Subnet({"size": 90}))
    assert cost(Subnet({"size": 90})) == pytest.approx(90 / 50)


def test_measurements_correct_predictions() -> None:
    target, subnet = _target("latency=80%"), Subnet({"size": 60})
    assert target.holds(subnet)
    target.correct(subnet, {"latency": 1.7})
    assert not target.holds(subnet)
    assert target.loads(subnet)["latency<=80%"] == pytest.approx(1.7 / 1.6)


def test_unreachable_budgets_name_the_range() -> None:
    with pytest.raises(BudgetUnmetError, match=r"params<=0\.5 cannot be met: .*reachable is 1"):
        _target("params<=0.5").require_reachable(_SPACE)
    with pytest.raises(BudgetError, match="cannot be planned"):
        _target("macs<=5").holds(_SPACE.full)
