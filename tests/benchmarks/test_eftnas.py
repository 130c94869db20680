"""The claim on EFTNAS: its judgement on made-up results, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import _elastic
from benchmarks._elastic import Subject
from benchmarks.eftnas import run, table
from lissome.models.labels import with_labels
from lissome.models.model import Model
from lissome.testing.examples import CLASSES, worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

SEEDS = (0, 1)


def text(share: float, count: int = 2000) -> str:
    return "".join("1" if index < share * count else "0" for index in range(count))


def made_up(*, least: float = 0.2, half: float = 0.9, hand: float = 0.6, order: float = 0.8) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "teacher": {"test": text(0.9)},
        "orders": {name: text(order if name == "learned" else 0.7) for name in run.ORDERS},
    }
    keys = (f"{run.HALF:g}", f"{run.SMALL * (1 + run.NEAR):g}")
    for seed in SEEDS:
        for arm in run.ARMS:
            cut = {key: {"macs": 0.49, "params": 0.5, "test": text(half)} for key in keys}
            volume = hand if arm == "uniform" else 0.7
            cells[f"{arm}-{seed}"] = {"cut": cut, "least": least, "volume": volume, "latency": [0.7, 0.6, 0.8]}
        for share in run.SHARES:
            cells[f"alone-{share:g}-{seed}"] = {"test": text(0.9)}
    return cells


def test_everything_holds_when_it_does() -> None:
    found = run.judge(made_up(), SEEDS)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"least": 0.21}, "furthest"), ({"half": 0.88}, "teacher"), ({"hand": 0.8}, "made by hand"),
        ({"order": 0.6}, "order"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    broken = [one.name for one in run.judge(made_up(**changes), SEEDS) if not one.ok]
    assert any(words in name for name in broken)


def test_the_volume_of_a_front() -> None:
    assert _elastic.volume([]) == 0
    assert _elastic.volume([{"macs": 0.5, "accuracy": 0.75}]) == pytest.approx(0.25)


def test_the_tables_show_every_arm() -> None:
    page = table.page([{"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}])
    assert all(f"| {arm} at 0.5 |" in page for arm in (*run.ARMS, "alone"))
    assert all(f"| {order} |" in page for order in run.ORDERS)


def toy(folder: Path) -> Subject:
    """A toy encoder with a head that has learnt nothing."""
    data = worded_texts(folder / "words.jsonl", count=60)
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    bare = Model(toy_module("bert", **sizes), toy_tokenizer())
    with_labels(bare, sorted(CLASSES)).save(folder / "model")
    return Subject("toy", folder / "model", data)


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path) -> None:
    it = toy(tmp_path)
    found = run.orders(it, tmp_path / "orders", 3)
    assert set(found) == set(run.ORDERS) and all(len(right) == 12 for right in found.values())
    alone = run._alone(it, 0.6, run.Scale((0,), 5, 0.001), 0)
    assert len(alone["test"]) == 12
