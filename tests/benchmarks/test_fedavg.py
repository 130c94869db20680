"""The claim on federated averaging: its judgement on made-up numbers, its tables, and its parts on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._frame import Store
from benchmarks.fedavg import clients, run, table
from lissome.testing.toys import toy_model

GOOD: dict[str, dict[str, Any]] = {
    **{
        f"stock-{seed}": {"difference": 2e-7, "change": 0.1, "cpu_seconds": {"ours": 10.5, "flower": 10.0}}
        for seed in run.SEEDS
    },
    "memory-10": {"before": 1 << 29, "peak": 1 << 30, "answered": 10, "bytes": 1 << 28},
    "memory-100": {"before": 1 << 29, "peak": 1.1 * 2**30, "answered": 100, "bytes": 10 << 28},
}


def test_everything_holds_when_it_does() -> None:
    assert all(one.ok for one in run.judge(GOOD))


@pytest.mark.parametrize(
    ("cell", "changes", "words"),
    [
        ("stock-1", {"difference": 2e-6}, "largest difference"), ("stock-2", {"change": 1e-5}, "largest change"),
        ("memory-100", {"answered": 99}, "answered"), ("memory-100", {"peak": 1.3 * 2**30}, "with 10"),
        ("memory-100", {"peak": 13 << 30}, "bytes"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(cell: str, changes: dict[str, Any], words: str) -> None:
    broken = [one.name for one in run.judge({**GOOD, cell: {**GOOD[cell], **changes}}) if not one.ok]
    assert any(words in name for name in broken)


def test_tables_say_what_was_measured(tmp_path: Path) -> None:
    facts = {"clients": 4, "rounds": 3, "training": {"steps": 8, "batch": 16}}
    store = Store(tmp_path, scratch=tmp_path)
    found = [vars(one) for one in run.judge(GOOD)]
    store.publish("minilm", {"facts": facts, "cells": GOOD, "inequalities": found})
    result = {"facts": facts, "cells": GOOD, "inequalities": found, "environments": []}
    assert "within 2e-07" in table.summary([result])
    assert "| 100 | 512 | 1126 | 2560 |" in table.page([result])


@pytest.mark.long
def test_both_arms_end_alike_on_a_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr", reason="needs flwr: pip install 'lissome[federate]'")
    from benchmarks.fedavg import stock

    monkeypatch.setattr(clients, "load", lambda name: toy_model("bert", vocab_size=2000))
    found = stock.compared(0)
    assert found["difference"] <= run.EXACT
    assert found["change"] > 0.01
    assert set(found["cpu_seconds"]) == {"ours", "flower"}
