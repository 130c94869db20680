"""The claim on LoNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._elastic import Subject
from benchmarks.lonas import run, table
from lissome.models.labels import with_labels
from lissome.models.model import Model
from lissome.testing.examples import CLASSES, worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

SEEDS = (0, 1)


def text(share: float, count: int = 2000) -> str:
    return "".join("1" if index < share * count else "0" for index in range(count))


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
    return cells


def test_everything_holds_when_it_does() -> None:
    found = run.judge(made_up(), SEEDS)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    assert len(found) == len(run.WIDTHS) + 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0.86}, "one run at"), ({"cut": 0.86}, "whole model"), ({"trained": 0.2}, "optimizer"),
        ({"macs": 0.8}, "most"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    broken = [one.name for one in run.judge(made_up(**changes), SEEDS) if not one.ok]
    assert any(words in name for name in broken)


def test_the_tables_show_every_width() -> None:
    page = table.page([{"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}])
    assert all(f"| {share:.0%} | 88.00 | 88.00 |" in page for share in run.WIDTHS)


def toy(folder: Path) -> Subject:
    """A toy encoder with a head that has learnt nothing."""
    data = worded_texts(folder / "words.jsonl", count=60)
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    bare = Model(toy_module("bert", **sizes), toy_tokenizer())
    with_labels(bare, sorted(CLASSES)).save(folder / "model")
    return Subject("toy", folder / "model", data)


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = toy(tmp_path)
    pruned = run.lora(it, 0.5, 2, 0)
    assert len(pruned["test"]) == 12 and pruned["macs"] < 0.75
    scale = run.Scale((0,), 5, 2 / run.STEPS)
    monkeypatch.setattr(run, "CHEAP", 0.9)
    found = run._made(it, tmp_path / "made", scale, 0)
    assert set(found["widths"]) == {"1", "0.75", "0.5"}
    assert found["trained"] < 0.5
    assert found["cut"]["0.9"]["macs"] <= 0.9
