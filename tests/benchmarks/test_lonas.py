"""The claim on LoNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks._elastic import Scale, measure
from benchmarks._frame import Store
from benchmarks.lonas import run, table
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(
    *,
    width: float = 0.88,
    cut: float = 0.9,
    trained: float = 0.01,
    macs: float = 0.7,
    loss: float = 2.0,
    slow: float = 0.9,
) -> dict[str, Any]:
    tried = {"arm": "lonas", "set": "lr=0.004", "figure": "accuracy", "value": 0.875}
    cells: dict[str, Any] = {"sweep-lonas-lr-0-004": tried}
    for seed in SEEDS:
        cells[f"sandwich-{seed}"] = cells[f"random-{seed}"] = {
            "widths": {f"{share:g}": text(width) for share in run.WIDTHS},
            "cut": {f"{run.CHEAP:g}": {"macs": macs, "params": 0.8, "test": text(cut)}},
            "trained": trained,
            "chosen": "lr=0.002, ranks=8",
        }
        cells[f"latency-sandwich-{seed}"] = {"latency": [0.8, 0.7, slow]}
        for share in run.WIDTHS:
            cells[f"lora-{share:g}-{seed}"] = {"test": text(0.88), "macs": share, "chosen": "lr=0.001, ranks=16"}
        arms = {f"{arm}-{share:g}": windows(loss) for arm in ("lonas", "lora") for share in run.WIDTHS}
        cells[f"language-{seed}"] = {**arms, "rates": {}, "params": {f"{share:g}": 1 for share in run.WIDTHS}}
    cells["language-given"] = {name: windows(3.0) for name in ("given", "cut-0.75", "cut-0.5")}
    return cells


def windows(loss: float) -> dict[str, list[float]]:
    """Losses of eight windows about a mean, lower ones first."""
    return {text: [loss + (place - 3.5) / 100 for place in range(8)] for text in run.TEXTS}


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge(made_up(), SEEDS)) == 2 * len(run.WIDTHS) + 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0.86}, "one run at"), ({"cut": 0.86}, "whole model"), ({"trained": 0.2}, "optimizer"),
        ({"macs": 0.8}, "most"), ({"slow": 1.1}, "latency"), ({"loss": 3.0}, "without tuning"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge(made_up(**changes), SEEDS), words)


def test_the_tables_show_every_width() -> None:
    stored = {"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}
    page = table.page([stored])
    assert "88.0, 88.0, 88.0 % from one run, 88.0, 88.0, 88.0 % from a run" in table.summary([stored])
    assert all(f"| {share:.0%} | 88.00 | 88.00 | 88.00 | lr=0.001, ranks=16 |" in page for share in run.WIDTHS)
    assert "Settings of LoNAS: lr=0.002, ranks=8." in page
    shown = f"{math.exp(2.0):.2f} (× {math.exp(-1.0):.3f}, "
    assert all(f"| LoNAS, one run, MLPs at {share:.0%} | {shown}" in page for share in run.WIDTHS)
    assert "| lonas | lr=0.004 | 87.50 |" in page


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = toy(tmp_path)
    scale = Scale((0,), 2 / run.STEPS)
    pruned = run.pruned(it, 0.5, scale, {"lr": 1e-3, "ranks": (4,), "dropout": 0.0}, 0)
    assert len(pruned["test"]) == 12 and pruned["macs"] < 0.75
    monkeypatch.setattr(run, "CHEAP", 0.9)
    chosen = {"lr": 1e-3, "ranks": (8,), "order": "l1", "even": 0.5, "dropout": 0.0}
    found = run.made(it, tmp_path / "made", scale, {**chosen, "paths": "sandwich"}, 0)
    assert set(found["widths"]) == {"1", "0.75", "0.5"}
    assert found["trained"] < 0.5
    assert found["cut"]["0.9"]["macs"] <= 0.9


@pytest.mark.long
def test_every_setting_of_the_sweep_trains_a_toy(tmp_path: Path) -> None:
    it, scale = toy(tmp_path), Scale((0,), 4 / run.TRIED)
    store = Store(tmp_path / "results", scratch=tmp_path / "scratch")
    for name, sweep in run.word_sweeps(lambda: it, scale).items():
        found = [measure(cell, scale, store) for cell in sweep.cells()]
        assert len(found) == 1 + len(sweep.changes) and all(0 <= one["value"] <= 1 for one in found), name
        assert sweep.best(store, scale, "lr") in (1e-3, 2e-3, 4e-3)
        best = sweep.chosen(store, scale, run.CHOSEN[name.partition("-")[0]])
        assert best["ranks"][0] in (4, 8, 16, 32) and best.get("order", "l1") in ("none", "l1", "random")


def test_lora_gets_as_many_settings_and_as_many_rates() -> None:
    sweeps = run.word_sweeps(lambda: pytest.fail("nothing is trained"), Scale())
    assert len(run.CHANGES) == len(run.LORA_CHANGES)
    rates = {name: [one["lr"] for one in sweep.changes if set(one) == {"lr"}] for name, sweep in sweeps.items()}
    assert len(set(map(tuple, rates.values()))) == 1 and len(rates) == 1 + len(run.WIDTHS)


@pytest.mark.long
def test_the_parts_of_language_on_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "words.txt"
    words.write_text(
        "\n\n".join(f"Address {place}. {'We the people. ' * 40}" for place in range(200)), encoding="utf-8"
    )
    monkeypatch.setattr(run, "DECODER", "zoo-llama")
    monkeypatch.setattr(run._tasks, "addresses", lambda: words)
    monkeypatch.setattr(run, "WINDOWS_OF_EACH", 3)
    scale, store = Scale((0,), 1 / 30), Store(tmp_path / "results", scratch=tmp_path / "scratch")
    sweeps = run.text_sweeps(scale)
    rates = {name: sweep.best(store, scale, "lr") for name, sweep in sweeps.items()}
    assert all(rate in (5e-4, 1e-3, 2e-3, 4e-3) for rate in rates.values())
    first, found = run.untuned(), run.language(scale, tmp_path / "language", rates, 0)
    for share in run.WIDTHS:
        lonas, lora = (found[f"{arm}-{share:g}"] for arm in ("lonas", "lora"))
        assert [len(lonas[text]) for text in run.TEXTS] == [len(lora[text]) for text in run.TEXTS] == [3, 3]
        before = first["given" if share == 1 else f"cut-{share:g}"][run.TEXTS[0]]
        assert sum(lora[run.TEXTS[0]]) < sum(before)
    assert found["params"]["1"] > found["params"]["0.5"]
