"""The claim on search: its volume, and its judgement on made-up results."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.search import run, table
from tests.benchmarks.elastic import all_hold, broken


def test_a_volume_is_the_share_of_the_square_behind_a_front() -> None:
    corner = (100.0, 8.0)
    assert run.volume([], corner) == 0.0
    assert run.volume([(100.0, 1.0), (1.0, 8.0)], corner) == 0.0  # on the edges
    assert run.volume([(10.0, 4.0)], corner) == pytest.approx(0.25)
    assert run.volume([(10.0, 4.0), (10.0, 6.0), (1e9, 0.1)], corner) == pytest.approx(0.25)  # beaten, or out of it
    assert run.volume([(1.0, 0.0)], corner) == pytest.approx(1.0)


def made_up(better: float) -> dict[str, Any]:
    """Results in which the judged samplers are `better` times as good as draws."""
    cells: dict[str, Any] = {}
    for name in run.SAMPLERS:
        share = 0.2 * (better if name in run.JUDGED else 1)
        points = [[100.0 ** (1 - share), 0.0]] * run.TRIALS
        cells |= {f"{name}-{seed}": {"points": points, "corner": [100.0, 8.0]} for seed in range(2)}
    one = {"spearman": 0.9, "kendall": 0.8, "error": 0.05, "hits": 0.9, "n": 32}
    return cells | {
        "rates": {"rates": {"rows": 3e5, "one by one": 5e4}},
        "latency": {"table": one, "regression": one},
        **{f"latency-{name}": dict.fromkeys(("table", "regression", "few", "corrected"), one) for name in run.PASSES},
        "winner": {"ratio": [0.85, 0.84, 0.86]},
    }


def test_the_judgement() -> None:
    good, bad = run.judge(made_up(1.2), (0,)), run.judge(made_up(0.9), (0,))
    assert all_hold(good) == len(run.JUDGED) + 5 + 2 * len(run.PASSES)
    assert [one.ok for one in bad].count(False) == len(run.JUDGED)
    slow = made_up(1.2) | {"winner": {"ratio": [0.99, 0.97, 1.01]}}
    assert broken(run.judge(slow, (0,)), "latency of the winner")


def test_the_tables_show_every_sampler() -> None:
    found = run.judge(made_up(1.1), (0,))
    stored = {"cells": made_up(1.1), "environments": [], "inequalities": [vars(one) for one in found]}
    text = table.page([stored])
    assert all(f"| {name} |" in text for name in (*run.SAMPLERS, "table", "regression"))
