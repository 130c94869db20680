"""The claim on RaFL: its judgement on made-up numbers, its tables, and arms on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.rafl import arms, run, table
from tests.benchmarks.federated import toy

_SCORES = {"knowledge": 0.8, "local": 0.7, "random": 0.75, "weakest": 0.6}


def good() -> dict[str, dict[str, Any]]:
    tiers = {budget: {"limit": 1000.0, "params": 950} for budget in arms.TIERS}
    return {
        f"{arm}-{who}-{seed}": {
            "accuracy": [0.1, 0.5], "mean_client": score, "training": 2**20, "tiers": tiers,
            "own": {"a": {"test": 0.4, "train": 0.5}},
        }
        for arm, score in _SCORES.items() for who in arms.PARTICIPATION for seed in run.SEEDS
    }  # fmt: skip


def test_everything_holds_when_it_does() -> None:
    found = run.judge(good())
    assert all(one.ok for one in found)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("weakest-all", {"mean_client": 0.9}, "weakest"), ("local-sporadic", {"mean_client": 0.9}, "local"),
        ("random-all", {"mean_client": 0.9}, "random"),
        ("knowledge-all", {"tiers": {"x": {"limit": 1000.0, "params": 1001}}}, "within"),
        ("knowledge-all", {"tiers": {"x": {"limit": 1000.0, "params": 10}}}, "used"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    cells = {name: {**cell, **changes} if name.rpartition("-")[0] == arm else cell for name, cell in good().items()}
    assert any(words in one.name for one in run.judge(cells) if not one.ok)


def test_tables_say_what_was_measured() -> None:
    facts = {"rounds": 12, "clients": 10, "alpha": 0.3, "languages": 12}
    result = {"facts": facts, "cells": good(), "inequalities": [vars(one) for one in run.judge(good())]}
    page = table.page([{**result, "environments": []}])
    assert "reach 80.0 %" in table.summary([result])
    assert "| knowledge | sporadic | 80.0 | 40.0 | 1.0 |" in page
    assert "| block_params<=30% | 0.00 | 95.0% |" in page


@pytest.mark.long
@pytest.mark.parametrize("arm", ["knowledge", "weakest"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    monkeypatch.setitem(arms.ARMS, "knowledge", {"method": "rafl", "trials": 6})
    cell = arms.arm(arm, 1.0, 0, 1, tmp_path / "arm")
    assert len(cell["clients"]) == 10
    assert 0 <= cell["mean_client"] <= 1
    if arm == "knowledge":
        assert set(cell["tiers"]) == set(arms.TIERS)
        assert all(tier["params"] <= tier["limit"] for tier in cell["tiers"].values())
        assert len(cell["own"]) == 10
