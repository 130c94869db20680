"""What a removal is expected to come out at: never beyond the original, whole numbers, sizes that fall together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.method import ModelCard, expected_figures
from lissome.cost.expected import Expected, expected_of_removal

NOW = {
    "params": 1000.0, "block_params": 800.0, "disk": 4100.0, "macs": 9000.0, "memory": 7000.5, "latency": 2.0,
    "decode": 10.0,
}  # fmt: skip
LEAST = {
    "params": 210.0, "block_params": 10.0, "disk": 900.0, "macs": 700.0, "memory": 1000.25, "latency": 0.5,
    "decode": 40.0,
}  # fmt: skip
SIZES = {"params", "block_params", "disk", "memory"}
CARD = ModelCard(
    name="m", family="decoder", architecture="llama", tags=frozenset({"dense"}), figures=NOW, reachable=LEAST,
    hidden=8, layers=2, vocabulary=10,
)  # fmt: skip


def expect(budget: str) -> Expected:
    return expected_of_removal(CARD, expected_figures(CARD, Budget.parse(budget)))


def test_a_cut_of_the_blocks_is_a_cut_of_all_parameters() -> None:
    found = expect("block_params<=600")
    assert found.figures["params"] == 800
    assert found.at_most == {"params", "block_params", "memory"}
    assert found.figures.keys() == SIZES, "what a cut does to time and operations is not known"
    assert found.figures["disk"] == pytest.approx(4 * 800 + 100, rel=0.02)


def test_the_bound_that_asks_for_most_decides() -> None:
    loose = expect("block_params<=600, params<=95%, disk<=99%")
    assert loose == expect("block_params<=600")
    assert expect("params<=50%, block_params<=200%").figures["block_params"] == 300


def test_a_bound_on_time_says_nothing_of_sizes() -> None:
    assert expect("latency=50%") == Expected({"latency": 1.0}, frozenset({"latency"}))
    both = expect("latency=50%, params=80%")
    assert both.figures["params"] == 800
    assert both.at_most == SIZES | {"latency"}, "the bound on time may ask for more"


def test_a_budget_that_holds_already_is_said() -> None:
    found = expect("params<=200%")
    assert found.figures == {name: round(NOW[name]) for name in SIZES}
    assert "nothing will be removed" in found.notes[0]
    assert not expect("params<=99%").notes
    assert not expect("latency<=100%").notes, "a prediction has to undershoot its bound"


def test_memory_falls_by_the_weights() -> None:
    found = expect("disk=2000")
    assert found.figures["memory"] == int(7000.5 - 1.03 * 2100)
    assert expect("disk=2000, memory=3000").figures["memory"] == 3000


@given(st.dictionaries(st.sampled_from(sorted(SIZES - {"memory"})), st.floats(0.3, 3.0), min_size=1))
def test_no_size_is_expected_beyond_the_original_or_the_bound(shares: dict[str, float]) -> None:
    budget = Budget.parse([f"{name}<={NOW[name] * share!r}" for name, share in shares.items()])
    bounds = expected_figures(CARD, budget)
    found = expected_of_removal(CARD, bounds)
    for name, value in found.figures.items():
        assert value == int(value)
        assert LEAST[name] - 1 <= value <= round(NOW[name])
        assert value <= bounds.get(name, value) + 0.5
    assert found.figures["params"] - found.figures["block_params"] == pytest.approx(200, abs=1)
