"""Searching a toy language model: the folder, continuing, several processes, every way to latency, and refusals."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from lissome import pipeline
from lissome.core.errors import (
    ArtifactError,
    BudgetError,
    BudgetUnmetError,
    ConfigError,
    LissomeError,
    UnknownNameError,
)
from lissome.core.events import Event, EventStream
from lissome.cost.measured import Request
from lissome.cost.predicted import Timed
from lissome.engine.search import Found
from lissome.engine.search.found import Split
from lissome.engine.search.subject import MaskedText
from lissome.models.space import Subnet
from lissome.pipeline import latencies
from lissome.pipeline.reports import SearchReport

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long


@pytest.fixture
def run(toy_folder: Path, toy_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))

    def call(**options: Any) -> SearchReport:
        given = {"data": str(toy_text), "trials": 12, "settings": ("population=4",), "out": tmp_path / "out"}
        return pipeline.search(str(toy_folder), **{**given, **options})

    return call


def test_a_search_leaves_its_trials_and_its_result(run: Any, tmp_path: Path) -> None:
    report = run(budget=("block_params<=70%",))
    found = Found.load(tmp_path / "out" / "found.json")
    assert report.evaluated == len(found.points) == 12
    assert report.objectives == ("min ppl", "min block_params")
    assert [point["number"] for point in report.front] == [found.points[place].number for place in found.front]
    limit = 0.7 * report.original["block_params"]
    assert all(point["figures"]["block_params"] <= limit for point in report.front)
    assert report.chosen is not None
    assert set(report.chosen["test"]) == {"ppl"}
    assert set(report.splits) == {"search", "selection", "test"}
    assert json.loads(json.dumps(report.to_json()))["chosen"]["number"] == report.chosen["number"]
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert len(study.trials) == 12
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]

    again = run(budget=("block_params<=70%",))
    assert {**again.to_json(), "seconds": 0} == {**report.to_json(), "seconds": 0}
    assert run(budget=("block_params<=70%",), trials=15).evaluated == 15
    with pytest.raises(ArtifactError, match=r"holds another search .bounds was"):
        run(budget=("block_params<=60%",))


def test_several_processes_share_the_trials(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process waits at its third trial until the other one has ended some."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    file, mine, plain = tmp_path / "out" / "study.db", [], MaskedText.quality

    def ended() -> int:
        with closing(sqlite3.connect(file)) as connection:
            return int(connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])

    def quality(self: MaskedText, subnet: Subnet, split: Split) -> dict[str, float]:
        if split == "search":
            mine.append(subnet)
            deadline = time.monotonic() + 120
            while len(mine) == 3 and ended() < 5 and time.monotonic() < deadline:
                time.sleep(0.1)
        return plain(self, subnet, split)

    monkeypatch.setattr(MaskedText, "quality", quality)
    heard: list[Event] = []
    report = run(workers=2, events=EventStream(heard.append), trials=20)
    assert report.evaluated == 20
    assert len(mine) <= 17, "the other process did the rest"
    assert (tmp_path / "out" / "worker-1.log").read_text() == ""
    assert not [event.message for event in heard if "worker" in event.message]


def test_latency_from_a_table_of_another_device(run: Any, toy_folder: Path, tmp_path: Path) -> None:
    """Planned with a table that was measured elsewhere: here one whose times are tenfold."""
    from lissome.cost.table import LatencyTable, latency_table

    latency_table(pipeline.load(toy_folder), seconds=0.4, threads=1).save(tmp_path / "here.json")
    fields = json.loads((tmp_path / "here.json").read_text())
    for phase in ("prefill", "decode"):
        fields[phase]["scale"] *= 10
    (tmp_path / "slow.json").write_text(json.dumps(fields))
    here, slow = (LatencyTable.load(tmp_path / f"{name}.json") for name in ("here", "slow"))
    assert here.device == slow.device
    report = run(budget=("latency<=80%",), device=str(tmp_path / "slow.json"), trials=8)
    assert report.provenance["latency"] == "predicted"
    assert report.front
    other = run(budget=("latency<=80%",), device=str(tmp_path / "here.json"), trials=8, out=tmp_path / "other")
    assert report.original["latency"] == pytest.approx(10 * other.original["latency"])


def test_another_devices_times_are_corrected_by_a_few_that_are_taken_here(
    run: Any, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table whose times are a thousandfold predicts, once corrected, what its own few measurements say."""
    from lissome.cost.table import latency_table

    monkeypatch.setattr(Request, "__post_init__", _short)
    latency_table(pipeline.load(toy_folder), seconds=0.4, threads=1).save(tmp_path / "table.json")
    fields = json.loads((tmp_path / "table.json").read_text())
    for phase in ("prefill", "decode"):
        fields[phase]["scale"] *= 1000
    (tmp_path / "slow.json").write_text(json.dumps(fields))
    asked = {"objectives": ("ppl", "latency"), "device": str(tmp_path / "slow.json"), "correct": 8}
    report = run(**asked, trials=6)
    timed = Timed.load(tmp_path / "out" / latencies.HERE)
    assert len(timed.seconds) == 8
    assert "corrected with 8 sub-networks timed here, on 8 sub-networks that it had not seen" in report.notes[0]
    as_it_was = run(**{**asked, "correct": 0}, trials=6, out=tmp_path / "other").original["latency"]
    assert 0 < report.original["latency"] < as_it_was / 50
    assert run(**asked, trials=7).original == report.original, "what was timed once is not timed again"


def test_latency_from_a_regression_says_how_it_ranks(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latencies, "TIMED_SUBNETS", 8)
    monkeypatch.setattr(Request, "__post_init__", _short)
    report = run(objectives=("ppl", "latency"), latency="regression", trials=6, check=3)
    assert report.provenance["latency"] == "predicted"
    assert "latency by a regression, on 8 sub-networks that it had not seen: Spearman" in report.notes[0]
    assert "latency by a regression, on 3 sub-networks that it had not seen" in report.notes[1]
    assert len(Timed.load(tmp_path / "out" / "timed.json").seconds) == 8
    moved = run(
        objectives=("ppl", "latency"), latency="regression", trials=6, out=tmp_path / "b",
        device=str(tmp_path / "out" / "timed.json"),
    )  # fmt: skip
    assert [point["figures"] for point in moved.front] == [point["figures"] for point in report.front]


def test_measured_latency_is_a_figure_of_every_subnet(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Request, "__post_init__", _short)
    asked = {"objectives": ("ppl", "latency"), "latency": "measured", "budget": ("latency<=99999%",)}
    report = run(**asked, trials=4)
    assert report.provenance["latency"] == "measured"
    assert all(point["figures"]["latency"] > 0 for point in report.front)
    again = run(**asked, trials=5)
    assert again.evaluated == 5 and again.bounds == report.bounds, "the original's time is the one of the first call"
    (again.out / latencies.WHOLE).write_text("{")
    with pytest.raises(ArtifactError, match="not timed again; restore it, or search into another folder"):
        run(**asked, trials=6)


def _short(request: Request) -> None:
    """Requests of a few tokens: what is tested is not the time itself."""
    for name, value in (("prompt", 8), ("new", 3), ("batch", 1)):
        object.__setattr__(request, name, value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sampler": "ngsa2"}, UnknownNameError, "did you mean 'nsga2'"),
        ({"objectives": ("pppl",)}, ConfigError, "did you mean 'ppl'"),
        ({"budget": ("memroy<=1GB",)}, BudgetError, "did you mean 'memory'"),
        ({"latency": "tabel"}, ConfigError, "did you mean 'table'"),
        (
            {"objectives": ("ppl", "latency"), "latency": "regression", "device": str(ROOT / "mkdocs.yml")},
            ArtifactError,
            "A regression reads sub-networks that were timed: timed.json",
        ),
        ({"objectives": ("ppl", "latency"), "correct": 12}, ConfigError, "name that device's file with --device"),
        (
            {"objectives": ("ppl", "latency"), "device": "there.json", "correct": 3},
            ConfigError,
            "--correct 3 is too few",
        ),
        ({"objectives": ("ppl", "latency"), "check": 1}, ConfigError, "--check 1 is too few to rank; give 3 or more"),
        ({"settings": ("populaton=4",)}, ConfigError, "did you mean 'population'"),
        ({"trails": 4}, ConfigError, "unknown argument of search 'trails'; did you mean 'trials'"),
        ({"budget": ("params<=1%",)}, BudgetUnmetError, "reachable is"),
        ({"objectives": ("ppl", "energy")}, BudgetError, "unknown figure 'energy'"),
        ({"objectives": ("min pppl",)}, BudgetError, "unknown figure 'pppl'; did you mean 'ppl'"),
        ({"objectives": ("ppl", "decode"), "latency": "regression"}, BudgetError, "unknown figure 'decode'"),
        ({"objectives": ("ppl", "accuracy")}, BudgetError, "unknown figure 'accuracy'"),
    ],
)
def test_mistakes_are_one_line(run: Any, options: dict[str, Any], kind: type[LissomeError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        run(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", ["min pppl", "accuracy", "energy"])
def test_a_figure_that_is_not_taken_is_refused_before_anything_is_evaluated(
    objective: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is timed for it")

    monkeypatch.setattr(latencies, "time_subnets", timed)
    with pytest.raises(BudgetError, match="This search takes no other ones"):
        run(objectives=("ppl", "latency", objective), latency="regression")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_searchs_is_refused_and_stays_as_it_is(run: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not the folder of a search"):
        run(out=tmp_path / "notes")
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not the folder of a search"):
        run(out=tmp_path / "file")


def test_several_processes_need_a_name(toy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load the model by its name"):
        pipeline.search(pipeline.load(toy_folder), out=tmp_path / "out", workers=2)
