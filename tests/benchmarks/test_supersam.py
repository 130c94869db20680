"""The claim on SuperSAM: its judgement on made-up results, its tables, and its parts on a small MiniSAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._elastic import Scale
from benchmarks._frame import Store
from benchmarks.supersam import run, table
from tests.benchmarks.elastic import SEEDS, all_hold, broken

ORDER = {"wanda": 0.8, "l1": 0.75, "random": 0.5, "reversed": 0.2}


def made_up(
    *, small: float = 0.7, params: float = 0.39, tuner: float = 0.7, wanda: float = 0.8, least: float = 0.65
) -> dict[str, Any]:
    values = ORDER | {"wanda": wanda}
    cells: dict[str, Any] = {"given": {domain: [0.6] * 50 for domain in ("photographs", *run.DOMAINS)}}
    for seed in SEEDS:
        cells[f"orders-{seed}"] = {f"{o}-{s:g}": [values[o]] * 50 for o in run.ORDERS for s in run.WIDTHS}
        for domain in run.DOMAINS:
            cut = {f"{share:g}": {"params": min(share, params), "test": [small] * 50} for share in run.SHARES}
            if params > 0.4:
                cut["0.4"]["params"] = params
            volumes = {"ensemble": tuner, "nsga2": 0.65, "random": 0.6}
            smallest = {"params": 0.36, "test": [least] * 50}
            cells[f"super-{domain}-{seed}"] = {"cut": cut, "volumes": volumes, "smallest": smallest, "rate": 2e-4}
            cells[f"full-{domain}-{seed}"] = {"test": [0.75] * 50, "rate": 4e-4}
    return cells


def test_everything_holds_when_it_does() -> None:
    found = run.judge(made_up(), SEEDS)
    assert all_hold(found) == 9 + 2 * 8
    assert "0.0500 below the whole model trained as long" in next(one.detail for one in found if "untuned" in one.name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"small": 0.59}, "untuned"), ({"params": 0.45}, "parameters at 40%"), ({"tuner": 0.5}, "autotuner"),
        ({"wanda": 0.7}, "wanda against l1"), ({"least": 0.59}, "smallest that can be reached, 36.0%"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge(made_up(**changes), SEEDS), words)


def test_the_tables_show_every_size() -> None:
    page = table.page([{"cells": made_up(), "seeds": list(SEEDS), "environments": [], "inequalities": []}])
    assert "| whole, trained as long | 0.7500 | 0.7500 |" in page
    assert all(f"at most {share:.0%} of all parameters" in page for share in run.SHARES)
    assert "| the smallest, 36.0% of all | 0.6500 | 0.6500 |" in page


def test_the_whole_model_has_as_many_settings_and_the_same_decay() -> None:
    tried = run.sweeps(lambda: pytest.fail("nothing is trained"), Scale())
    assert len(tried["super"].changes) == len(tried["full"].changes)
    assert {tried[arm].usual["weight_decay"] for arm in tried} == {1e-4}
    assert all(change.keys() <= sweep.usual.keys() for sweep in tried.values() for change in sweep.changes)


@pytest.mark.slow
def test_the_quick_claim_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scenes are made of scikit-learn's digits and photographs")
    store = Store(tmp_path / "results", scratch=tmp_path / "scratch", quick=True)
    found = run.run(quick=True, store=store)
    assert len(found) == 9 + 2 * 8
    assert (tmp_path / "results" / "supersam-quick.json").is_file()
