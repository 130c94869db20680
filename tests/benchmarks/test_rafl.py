"""The claim on RaFL: its judgement on made-up numbers, its tables, and arms on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._federated import SEEDS
from benchmarks.rafl import arms, run, table
from tests.benchmarks.federated import all_hold, cell_of, names_it, result_of, toy

_SCORES = {"knowledge": 0.8, "local": 0.7, "random": 0.75, "weakest": 0.6, "tuned": 0.65}


def _tiers(params: int) -> dict[str, dict[str, float]]:
    return {budget: {"limit": 1000.0 - at, "params": params - at} for at, budget in enumerate(arms.TIERS)}


def good() -> dict[str, dict[str, Any]]:
    tiers = _tiers(950)
    weak, latency = {arms.TIERS[-1]: tiers[arms.TIERS[-1]]}, {one: 0.01 - at / 1e3 for at, one in enumerate(arms.TIERS)}
    kinds = {f"c{number}": f"tier-{number}" for number in range(4)}
    own = {name: {"test": 0.4, "train": 0.5} for name in kinds}
    return {
        f"{arm}-{who}-{seed}": cell_of(
            0.5, spent=(0, 2**20), reached=[None, score], mean_client=score,
            tiers=weak if arm in {"weakest", "tuned"} else tiers, kinds=kinds, own=own,
            orders=2**9, knowledge=2**10, latency=latency, effort={"steps": 540, "macs": 3e12},
        )
        for arm, score in _SCORES.items() for who in arms.PARTICIPATION for seed in SEEDS
    }  # fmt: skip


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge, good()) == 14


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("weakest-all", {"mean_client": 0.9}, "weakest"), ("local-sporadic", {"mean_client": 0.9}, "local"),
        ("tuned-sporadic", {"mean_client": 0.9}, "tuned by each"),
        ("random-all", {"mean_client": 0.9}, "random"), ("knowledge-all", {"orders": 3}, "bytes"),
        ("knowledge-all", {"tiers": _tiers(1001)}, "within"), ("knowledge-all", {"tiers": _tiers(10)}, "is used"),
        ("knowledge-all", {"latency": {one: float(at) for at, one in enumerate(arms.TIERS)}}, "latency"),
        ("weakest-all", {"tiers": {arms.TIERS[-1]: {"params": 951}}}, "the same, more than"),
        ("knowledge-all", {"own": {f"c{at}": {"test": at / 10} for at in range(4)}}, "largest tier"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    names_it(run.judge, good(), arm, changes, words)


def test_tables_say_what_was_measured() -> None:
    dear = {"spent": [0, 2**19, 2**21], "reached": [None, 0.55, 0.6], "accuracy": [0.1, 0.5, 0.5]}
    cells = {name: {**cell, **(dear if name.startswith("weakest") else {})} for name, cell in good().items()}
    for arm in ("knowledge-all-1", "random-all-1"):  # a seed in which fewer bytes were sent
        cells[arm] = {**cells[arm], "spent": [0, 2**18], "orders": 2**7}
    for name in ("overlap-all-0", "overlap-all-1", "overlap-all-2"):  # its first look comes too late
        cells[name] = {**cells["knowledge-all-0"], "spent": [0, 2**21]}
    facts = {"rounds": 12, "clients": 10, "alpha": 0.3, "languages": 12, **arms.SWEEP.facts_of(arms.SWEEP.middle())}
    result = result_of(run.judge, cells, facts)
    page = table.page([result])
    assert "reach 80.0 %" in table.summary([result])
    assert "65.0 % when each tunes that" in table.summary([result])
    assert "| knowledge | sporadic | 80.0 ± 0.0 | 80.0 ± 0.0 | 40.0 ± 0.0 | 1.0 | 540 | 3.0 |" in page
    assert "| random | all | 75.0 ± 0.0 | 75.0 ± 0.0 | 40.0 ± 0.0 | 0.8 |" in page, "each seed by its own bytes"
    assert "| weakest | sporadic | 60.0 ± 0.0 | 55.0 ± 0.0 | 40.0 ± 0.0 | 2.0 |" in page
    assert "| overlap | all | 80.0 ± 0.0 | – |" in page, "never judged within the bytes"
    assert "| block_params<=30% | 0.00 | 95.0% | 7.00 | 40.0 |" in page


def test_a_quarter_of_the_clients_is_a_quarter() -> None:
    assert round(arms.PARTICIPATION["sporadic"] * arms.CLIENTS) == arms.CLIENTS / 4
    assert arms.CLIENTS % len(arms.TIERS) == 0, "as many in each tier"


@pytest.mark.long
@pytest.mark.parametrize("arm", ["knowledge", "local", "weakest", "tuned", "middle", "heterofl", "distil"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    for name in ("knowledge", "local", "distil"):
        monkeypatch.setitem(arms.ARMS, name, {**arms.ARMS[name], "trials": 6})
    cell = arms.arm(arm, 1.0, 0, 2 if arm == "tuned" else 1, 1e-3, tmp_path / "arm")
    served = [one for one, kind in cell["kinds"].items() if arm != "middle" or kind in arms.SERVED]
    assert sorted(cell["clients"]) == sorted(served)
    assert len(cell["kinds"]) == arms.CLIENTS
    assert 0 <= cell["mean_client"] <= 1
    assert sorted(cell["own"]) == sorted(served)
    if arm in arms.COMMON:
        assert set(cell["tiers"]) == {arms.COMMON[arm]}
        alike = len({one["test"] for one in cell["own"].values()}) == 1
        assert alike == (arm != "tuned"), "all hold the same, until each tunes it"
    if arm == "heterofl":
        assert all(tier["params"] <= tier["limit"] for tier in cell["tiers"].values())
    if arm == "knowledge":
        assert set(cell["latency"]) == set(arms.TIERS)
        assert all(seconds > 0 for seconds in cell["latency"].values())
        assert set(cell["tiers"]) == set(arms.TIERS)
        assert all(tier["params"] <= tier["limit"] for tier in cell["tiers"].values())
        assert cell["spent"][-1] == 2 * cell["orders"] * cell["knowledge"]
    if arm == "tuned":
        assert cell["reached"][-1] == cell["mean_client"]
        assert cell["spent"][-1] == cell["spent"][-2], "nothing is sent meanwhile"


@pytest.mark.long
def test_work_is_counted_by_steps_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    for name in ("knowledge", "local"):
        monkeypatch.setitem(arms.ARMS, name, {**arms.ARMS[name], "trials": 6})
    found = {
        name: arms.arm(name, 1.0, 0, 2, 1e-3, tmp_path / name)["effort"]
        for name in ("knowledge", "local", "weakest", "tuned")
    }
    steps = {name: one["steps"] for name, one in found.items()}
    assert steps["knowledge"] == steps["local"] == steps["weakest"] == steps["tuned"] > 0, "one pass is as any other"
    assert found["knowledge"]["macs"] > found["local"]["macs"] > found["weakest"]["macs"] == found["tuned"]["macs"]


@pytest.mark.long
def test_settings_are_tried_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    for name in ("tuned", "distil"):
        score = arms.trial(name, {"lr": 1e-3, **({"trials": 6} if name == "distil" else {})}, tmp_path / name)
        assert 0 <= score <= 1
