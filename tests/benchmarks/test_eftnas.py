"""The claim on EFTNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _elastic
from benchmarks._elastic import Scale
from benchmarks._frame import Store
from benchmarks.eftnas import answers, run, sweeps, table
from lissome.cost.counted import Counter
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(
    *,
    least: float = 0.195,
    half: float = 0.9,
    hand: float = 0.6,
    order: float = 0.8,
    most: float = 1.0,
    small: float = 0.199,
    below: float = 0.8,
    lora: float = 0.9,
    used: float = 0.99,
    answered: float = 0.3,
) -> dict[str, Any]:
    cells: dict[str, Any] = {"orders": {name: text(order if name == "learned" else 0.7) for name in run.ORDERS}}
    macs = {f"{run.HALF:g}": 0.49, f"{run.FIFTH:g}": small}
    for task, arms in run.ARMS.items():
        cells[f"teacher-{task}"] = {"test": text(0.9), "chosen": "lr=0.0001"}
        for seed in SEEDS:
            cells[f"lora-{task}-{seed}"] = {"test": text(lora), "chosen": "lr=0.002"}
        for arm, seed in itertools.product((*arms, "published"), SEEDS):
            cut = {key: {"macs": share, "params": 0.5, "test": text(half)} for key, share in macs.items()}
            front = [{"macs": 0.5, "accuracy": 0.7, "held": hand if arm == "uniform" else 0.7}]
            facts = {"chosen": "lr=0.0001", "passes": 1200}
            cells[f"{arm}-{task}-{seed}"] = {"cut": cut, "front": front, "least": least, "most": most, **facts}
            cells[f"latency-{arm}-{task}-{seed}"] = {"latency": [0.7, 0.6, 0.8]}
    for share, seed in itertools.product(run.SHARES, SEEDS):
        facts = {"chosen": "lr=0.0001", "passes": 400}
        for name, _, _ in sweeps.ALONE_OF.values():
            cells[f"{name}-{share:g}-{seed}"] = {"test": text(0.9), "macs": used * share, **facts}
    for seed in SEEDS:
        cells[f"bounds-{seed}"] = {"least": 0.195, "most": below}
        cells[f"answers-{seed}"] = {key: {**read(answered), "macs": share} for key, share in macs.items()}
    return cells | {"answers-teacher": {"untrained": read(0.05), "clozes": read(0.2), "teacher": read(0.3)}}


def read(f1: float) -> dict[str, list[float]]:
    """Eight questions."""
    return {"f1": [f1 + (place - 3.5) / 100 for place in range(8)], "exact": [0.2] * 8, "answered": [1.0] * 8}


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge(made_up(), SEEDS)) == 25


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"least": 0.21}, "furthest"), ({"half": 0.88}, "teacher"), ({"hand": 0.8}, "made by hand"),
        ({"order": 0.6}, "order"), ({"most": 0.97}, "largest"), ({"small": 0.203}, "times that the small point"),
        ({"below": 0.77}, "largest, 80%"), ({"lora": 0.92}, "tuned LoRA"), ({"used": 0.96}, "distilled alone uses"),
        ({"answered": 0.05}, "of half over"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge(made_up(**changes), SEEDS), words)


def test_the_volume_of_a_front() -> None:
    one = {"macs": 0.5, "accuracy": 0.95, "held": 0.75}
    assert _elastic.volume([], worst=0.5, least=0.2) == 0
    assert _elastic.volume([one], worst=0.5, least=0.2) == pytest.approx(0.25)
    assert _elastic.volume([one, {"macs": 0.3, "accuracy": 0.9}], worst=0.5, least=0.2) == pytest.approx(0.25), (
        "not seen"
    )
    small = [{"macs": cost, "held": 0.75} for cost in (0.2, 0.1)]
    assert _elastic.volume(small[:1], worst=0.5, least=0.2) == _elastic.volume(small, worst=0.5, least=0.2)


def test_the_tables_show_every_arm() -> None:
    stored = {"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}
    page, line = table.page([stored]), table.summary([stored])
    assert "sst2: " in line and "at 0.5" in line
    assert all(f"| {arm}, {task}, at 0.5 |" in page for task, arms in run.ARMS.items() for arm in arms)
    assert (
        "| alone, languages, at 0.5 (reached 0.495) | 90.00 |  | 400 | lr=0.0001 |" in page
        and "| teacher, sst2 |" in page
    )
    assert "| lora, sst2 |" in page and "| bounds, 0 | 0.1950 | 0.8000 |" in page
    assert "| 0.5 of the multiply-accumulates | 30.0 | 20.0 | 100.0 |" in page
    assert all(f"| {order} |" in page for order in run.ORDERS)


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path) -> None:
    it = toy(tmp_path)
    found = run.orders(it, tmp_path / "orders", 3)
    assert set(found) == set(run.ORDERS) and all(len(right) == 12 for right in found.values())
    pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    scale, settings = Scale(), {**sweeps.ALONE, "steps": 4}
    small = sweeps.alone(it, 0.6, scale, settings, 0)
    whole = Counter(_elastic.original(it)).count().macs
    assert 0.5 < Counter(small).count().macs / whole <= 0.6
    tuned = sweeps.by_lora(it, scale, {**sweeps.LORA, "steps": 4}, 0)
    assert Counter(tuned).count().macs == whole


def test_the_baseline_has_as_many_settings() -> None:
    assert len(sweeps.ELASTIC_CHANGES) == len(sweeps.ALONE_CHANGES)
    assert len(sweeps.SENTENCES_CHANGES) <= len(sweeps.ALONE_OF["sst2"][2])
    assert len(sweeps.WHOLE_CHANGES) == len(sweeps.LORA_CHANGES)


@pytest.mark.long
def test_super_networks_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it, scale = toy(tmp_path), Scale((0,), 0.01)
    tried = sweeps.Tried(scale, Store(tmp_path / "results", scratch=tmp_path / "scratch"))
    monkeypatch.setattr(tried, "teacher", lambda _: it)
    monkeypatch.setattr(tried, "chosen", lambda _: {"lr": 1e-4, "scores": "l2", "even": 0.5})
    for module in (run, sweeps):
        monkeypatch.setattr(module, "SMALL", 0.5)
        monkeypatch.setattr(module, "SHARES", (0.6,))
    monkeypatch.setattr(run, "HALF", 0.6)
    swept = tried.sweeps["eftnas"]
    assert 0 <= swept.compute(sweeps.ELASTIC, tmp_path / "tried") <= 1
    ends = run.bounds(tried, tmp_path / "bounds", scale, 0)
    assert abs(ends["least"] / 0.5 - 1) <= run.NEAR and abs(ends["most"] / run.BELOW - 1) <= run.NEAR
    found = run.made(tried, tmp_path / "made", "languages", "uniform", scale, 0)
    assert found["cut"]["0.6"]["macs"] <= 0.6 and found["passes"] == 3 * scale.of(run.STEPS)
    assert 0 < run.volume([found], "languages") < 1


def test_answers_are_compared_question_by_question() -> None:
    found = answers.difference([[0.5, 0.5, 0.0], [0.3, 0.3, 0.0]], [0.4, 0.4, 0.0])
    assert found.value == pytest.approx(0.0) and found.low == pytest.approx(0.0) and found.n == 3
