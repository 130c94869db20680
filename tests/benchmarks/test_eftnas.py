"""The claim on EFTNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _elastic
from benchmarks._elastic import Scale
from benchmarks.eftnas import run, table
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(
    *,
    least: float = 0.195,
    half: float = 0.9,
    hand: float = 0.6,
    order: float = 0.8,
    most: float = 1.0,
    small: float = 0.199,
) -> dict[str, Any]:
    cells: dict[str, Any] = {"orders": {name: text(order if name == "learned" else 0.7) for name in run.ORDERS}}
    macs = {f"{run.HALF:g}": 0.49, f"{run.FIFTH:g}": small}
    for task, arms in run.ARMS.items():
        cells[f"teacher-{task}"] = {"test": text(0.9)}
        for arm, seed in itertools.product(arms, SEEDS):
            cut = {key: {"macs": share, "params": 0.5, "test": text(half)} for key, share in macs.items()}
            volume, ends = hand if arm == "uniform" else 0.7, {"least": least, "most": most}
            cells[f"{arm}-{task}-{seed}"] = {"cut": cut, **ends, "volume": volume, "latency": [0.7, 0.6, 0.8]}
    for share, seed in itertools.product(run.SHARES, SEEDS):
        cells[f"alone-{share:g}-{seed}"] = {"test": text(0.9)}
    one = {"f1": 0.3, "exact": 0.2, "loss": 3.0}
    sizes = {key: {**one, "macs": share} for key, share in macs.items()}
    return cells | {"answers": {"untrained": {**one, "f1": 0.05}, "questions": 300, "teacher": one, **sizes}}


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge(made_up(), SEEDS)) == 15


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"least": 0.21}, "furthest"), ({"half": 0.88}, "teacher"), ({"hand": 0.8}, "made by hand"),
        ({"order": 0.6}, "order"), ({"most": 0.97}, "largest"), ({"small": 0.203}, "times that the small point"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge(made_up(**changes), SEEDS), words)


def test_the_volume_of_a_front() -> None:
    assert _elastic.volume([]) == 0
    assert _elastic.volume([{"macs": 0.5, "accuracy": 0.75}]) == pytest.approx(0.25)


def test_the_tables_show_every_arm() -> None:
    page = table.page([{"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}])
    assert all(f"| {arm}, {task}, at 0.5 |" in page for task, arms in run.ARMS.items() for arm in arms)
    assert "| alone, 0.5 |" in page and "| teacher, sst2 |" in page
    assert "| 0.5 of the multiply-accumulates | 30.0 | 20.0 |" in page
    assert all(f"| {order} |" in page for order in run.ORDERS)


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path) -> None:
    it = toy(tmp_path)
    found = run.orders(it, tmp_path / "orders", 3)
    assert set(found) == set(run.ORDERS) and all(len(right) == 12 for right in found.values())
    pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    alone = run.alone(it, 0.6, Scale((0,), 0.001), 0)
    assert len(alone["test"]) == 12
