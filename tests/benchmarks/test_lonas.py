"""The claim on LoNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._elastic import Scale
from benchmarks.lonas import run, table
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(*, width: float = 0.88, cut: float = 0.9, trained: float = 0.01, macs: float = 0.7) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for seed in SEEDS:
        cells[f"lonas-{seed}"] = {
            "widths": {f"{share:g}": text(width) for share in run.WIDTHS},
            "cut": {f"{run.CHEAP:g}": {"macs": macs, "params": 0.8, "test": text(cut)}},
            "trained": trained,
            "latency": [0.8, 0.7, 0.9],
        }
        cells |= {f"lora-{share:g}-{seed}": {"test": text(0.88), "macs": share} for share in run.WIDTHS}
    one = {"addresses": 20.0, "other text": 30.0}
    arms = {f"{arm}-{share:g}": one for arm in ("lonas", "cut", "lora") for share in run.WIDTHS}
    return cells | {"language": {"given": one, **arms}}


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge(made_up(), SEEDS)) == len(run.WIDTHS) + 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0.86}, "one run at"), ({"cut": 0.86}, "whole model"), ({"trained": 0.2}, "optimizer"),
        ({"macs": 0.8}, "most"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge(made_up(**changes), SEEDS), words)


def test_the_tables_show_every_width() -> None:
    page = table.page([{"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}])
    assert all(f"| {share:.0%} | 88.00 | 88.00 |" in page for share in run.WIDTHS)
    assert all(f"| LoNAS, one run, MLPs at {share:.0%} | 20.00 | 30.00 |" in page for share in run.WIDTHS)


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = toy(tmp_path)
    pruned = run.lora(it, 0.5, 2, 0)
    assert len(pruned["test"]) == 12 and pruned["macs"] < 0.75
    scale = Scale((0,), 2 / run.STEPS)
    monkeypatch.setattr(run, "CHEAP", 0.9)
    found = run.made(it, tmp_path / "made", scale, 0)
    assert set(found["widths"]) == {"1", "0.75", "0.5"}
    assert found["trained"] < 0.5
    assert found["cut"]["0.9"]["macs"] <= 0.9
