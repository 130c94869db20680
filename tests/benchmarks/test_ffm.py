"""The claim on FFM: its judgement on made-up numbers, its tables, and arms on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ffm import arms, run, table
from tests.benchmarks.federated import toy

_OWN = {"a": {"test": 0.6, "train": 0.7}, "b": {"test": 0.6, "train": 0.7}}
_HEAD = 384 * 384 + 384 + 384 * 12 + 12


def _cell(accuracy: float, training: float) -> dict[str, Any]:
    return {"accuracy": [0.1, accuracy], "training": training, "own": _OWN}


def good() -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    prompt = (arms.TOKENS * arms.WIDTH + _HEAD) * 4 * 2 * 10 * 10
    for seed in run.SEEDS:
        cells |= {
            f"full-{seed}": _cell(0.8, 1000), f"lora-{seed}": _cell(0.78, 40), f"prompt-{seed}": _cell(0.5, prompt),
            f"centralised-{seed}": _cell(0.8, 4), f"zero-shot-{seed}": _cell(0.1, 0),
            f"local-{seed}": {**_cell(0.1, 0), "own": {"a": {"test": 0.4, "train": 0.9}}},
            f"continual-none-{seed}": {"forgetting": 0.5, "average": 0.3},
            f"continual-replay-{seed}": {"forgetting": 0.1, "average": 0.6},
            f"retrieval-{seed}": {"recall": 0.9, "central": 0.9},
        }  # fmt: skip
    return cells


def test_everything_holds_when_it_does() -> None:
    found = run.judge(good(), 10)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("lora", {"accuracy": [0.1, 0.9]}, "centralised"), ("lora", {"accuracy": [0.1, 0.42]}, "local + 3"),
        ("lora", {"training": 60}, "bytes of adapters"), ("prompt", {"training": 7}, "virtual tokens"),
        ("local", {"own": _OWN}, "gap"), ("continual-replay", {"forgetting": 0.6}, "replay"),
        ("retrieval", {"recall": 0.8}, "one index"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    cells = {name: {**cell, **changes} if name.rpartition("-")[0] == arm else cell for name, cell in good().items()}
    assert any(words in one.name for one in run.judge(cells, 10) if not one.ok)


def test_tables_say_what_was_measured() -> None:
    facts = {"rounds": 10, "clients": 10, "alpha": 0.3, "languages": 12}
    result = {"facts": facts, "cells": good(), "inequalities": [vars(one) for one in run.judge(good(), 10)]}
    page = table.page([{**result, "environments": []}])
    assert "reach 78.0 % where pooled data reach 80.0 %, with 4.0% of the bytes" in table.summary([result])
    assert "| local | 40.0 | 50.0 | 0.0 |" in page
    assert "| continual-replay | 60.0 | 10.0 |" in page


@pytest.mark.long
@pytest.mark.parametrize("arm", ["lora", "local", "zero-shot"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.finetuned(arm, 0, 1, tmp_path / "arm")
    assert len(cell["accuracy"]) == 2
    assert (cell["training"] > 0) == (arm == "lora")
    assert ("own" in cell) == (arm != "zero-shot")


@pytest.mark.long
def test_slices_and_search_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.continual("continual-replay", 0, 4, tmp_path / "slices")
    assert len(cell["matrix"]) == arms.SLICES
    found = arms.retrieval(0, tmp_path / "search")
    assert found["recall"] == found["central"]
    assert found["apart"] < 1e-5
