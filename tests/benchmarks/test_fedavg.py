"""The claim on federated averaging: its judgement on made-up numbers, its tables, and its parts on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._federated import SEEDS, job_of, recipe
from benchmarks._federated import run as run_arm
from benchmarks.fedavg import clients, private, rough, run, sizes, table
from lissome.ops.privacy import epsilon
from lissome.testing.toys import toy_model
from tests.benchmarks.federated import all_hold, cell_of, names_it, result_of, toy

GOOD: dict[str, dict[str, Any]] = {
    **{
        f"stock-{seed}": {"difference": 2e-7, "change": 0.1, "cpu_seconds": {"ours": 10.5, "flower": 10.0}}
        for seed in SEEDS
    },
    **{
        f"private-{noise:g}-{seed}": cell_of(
            0.4 - 0.1 * noise,
            own={one: {"told": 0.5, "learned": 20, "test": 0.4, "train": 0.5} for one in "ab"},
            epsilon=10 / noise if noise else None,
        )
        for noise in private.NOISE
        for seed in SEEDS
    },
    **{f"calm-{seed}": cell_of(0.7, seconds=[1.0], answered=[10]) for seed in SEEDS},
    **{f"rough-{seed}": cell_of(0.69, seconds=[3.9, 4.0], answered=[6, 8], deadline=4.0) for seed in SEEDS},
    "memory-10": {"before": 1 << 29, "peak": 1 << 30, "answered": 10, "bytes": 1 << 28},
    "memory-100": {"before": 1 << 29, "peak": 1.1 * 2**30, "answered": 100, "bytes": 10 << 28},
    "sizes": {"the head": {"payload": 2**20, "message": 2**21}},
}


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge, GOOD) == 12


@pytest.mark.parametrize(
    ("cell", "changes", "words"),
    [
        ("stock-1", {"difference": 2e-6}, "largest difference"), ("stock-2", {"change": 1e-5}, "largest change"),
        ("memory-100", {"answered": 99}, "answered"), ("memory-100", {"peak": 1.3 * 2**30}, "with 10"),
        ("memory-100", {"peak": 13 << 30}, "bytes"), ("rough", {"accuracy": [0.1, 0.67]}, "drop-out"),
        ("rough-1", {"seconds": [4.5]}, "longest round"), ("private-0.5", {"accuracy": [0.1, 0.08]}, "guessing"),
        ("private-2", {"accuracy": [0.1, 0.5]}, "strongest noise"),
        ("private-2", {"own": {"a": {"told": 0.97, "learned": 20}, "b": {"told": 0.8, "learned": 20}}}, "lets anybody"),
        ("private-2", {"own": {"a": {"told": 0.53, "learned": 20}, "b": {"told": 0.52, "learned": 20}}}, "upper end"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(cell: str, changes: dict[str, Any], words: str) -> None:
    names_it(run.judge, GOOD, cell, changes, words)


def test_most_that_noise_lets_anybody_tell() -> None:
    assert run.most_told(1.0, 0) == 0.5, "nothing was released"
    assert run.most_told(1e-3, 1) == 1.0
    rng = np.random.default_rng(0)
    apart = np.sqrt(6) / 2.0
    members, others = rng.normal(apart, 1, 20000), rng.normal(0, 1, 20000)
    assert run.most_told(2.0, 6) == pytest.approx(float((members > others).mean()), abs=0.01)


def test_fewer_strengths_of_noise_are_judged_by_the_same_sentences() -> None:
    names = {f"private-{noise:g}-0" for noise in private.QUICK_NOISE}
    cells = {name: cell for name, cell in GOOD.items() if not name.startswith("private-") or name in names}
    assert all_hold(run.judge, cells) == all_hold(run.judge, GOOD)


def test_tables_say_what_was_measured() -> None:
    rough = {"clients": 10, "rounds": 12, "deadline": 4.0}
    facts = {"clients": 4, "rounds": 3, "training": {"steps": 8, "batch": 16}, "rough": rough}
    facts["private"] = {"dealt": private.DEALT, "rounds": 6}
    result = result_of(run.judge, GOOD, facts)
    page = table.page([result])
    assert "within 2e-07" in table.summary([result])
    assert "| 100 | 512 | 1126 | 2560 |" in page
    assert "| 30 % drop-out, stragglers | 69.0 ± 0.0 | 7.0 | 4.0 |" in page
    assert "| the head | 1.00 | 2.00 |" in page
    assert "| 0 | – | 40.0 ± 0.0 | 50.0 |" in page
    assert "| 2 | 5 | 20.0 ± 0.0 | 50.0 |" in page


@pytest.mark.long
def test_clients_drop_out_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = rough.arm("rough", 0, 3, tmp_path / "arm")
    assert max(cell["seconds"]) <= rough.DEADLINE
    assert 0 < sum(cell["answered"]) < 30
    assert cell["clients"].keys() <= cell["examples"].keys()


@pytest.mark.long
def test_noise_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    monkeypatch.setattr(private, "SILOS", 4)
    monkeypatch.setattr(private, "DEALT", {"scheme": "iid", "clients": 4})
    cell = private.arm(1.0, 0, 2, tmp_path / "arm")
    assert cell["epsilon"] == pytest.approx(epsilon(1.0, 2, 1e-5))
    assert all(0 <= one["told"] <= 1 for one in cell["own"].values())
    assert private.arm(0.0, 0, 1, tmp_path / "plain")["epsilon"] is None


@pytest.mark.long
def test_bytes_are_counted_before_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    found = sizes.counted()
    assert found["the head"]["payload"] < found["half of the blocks' parameters"]["payload"]
    step, _ = sizes.EXCHANGES["the head"]
    _, cell = run_arm(job_of(recipe(step, seed=0, rounds=1)), tmp_path / "head")
    assert cell["spent"] == [0, found["the head"]["payload"] * 10]


@pytest.mark.long
def test_both_arms_end_alike_on_a_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr", reason="needs flwr: pip install 'lissome[federate]'")
    from benchmarks.fedavg import stock

    monkeypatch.setattr(clients, "load", lambda name: toy_model("bert", vocab_size=2000))
    found = stock.compared(0)
    assert found["difference"] <= run.EXACT
    assert found["change"] > 0.01
    assert set(found["cpu_seconds"]) == {"ours", "flower"}
