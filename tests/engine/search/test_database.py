"""Trials in a database: continued, shared by processes, one of them killed; what Optuna reads; what is refused."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lissome.core.errors import ArtifactError, ConfigError, MissingExtraError
from lissome.engine.search import Found, Goal, Problem, SearchConfig, search
from lissome.engine.search._connection import file_of, guarded
from lissome.engine.search.database import Database
from lissome.engine.search.samplers import names
from lissome.models.space import Axis, Space, Subnet
from tests.engine.search.landscapes import layers, problem
from tests.engine.search.workers import check_a_killed_worker, killed_search, lines, worker

CONFIG = SearchConfig(trials=14, heartbeat=1)


class StopError(Exception):
    """Stands for a crash."""


def choices(found: Found) -> list[tuple[int, ...]]:
    return [point.choices for point in found.points]


def stopping(plain: Problem, after: int) -> Problem:
    """The same problem, ending in a crash at one of its evaluations."""
    calls = iter(range(10_000))

    def evaluate(subnet: Subnet) -> dict[str, float]:
        if next(calls) == after:
            raise StopError
        return dict(plain.evaluate(subnet))

    return replace(plain, evaluate=evaluate)


@pytest.mark.long
@pytest.mark.parametrize("sampler", [name for name in names() if name != "random"])
def test_interrupted_and_continued_finds_what_an_undisturbed_search_finds(sampler: str, tmp_path: Path) -> None:
    plain, config = problem(4), replace(CONFIG, sampler=sampler, population=4, trials=18)
    file = tmp_path / "study.db"
    for after in (0, 7, 3):
        with pytest.raises(StopError):
            search(stopping(plain, after), config, seed=1, study=file)
    assert choices(search(plain, config, seed=1, study=file)) == choices(search(plain, config, seed=1))


@pytest.mark.long
def test_killed_and_continued_at_once_finds_what_an_undisturbed_search_finds(tmp_path: Path) -> None:
    """Without a wait for missed signs of life, in which it would go on without the trial that was cut short."""
    file, config = tmp_path / "study.db", SearchConfig(trials=14, population=4)
    assert killed_search(file, 9) == -signal.SIGKILL
    start = time.monotonic()
    found = search(problem(4), config, seed=1, study=file)
    assert time.monotonic() - start < config.heartbeat
    assert choices(found) == choices(search(problem(4), config, seed=1))


def test_the_same_call_again_evaluates_nothing_and_more_trials_go_on(tmp_path: Path) -> None:
    plain, file = problem(4), tmp_path / "a folder" / "study?.db"
    found = search(plain, CONFIG, study=file)
    assert search(stopping(plain, 0), CONFIG, study=str(file)) == found
    more = search(plain, replace(CONFIG, trials=20), study=f"sqlite:///{file}")
    assert choices(more)[:14] == choices(found)
    assert len(more.points) == 20


@pytest.mark.long
def test_two_processes_share_a_study_and_one_that_is_killed_loses_no_trial(tmp_path: Path) -> None:
    check_a_killed_worker(tmp_path, tmp_path / "study.db")


@pytest.mark.long
def test_two_processes_divide_the_trials(tmp_path: Path) -> None:
    both = [worker(tmp_path, tmp_path / "study.db", 0.3, name) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    done = Counter([*lines(tmp_path / "a.log"), *lines(tmp_path / "b.log")])
    assert max(done.values()) == 1
    assert len(done) == 16
    assert min(len(lines(tmp_path / f"{name}.log")) for name in "ab") > 2
    assert choices(Found.load(tmp_path / "a.json")) == choices(Found.load(tmp_path / "b.json"))


def test_a_dead_process_is_succeeded_and_a_living_one_is_not_robbed(tmp_path: Path) -> None:
    """Whoever took a trial over ends it; the late one, who was thought dead, changes nothing any more."""
    plain = problem(4)
    figures, others = {"loss": 1.0, "macs": 2.0}, {"loss": 9.0, "macs": 9.0}
    late, other = (Database(tmp_path / "study.db", plain.space, plain.goal, {}, heartbeat=1) for _ in range(2))
    with closing(late), closing(other):
        late.add(plain.space.full, "start", {"note": 3})
        late.add(plain.space.smallest, "start", {})
        silent, alive = late.claim(), late.claim()
        assert silent is not None and alive is not None and silent.notes == {"note": 3}
        assert late.claim() is None
        with late.working(alive):
            time.sleep(5.5)  # five signs of life of the first are missed
            again = other.claim()
            assert again is not None and (again.number, again.subnet, again.notes) == (0, silent.subnet, silent.notes)
            assert other.claim() is None
        late.finish(silent, others, 1.0)
        late.fail(silent, "too late")
        other.finish(again, figures, 1.0)
        late.finish(silent, others, 1.0)
        assert [(trial.state, trial.figures) for trial in late.trials()] == [("done", figures), ("running", {})]


def test_a_process_that_is_gone_from_this_machine_is_succeeded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = problem(4)
    gone, other = (Database(tmp_path / "study.db", plain.space, plain.goal, {}) for _ in range(2))
    with closing(gone), closing(other):
        for subnet in (plain.space.full, plain.space.smallest):
            gone.add(subnet, "start", {})
        living = gone.claim()
        with monkeypatch.context() as patch:
            patch.setattr("lissome.engine.search.database.identity", lambda _: (2**22 + 1, 5.0))
            lost = gone.claim()
        assert living is not None and lost is not None
        again = other.claim()
        assert again is not None and (again.number, again.subnet) == (lost.number, lost.subnet)
        assert other.claim() is None, "the other trial's process lives"
        gone.finish(lost, {"loss": 9.0, "macs": 9.0}, 1.0)
        assert [trial.state for trial in other.trials()] == ["running", "running"]


def test_a_subnet_that_was_written_down_twice_counts_once(tmp_path: Path) -> None:
    """As two processes may do that begin at one moment on a server."""
    plain, calls = problem(4), Counter[Subnet]()
    key = {**plain.identity(), "seed": 0, "sampler": "nsga2", "population": 0}
    with closing(Database(tmp_path / "study.db", plain.space, plain.goal, key)) as database:
        for subnet in (plain.space.full, plain.space.smallest) * 2:
            database.add(subnet, "start", {})

    def evaluate(subnet: Subnet) -> dict[str, float]:
        calls[subnet] += 1
        return dict(plain.evaluate(subnet))

    found = search(replace(plain, evaluate=evaluate), CONFIG, study=tmp_path / "study.db")
    assert len(found.points) == len(set(choices(found))) == 14
    assert set(calls.values()) == {1}


def test_optuna_and_its_dashboard_read_the_study(tmp_path: Path) -> None:
    """Values, constraints, parameters and attributes by Optuna's own functions, as its dashboard reads them."""
    plain = problem(4, bound=0.5)
    found = search(plain, CONFIG, study=tmp_path / "study.db")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    assert optuna.get_all_study_names(storage) == ["search"]
    study = optuna.load_study(study_name="search", storage=storage)
    assert study.metric_names == ["loss", "macs"]
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == len(found.points)
    for trial, point in zip(trials, found.points, strict=True):
        assert trial.values == [point.figures["loss"], point.figures["macs"]]
        excess = pytest.approx(point.figures["macs"] / 0.5 - 1)
        assert trial.constraints == {"macs<=0.5": excess, "0": excess}, "by name, and as the dashboard reads them"
        assert {name: trial.user_attrs[name] for name in point.figures} == point.figures
        assert tuple(trial.params[axis.name] for axis in plain.space.axes) == point.choices
        assert trial.user_attrs["lissome:by"] == point.by
    front = {tuple(trial.values) for trial in study.best_trials}
    assert front == {plain.goal.values(found.points[place].figures) for place in found.front}
    table = study.trials_dataframe() if _has("pandas") else None
    assert table is None or {"values_loss", "user_attrs_macs"} <= set(table.columns)
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def test_uneven_choices_and_maximised_figures_go_there_and_back(tmp_path: Path) -> None:
    space = Space((Axis("rank", (4, 8, 32)), Axis("fixed", (7,)), Axis("keep", (0, 1))))
    asked = Problem(
        space=space, goal=Goal.of(["max accuracy", "macs"], "macs<=20"),
        evaluate=lambda subnet: {"accuracy": subnet["rank"] / 32},
        costs=lambda subnet: {"macs": float(subnet["rank"] * (1 + subnet["keep"]))},
    )  # fmt: skip
    found = search(asked, SearchConfig(trials=6), study=tmp_path / "study.db")
    assert len(found.points) == 6
    assert all(point.choices[1] == 7 for point in found.points)
    assert {point.figures.get("accuracy") for point in found.points} == {0.125, 0.25, None}
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.load_study(study_name="search", storage=storage)
    assert {trial.values[0] for trial in study.trials} == {0.125, 0.25, float("-inf")}
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_comparisons_are_not_made_twice(tmp_path: Path) -> None:
    plain = problem(4, bound=0.6)
    asked: list[Subnet] = []

    def selection(subnet: Subnet) -> dict[str, float]:
        asked.append(subnet)
        if len(asked) == 3:
            raise StopError
        return dict(plain.evaluate(subnet))

    judged = replace(plain, selection=selection)
    with pytest.raises(StopError):
        search(judged, CONFIG, study=tmp_path / "study.db")
    found = search(judged, CONFIG, study=tmp_path / "study.db")
    assert len(asked) == 1 + sum(bool(point.selection) for point in found.points)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"goal": Goal.of("loss")}, r'objectives was \["min loss", "min macs"\], now \["min loss"\]'),
        ({"space": layers(3)}, "space was"),
        ({"key": {"model": "b"}}, 'model was "a", now "b"'),
        ({"sampler": "random"}, 'sampler was "nsga2", now "random"'),
    ],
)
def test_another_search_is_not_continued_in_its_place(change: dict[str, object], named: str, tmp_path: Path) -> None:
    plain = replace(problem(4), key={"model": "a"})
    search(plain, CONFIG, study=tmp_path / "study.db")
    seed = change.pop("seed", 0)
    config = replace(CONFIG, sampler=change.pop("sampler", "nsga2"))
    with pytest.raises(ArtifactError, match=f"holds another search .{named}.*another place"):
        search(replace(plain, **change), config, seed=seed, study=tmp_path / "study.db")  # type: ignore[arg-type]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    search(problem(3), replace(CONFIG, trials=4), study=tmp_path / "study.db")
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return tmp_path / "study.db"


def one_line(error: pytest.ExceptionInfo[ArtifactError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "study.db" in text
    return text


@pytest.mark.parametrize("damage", ["text", "header", "middle", "empty tables"])
def test_a_damaged_study_is_one_clear_line(damage: str, begun: Path) -> None:
    content = bytearray(begun.read_bytes())
    if damage == "text":
        begun.write_text("this is no database\n" * 300)
    elif damage == "header":
        begun.write_bytes(b"\0" * 200 + bytes(content[200:]))
    elif damage == "middle":
        begun.write_bytes(bytes(content[:4096]) + b"\xff" * (len(content) - 4096))
    else:
        with closing(sqlite3.connect(begun)) as connection:
            connection.execute("DROP TABLE trials")
            connection.execute("CREATE TABLE trials (trial_id INTEGER)")
            connection.commit()
    with pytest.raises(ArtifactError) as error:
        search(problem(3), replace(CONFIG, trials=6), study=begun)
    assert "is damaged" in one_line(error)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE trial_user_attributes SET value_json = '{half' WHERE trial_id = 2",
        """UPDATE trial_system_attributes SET value_json = '{"a": 77}' WHERE key = 'fixed_params' AND trial_id = 2""",
    ],
)
def test_a_row_that_was_not_written_by_a_search_is_one_clear_line(damage: str, begun: Path) -> None:
    with closing(sqlite3.connect(begun)) as connection:
        connection.execute(damage)
        connection.commit()
    with pytest.raises(ArtifactError) as error:
        search(problem(3), replace(CONFIG, trials=6), study=begun)
    assert "is damaged" in one_line(error)


def test_a_study_without_room_says_so() -> None:
    with pytest.raises(ArtifactError, match=r"study.db has no room .*free some space"), guarded("study.db"):
        raise sqlite3.OperationalError("database or disk is full")


def test_a_locked_study_is_one_clear_line(begun: Path) -> None:
    plain = problem(3)
    with closing(sqlite3.connect(begun, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ArtifactError) as error:
            Database(begun, plain.space, plain.goal, {}, patience=0.2)
    assert "is locked by another program" in one_line(error)


def test_a_process_that_never_lets_go_is_one_clear_line(begun: Path) -> None:
    from lissome.core.files import locked

    plain = problem(3)
    with locked(begun.with_name("study.db.lock")), pytest.raises(ArtifactError) as error:
        Database(begun, plain.space, plain.goal, {}, patience=0.2)
    assert "locked by another process" in one_line(error)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    plain = problem(3)
    (tmp_path / "study.db").mkdir()
    with pytest.raises(ArtifactError, match="cannot be used"):
        Database(tmp_path / "study.db", plain.space, plain.goal, {})


def test_urls_are_checked_and_do_not_tell_their_password() -> None:
    plain = problem(3)
    with pytest.raises(ConfigError, match="'nosuchdb://h/x' is not a database"):
        search(plain, CONFIG, study="nosuchdb://h/x")
    with pytest.raises(MissingExtraError, match=r"pip install pymysql") as error:
        search(plain, CONFIG, study="mysql+pymysql://me:secret@host/db")
    assert "secret" not in str(error.value)
    with pytest.raises(MissingExtraError, match=r"pip install mysqlclient"):  # what this URL asks for
        search(plain, CONFIG, study="mysql://me:secret@host/db")
    assert file_of("sqlite:///a/b.db") == Path("a/b.db")
    assert file_of("a/b.db") == Path("a/b.db")
    assert file_of("postgresql://h/x") == "postgresql://h/x"


def test_the_space_stands_in_the_study(begun: Path) -> None:
    with closing(sqlite3.connect(begun)) as connection:
        (text,) = connection.execute(
            "SELECT value_json FROM study_user_attributes WHERE key = 'lissome:space'"
        ).fetchone()
    assert Space.from_json(json.loads(text)) == layers(3)
