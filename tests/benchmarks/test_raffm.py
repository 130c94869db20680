"""The claim on RaFFM: its judgement on made-up numbers, its tables, and one arm on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.raffm import arms, run, table
from tests.benchmarks.federated import toy

_ACCURACY = {"raffm": 0.80, "full": 0.81, "big-only": 0.6, "heterofl": 0.75, "smallest": 0.7}


def _cell(accuracy: float, payload: int) -> dict[str, Any]:
    sizes = [{"share": 0.2 + index / 30, "accuracy": 0.7} for index in range(24)]
    return {
        "accuracy": [0.1, accuracy], "payload": payload, "message": payload, "clients": {"a": 0.8, "b": 0.5},
        "trained": {"40%": 3, "100%": 1}, "sizes": sizes,
    }  # fmt: skip


GOOD: dict[str, dict[str, Any]] = {
    "preserved": {"difference": 1e-6, "size": 1.0},
    **{
        f"{arm}-{seed}": _cell(value, 90 if arm == "full" else 50)
        for arm, value in _ACCURACY.items()
        for seed in run.SEEDS
    },
}


def test_everything_holds_when_it_does() -> None:
    found = run.judge(GOOD)
    assert all(one.ok for one in found)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("raffm", {"accuracy": [0.1, 0.5]}, "whole models"), ("raffm", {"payload": 100}, "bytes"),
        ("big-only", {"accuracy": [0.1, 0.9]}, "big clients"),
        ("raffm", {"sizes": GOOD["raffm-0"]["sizes"][:9]}, "cut"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    cells = {name: {**cell, **changes} if name.startswith(arm) else cell for name, cell in GOOD.items()}
    assert any(words in one.name for one in run.judge(cells) if not one.ok)


def test_tables_say_what_was_measured() -> None:
    facts = {"rounds": 12, "clients": 10, "alpha": 0.3, "languages": 12, "step": {"epochs": 2.0}}
    found = [vars(one) for one in run.judge(GOOD)]
    result = {"facts": facts, "cells": GOOD, "inequalities": found, "environments": []}
    assert "to 80.0 % where whole copies reach 81.0 %, with 56% of the bytes" in table.summary([result])
    assert "| heterofl | 75.0 | 65.0 | 50.0 | 0 |" in table.page([result])
    assert "| raffm | 40%: 3, 100%: 1 |" in table.page([result])


@pytest.mark.long
@pytest.mark.parametrize("arm", ["raffm", "big-only"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.arm(arm, 0, 1, tmp_path / "arm")
    assert len(cell["accuracy"]) == 2
    assert len(cell["kinds"]) == 10
    assert sum(cell["trained"].values()) == (2 if arm == "big-only" else 10)
    if arm == "raffm":
        assert len(cell["sizes"]) == arms.SIZES
        assert cell["sizes"][1]["share"] == 1.0
        assert cell["sizes"][1]["accuracy"] == pytest.approx(cell["accuracy"][-1])
