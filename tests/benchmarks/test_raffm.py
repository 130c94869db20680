"""The claim on RaFFM: its judgement on made-up numbers, its tables, and one arm on a toy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks._arms import at_bytes
from benchmarks._federated import SEEDS
from benchmarks.raffm import arms, run, table, tasks
from lissome.core.budget import Budget
from lissome.core.errors import AssetError
from lissome.engine.federate.planner import Planner
from lissome.models.space import Axis, Space
from tests.benchmarks import federated
from tests.benchmarks.federated import all_hold, cell_of, names_it, result_of

_ACCURACY = {
    "raffm": 0.80, "full": 0.81, "big-only": 0.6, "heterofl": 0.75, "smallest": 0.7, "cifar10-raffm": 0.5,
    "cifar10-full": 0.51, "cifar10-big-only": 0.4, "mail-raffm": 0.95, "mail-full": 0.96, "mail-big-only": 0.8,
}  # fmt: skip
_SIZES = [{"share": 0.2 + index / 30, "accuracy": 0.7} for index in range(24)]


def _cell(arm: str, accuracy: float) -> dict[str, Any]:
    spent = (0, 30, 60, 90) if "full" in arm else (0, 25, 50)
    more = {"trained": {"40%": 3, "100%": 1}, "sizes": _SIZES, "big": 0.2}
    halves = {"halves": {"salience": 0.5, "none": 0.4, "random": 0.3}} if "full" in arm else {}
    return cell_of(accuracy, spent=spent, **more, **halves)


GOOD: dict[str, dict[str, Any]] = {
    "preserved": {"difference": 1e-6, "size": 1.0},
    "steps": {name: {"seconds": at / 10, "params": at * 1e6} for at, name in enumerate(("small", "middle", "big"), 1)},
    **{f"{arm}-{seed}": _cell(arm, value) for arm, value in _ACCURACY.items() for seed in SEEDS},
}


def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy has small MLPs: without fewer heads it does not fit the devices."""
    federated.toy(folder, monkeypatch)
    monkeypatch.setattr(arms, "SLICES", {"elastic": ["width", "groups"], "shares": [1.0, 0.75, 0.5, 0.25]})


def test_everything_holds_when_it_does() -> None:
    assert all_hold(run.judge, GOOD) == 15


def test_every_cell_is_asked_for_with_facts_that_can_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(run, "judged", lambda _store, facts, jobs, _judge: asked.update(facts=facts, jobs=jobs))
    run.run(True, cast("Any", None))
    for task in tasks.TASKS:
        assert {f"{task.prefix}{arm}-0" for arm in task.arms} <= set(asked["jobs"])
        assert asked["facts"]["tasks"][task.prefix]["words"] == task.words
    assert json.dumps([asked["facts"], *(settings for settings, _ in asked["jobs"].values())])


def test_what_was_not_judged_lies_between_what_was() -> None:
    cell = {"accuracy": [0.0, None, None, 0.6, None, 0.8], "spent": [0, 10, 20, 30, 40, 50]}
    expected = {0: 0.0, 19: 0.2, 20: 0.4, 30: 0.6, 45: 0.7, 900: 0.8}
    assert {limit: at_bytes([cell], [{"spent": [0, limit]}])[0] for limit in expected} == pytest.approx(expected)
    assert at_bytes([cell, cell], [{"spent": [20]}, cell]) == pytest.approx([0.4, 0.8]), "each seed by its own bytes"


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("raffm", {"accuracy": [0.1, 0.5, 0.5]}, "whole models"), ("raffm", {"payload": 100}, "bytes"),
        ("big-only", {"accuracy": [0.1, 0.9]}, "big clients"), ("raffm", {"sizes": _SIZES[:9]}, "cut"),
        ("full", {"halves": {"salience": 0.3, "none": 0.4, "random": 0.3}}, "halves"),
        ("cifar10-raffm", {"accuracy": [0.1, 0.3]}, "CIFAR-10: RaFFM ≥"),
        ("mail-raffm", {"accuracy": [0.1, 0.9]}, "mail: RaFFM ≥"), ("preserved", {"difference": 1.0}, "order"),
        ("raffm", {"big": 0.31}, "hold the whole model"),
        ("steps", {"small": {"seconds": 1.0, "params": 1}}, "small device's step"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    names_it(run.judge, GOOD, arm, changes, words)


def test_tables_say_what_was_measured() -> None:
    rates = {**arms.SWEEP.facts_of(arms.SWEEP.middle())}
    facts = {
        **rates, "rounds": 12, "clients": 10, "alpha": 0.3, "languages": 12, "step": {"epochs": 2.0},
        "tasks": {task.prefix: {**task.facts, "rounds": task.rounds} for task in tasks.TASKS},
        "fleet": list(arms.FLEET),
    }  # fmt: skip
    cells = {**GOOD, **{f"full-{seed}": {**GOOD["full-0"], "accuracy": [0.1, 0.3, 0.5, 0.81]} for seed in SEEDS}}
    result = result_of(run.judge, cells, facts)
    page = table.page([result])
    assert "to 80.0 % where whole copies reach 81.0 %, with 56% of the bytes" in table.summary([result])
    assert "| full | 81.0 ± 0.0 | 30.0 ± 0.0 | 65.0 ± 0.0 | 50.0 ± 0.0 | 0 |" in page, (
        "after 30 of the 50 bytes of RaFFM"
    )
    assert "2 without a budget, 4 block_params<=75%, 4 block_params<=50%." in page
    assert all(page.count(f"| {line} |") == 1 for line in ("big-only | 40.0 ± 0.0", "raffm | 95.0 ± 0.0"))
    assert "On mail: 3000 examples, 8 rounds of 1 epochs" in page
    assert "| smallest | 70.0 ± 0.0 | – | 65.0 ± 0.0 |" in page, "of the size that was trained"
    assert "| raffm | 40%: 3, 100%: 1 |" in page


def test_drawn_sizes_are_unlike_and_the_smallest_device_comes_first() -> None:
    axes = tuple(Axis(f"layers.{at}.{name}", (1, 2, 3, 4)) for at in range(6) for name in ("width", "groups"))
    planner = Planner(Space(axes), _Counted())
    found = arms.drawn_sizes(planner, 0, arms.SIZES)
    sizes = [planner.figures(one)["block_params"] for one in found]
    assert len(set(sizes)) == run.FEWEST + 4 == len(sizes)
    assert found[0] == planner.largest(Budget.parse("block_params<=50%"))
    assert sizes[:3] == [24.0, 12.0, 48.0], "at most 50 % of 48, the smallest, the whole"
    assert arms.drawn_sizes(planner, 0, 1) == found[:1]


class _Counted:
    """Counts a Subnet by the sum of its choices."""

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        return {"block_params": float(sum(subnet.values()))}

    def provenance(self, term: str) -> str:
        return f"{term}: counted"


@pytest.mark.long
def test_halves_of_a_toy_by_every_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.arm("full", 0, 1, 1e-3, tmp_path / "arm")
    assert set(cell["halves"]) == {"salience", "none", "random"}
    assert 0 < cell["big"] <= 1
    assert len(cell["spent"]) == len(cell["accuracy"])
    assert not cell["spent"][0]


@pytest.mark.long
def test_steps_of_every_device_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    found = arms.steps()
    assert list(found) == [device["name"] for device in arms.FLEET]
    assert found["big"]["params"] > found["middle"]["params"] > found["small"]["params"]
    assert all(one["seconds"] > 0 for one in found.values())


def test_every_arm_has_a_rate_that_was_tried() -> None:
    beside = [({name: tasks.RATE_OF[name] for name in task.arms}, task.sweep) for task in tasks.TASKS]
    for rate_of, sweep in [(arms.RATE_OF, arms.SWEEP), *beside]:
        assert set(rate_of.values()) == set(sweep.rates)
        assert len({len(rates) for rates in sweep.rates.values()}) == 1, "as many trials for all"


@pytest.mark.slow
def test_pictures_on_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(tasks._LEARNT, "steps", 2)
    few = replace(tasks.PICTURES, data={**tasks.PICTURES.data, "most": 300})
    try:
        cell = few.arm("big-only", 0, 1, 3e-3, tmp_path)
    except AssetError as error:
        pytest.skip(str(error))
    assert sum(cell["trained"].values()) == 2
    assert 0 < cell["accuracy"][-1] < 1


@pytest.mark.long
@pytest.mark.parametrize("arm", ["raffm", "big-only", "adapters"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    monkeypatch.setitem(arms.ARMS, "adapters", {**arms.ARMS["adapters"], "rank": 1})  # as small as the toy is
    cell = arms.arm(arm, 0, 1, 1e-3, tmp_path / "arm")
    assert len(cell["accuracy"]) == 2
    assert len(cell["kinds"]) == 10
    assert sum(cell["trained"].values()) == (2 if arm == "big-only" else 10)
    if arm == "raffm":
        assert len(cell["sizes"]) == arms.SIZES
        assert cell["sizes"][2]["share"] == 1.0
        assert cell["sizes"][2]["accuracy"] == pytest.approx(cell["accuracy"][-1])


@pytest.mark.long
@pytest.mark.parametrize("arm", ["raffm", "smallest", "big-only"])
def test_settings_are_tried_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    assert 0 <= arms.trial(arm, {"lr": 1e-3, "epochs": 1.0}, tmp_path / "arm") <= 1
