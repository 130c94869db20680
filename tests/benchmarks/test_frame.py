from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import _frame, _tables
from lissome.core.files import read_json

CLAIM = """
from pathlib import Path
from benchmarks._frame import Inequality

LOG = Path(__file__).parent / "log"


def compute(seed):
    with LOG.open("a") as log:
        log.write(f"{seed}\\n")
    if (Path(__file__).parent / "kill").exists() and seed == 1:
        raise KeyboardInterrupt
    return {"value": 10 + seed}


def run(quick, store):
    found = []
    for seed in (0,) if quick else (0, 1):
        if store.wants(f"toy-{seed}"):
            found.append(store.cell(f"toy-{seed}", {"seed": seed}, lambda: compute(seed))["value"])
    if store.pattern is not None:
        return []
    store.publish("toy", {"best": max(found)})
    bound = float((Path(__file__).parent / "bound").read_text())
    return [Inequality.of("best", max(found), "<=", bound)]
"""
TABLE = """
def summary(results):
    return f"best {results[0]['best']}"


def page(results):
    return f"| best |\\n| --- |\\n| {results[0]['best']} |"
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one toy claim, its page and a README."""
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    claim, page = tmp_path / "benchmarks" / "toy", tmp_path / "docs" / "methods" / "compress" / "toy.md"
    for folder in (claim, page.parent):
        folder.mkdir(parents=True)
    (claim / "run.py").write_text(CLAIM)
    (claim / "table.py").write_text(TABLE)
    (claim / "bound").write_text("20")
    for path in (page, tmp_path / "README.md"):
        path.write_text(f"# Toy\n{_tables.BEGIN}\nold\n{_tables.END}\nafter\n")
    return tmp_path


def log(root: Path) -> list[str]:
    return (root / "benchmarks" / "toy" / "log").read_text().split()


def test_a_claim_that_holds_exits_with_0_and_one_that_fails_with_1(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["toy"], root) == 0
    (root / "benchmarks" / "toy" / "bound").write_text("10.5")
    assert command.main([], root) == 1
    assert "FAILS  best: 11 <= 10.5" in capsys.readouterr().out


def test_an_interrupted_run_repeats_no_finished_cell(root: Path) -> None:
    kill = root / "benchmarks" / "toy" / "kill"
    kill.touch()
    with pytest.raises(KeyboardInterrupt):
        command.main(["toy"], root)
    kill.unlink()
    assert command.main(["toy"], root) == 0
    assert log(root) == ["0", "1", "1"]
    result = root / "benchmarks" / "toy" / "results" / "toy.json"
    before = result.read_bytes()
    assert command.main(["toy"], root) == 0
    assert (result.read_bytes(), log(root)) == (before, ["0", "1", "1"])
    assert command.main(["toy", "--fresh"], root) == 0
    assert log(root) == ["0", "1", "1", "0", "1"]


def test_cells_say_where_they_were_measured_and_new_settings_make_new_ones(root: Path) -> None:
    store = _frame.Store(root / "results", scratch=root / "scratch")
    assert store.cell("a", {"x": 1}, lambda: {"y": 1}) == {"y": 1}
    assert store.cell("a", {"x": 1}, lambda: {"y": 2}) == {"y": 1}
    assert store.cell("a", {"x": 2}, lambda: {"y": 2}) == {"y": 2}
    cells = [read_json(path) for path in (root / "results" / "cells").iterdir()]
    assert len(cells) == 2
    assert all({"cpu", "threads", "versions"} <= cell["environment"].keys() for cell in cells)
    published = read_json(store.publish("a", {"z": 3}))
    assert (published["z"], len(published["environments"])) == (3, 1)
    assert _frame.published(store.publish("b", {}, cells=["a"]))["cells"] == {"a": {"y": 2}}


def test_cells_that_no_setting_asks_for_are_told(root: Path, capsys: pytest.CaptureFixture) -> None:
    command.main(["toy"], root)
    assert "belong to no setting" not in capsys.readouterr().out
    folder = root / "benchmarks" / "toy" / "results" / "cells"
    (folder / "toy-0-former.json").write_text("{}")
    command.main(["toy"], root)
    assert "toy: 1 stored cells belong to no setting any more: toy-0-former.json" in capsys.readouterr().out


def test_one_cell_alone_can_be_computed_and_judges_nothing(root: Path) -> None:
    (root / "benchmarks" / "toy" / "bound").write_text("0")
    assert command.main(["toy", "--cells", "toy-1"], root) == 0
    assert log(root) == ["1"]
    assert not (root / "benchmarks" / "toy" / "results" / "toy.json").exists()


def test_tables_come_from_full_results_alone(root: Path, capsys: pytest.CaptureFixture) -> None:
    command.main(["toy", "--quick"], root)
    assert command.main(["table"], root) == 0
    page, readme = root / "docs" / "methods" / "compress" / "toy.md", root / "README.md"
    assert _tables.NONE in page.read_text()
    command.main(["toy"], root)
    assert command.main(["table", "--check"], root) == 1
    assert "README.md: out of date" in capsys.readouterr().out
    assert _tables.NONE in readme.read_text()
    assert command.main(["table"], root) == 0
    line = "- [Toy](docs/methods/compress/toy.md): best 11"
    assert readme.read_text() == f"# Toy\n{_tables.BEGIN}\n{line}\n{_tables.END}\nafter\n"
    assert "| 11 |" in page.read_text()
    assert command.main(["table", "--check"], root) == 0


def test_a_page_without_markers_is_named(root: Path) -> None:
    (root / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md must have"):
        command.main(["table"], root)


def test_an_unknown_claim_is_refused(root: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["tyo"], root)
    assert "no claim 'tyo'; known: toy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("left", "relation", "right", "ok"),
    [(1, "<", 1, False), (1, "<=", 1, True), (2, ">", 1, True), (math.nan, "<=", 1, False), (1, "==", 1, True)],
)
def test_inequalities(left: float, relation: _frame.Relation, right: float, ok: bool) -> None:
    assert _frame.Inequality.of("x", left, relation, right).ok is ok


def test_the_tables_of_this_checkout_are_up_to_date() -> None:
    assert command.main(["table", "--check"]) == 0
