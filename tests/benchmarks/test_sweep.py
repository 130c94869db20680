"""Sweeps: each setting once, the best of one setting, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks._elastic import Scale, measure
from benchmarks._frame import Store
from benchmarks._sweep import Sweep, tried

SCALE = Scale()


def sweep(figure: str = "accuracy", **facts: Any) -> tuple[Sweep, list[Mapping[str, Any]]]:
    """A sweep whose figure is the rate, or much more where something else is set; and what it has computed."""
    seen: list[Mapping[str, Any]] = []

    def compute(settings: Mapping[str, Any], _: Path) -> float:
        seen.append(settings)
        return 0.9 if settings["order"] == "l1" else settings["lr"]

    changes: tuple[Mapping[str, Any], ...] = ({"lr": 0.1}, {"lr": 0.3}, {"order": "l1", "lr": 0.7})
    return Sweep("an arm", facts, {"lr": 0.2, "order": "none", "rank": 8}, changes, compute, figure=figure), seen


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", scratch=tmp_path / "scratch")


@pytest.mark.parametrize(("figure", "best"), [("accuracy", 0.3), ("ppl", 0.1)])
def test_the_best_is_of_what_was_tried_alone(store: Store, figure: str, best: float) -> None:
    assert sweep(figure)[0].best(store, SCALE, "lr") == best


def test_a_setting_is_tried_once(store: Store) -> None:
    it, seen = sweep()
    for cell in it.cells():
        measure(cell, SCALE, store)
    it.best(store, SCALE, "lr")
    assert [one["lr"] for one in seen] == [0.2, 0.1, 0.3, 0.7]
    assert all(one["rank"] == 8 for one in seen)


def test_other_facts_are_another_cell(store: Store) -> None:
    counts = []
    for steps in (1, 2, 1):
        it, seen = sweep(steps=steps)
        it.best(store, SCALE, "lr")
        counts.append(len(seen))
    assert counts == [3, 3, 0]


def test_the_table_shows_what_was_set(store: Store) -> None:
    cells = {cell.name: measure(cell, SCALE, store) for cell in sweep()[0].cells()}
    shown = tried({"cells": {**cells, "other": {}}})
    assert "| an arm | lr=0.2, order=none (usual) | 20.00 |" in shown
    assert "| an arm | order=l1, lr=0.7 | 90.00 |" in shown
    assert shown.count("\n") == 1 + len(cells)
