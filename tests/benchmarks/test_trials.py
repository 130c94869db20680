"""Settings that claims on federation try first: what is tried, what is chosen, by which texts, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks._arms import SWEPT, at_bytes_of, by_arm, paired_told
from benchmarks._federated import job_of, public_texts, recipe
from benchmarks._frame import Store
from benchmarks._trials import Trials, tried
from lissome.engine.classify import Encoded
from tests.benchmarks.federated import toy


def _sweep(asked: list[Any]) -> Trials:
    def score(arm: str, changes: Mapping[str, Any], folder: Path) -> float:
        assert folder.exists()
        asked.append((arm, dict(changes)))
        return {1e-4: 0.1, 3e-5: 0.3, 1e-3: 0.2}[changes["lr"]] + (0.5 if "peer" in changes else 0.0)

    return Trials(
        rates={"a": (3e-5, 1e-4, 1e-3), "b": (1e-4, 1e-3, 3e-5)}, score=score, facts={"rounds": 2}, prefix="x-",
        knobs={"a": {"peer": (1.0, 3.0)}, "c": {"shares": ((1.0, 0.5), (1.0, 0.25))}}, rate_of={"c": "b"},
    )  # fmt: skip


def test_the_best_rate_is_chosen_and_other_settings_are_tried_with_it(tmp_path: Path) -> None:
    asked: list[Any] = []
    sweep, store = _sweep(asked), Store(tmp_path / "results", scratch=tmp_path / "scratch", pattern="nothing")
    chosen = sweep.chosen(store)
    assert chosen == {"a": 3e-5, "b": 3e-5}, (
        "rates decide the keys of all other cells, so that they are always measured"
    )
    assert sweep.middle() == {"a": 1e-4, "b": 1e-3}
    assert len(asked) == 6
    jobs = sweep.jobs(chosen)
    cells = {
        name: store.cell(name, settings, lambda one=compute: one(tmp_path))  # type: ignore[misc]
        for name, (settings, compute) in jobs.items()
    }
    assert asked[6:] == [
        ("a", {"lr": 3e-5, "peer": 3.0}), ("c", {"lr": 3e-5, "shares": (1.0, 0.5)}),
        ("c", {"lr": 3e-5, "shares": (1.0, 0.25)}),
    ], "rates are stored, and the usual setting of an arm whose rates were tried too"  # fmt: skip
    assert not by_arm(cells), "a rate of 3e-05 is no seed"
    assert all(name.startswith(SWEPT) for name in cells)
    page = tried(sweep.facts_of(chosen), cells, "Short.")
    assert "| x-a | lr | 3e-05: 30.0; 0.0001: 10.0; 0.001: 20.0 | 3e-05 |" in page
    assert "| x-a | peer | 1: 30.0; 3: 80.0 | 1 |" in page
    assert "| x-c | shares | 1, 0.5: 30.0; 1, 0.25: 30.0 | 1, 0.5 |" in page
    assert not tried(sweep.facts_of(chosen), {}, "Short."), "quick runs try nothing"


@pytest.mark.long
def test_what_judges_in_the_end_chooses_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    made = recipe({"method": "fedavg"}, seed=0, rounds=1)
    job, tuning = job_of(made), job_of(made, tuning=True)
    for name in job.silos.names:
        before: Any = job.silos.client(name, job.model)
        after: Any = tuning.silos.client(name, job.model)
        assert _rows(after.data) | _rows(after.held_out) == _rows(before.data)
        assert len(after) + after.held == len(before)
    pools: Any = (tuning.silos.pool[1], job.silos.pool[1])
    judged = set(pools[0].texts)
    assert judged.isdisjoint(pools[1].texts)
    public = public_texts(tmp_path / "public.jsonl", tuning=True).read_text()
    assert public
    assert not any(f'"{text}"' in public for text in judged)


def _rows(part: Encoded) -> set[tuple[int, ...]]:
    return {tuple(token for token in row if token) for row in part.ids.tolist()}


def test_an_arm_that_ends_no_round_with_so_few_bytes_is_shown_after_its_first_one() -> None:
    dear = {"accuracy": [0.1, 0.5, 0.8], "spent": [0, 100, 200]}
    assert at_bytes_of([dear], [{"spent": [0, 150]}]) == "50.0"
    assert at_bytes_of([dear], [{"spent": [0, 40]}]) == "50.0 (one round, 2.5 × the bytes)"
    none = {"accuracy": [0.1, 0.1], "spent": [0, 0]}
    assert at_bytes_of([none], [{"spent": [0, 40]}]) == "10.0", "who sends nothing ends within any bytes"


def test_clients_are_compared_with_themselves() -> None:
    one, other = ({"own": {"a": {"told": at}, "b": {"told": at + 0.1}, "c": {"test": 1.0}}} for at in (0.6, 0.5))
    more, half = paired_told([one, one], [other, other])
    assert more == pytest.approx(0.1)
    assert half == pytest.approx(0.0)
