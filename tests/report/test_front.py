"""The front of a super-network on its page: what the script gets, without a script, and clicked in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lissome.core.errors import ArtifactError
from lissome.core.files import write_json
from lissome.core.manifest import read_manifest, write_manifest
from lissome.engine.search import Found, Goal, Point
from lissome.models.space import Axis, Space
from lissome.report.facts import read_page
from lissome.report.page import render, write_page
from tests.report import samples
from tests.report.browser import browser
from tests.report.test_page import Reader

pytest.importorskip("plotly", reason="the page needs the extra `report`")

SPACE = Space((Axis("layers.0.mlp.width", (8, 16, 32)), Axis("layers.1.mlp", (0, 1)), Axis("<b>", (1, 2))))


def point(number: int, choices: tuple[int, ...], accuracy: float, macs: float, *held: float) -> Point:
    """A point; further figures are its accuracies on the splits to choose by and to report on."""
    selection, test = ([{"accuracy": value} for value in held] + [{}, {}])[:2]
    return Point(
        number=number, choices=choices, figures={"accuracy": accuracy, "macs": macs}, selection=selection, test=test
    )


POINTS = (
    point(0, (32, 1, 2), 0.9, 4e6, 0.88, 0.87),
    point(1, (8, 0, 1), 0.6, 1e6, 0.61),
    point(2, (16, 0, 2), 0.8, 2e6, 0.79, 0.78),
    point(3, (32, 0, 1), 0.5, 3e6),
)


def made(folder: Path, *, bound: str = "macs<=2500000", statistics: bool = False) -> Path:
    """A super-network of four points, of which a search under a bound chose one."""
    place = samples.artifact(folder)
    manifest = read_manifest(place)
    write_manifest(place, replace(manifest, tags=("elastic",)))
    write_json(place / "elastic.json", {})
    (place / "result.json").unlink()
    goal = Goal.of(("accuracy", "macs"), bound)
    Found(space=SPACE, goal=goal, points=POINTS, original={"macs": 4e6}, sampler="nsga2").sorted().save(
        place / "found.json"
    )
    if statistics:
        (place / "statistics.safetensors").touch()
    return place


def data_of(place: Path) -> dict[str, Any]:
    return dict(json.loads(Reader(render(read_page(place))).data))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("front",), [99], r"front\[0\] is 99, but there are 4 points"),
        (("front",), [1, -1], r"front\[1\] is -1"),
        (("front",), [10**400], "a number far beyond them"),
        (("front",), [1.0], "must be a whole number"),
        (("chosen",), 4, "chosen is 4"),
        (("chosen",), -3, "chosen is -3"),
        (("points",), [], "there are 0 points"),
        (("points", 0, "choices"), [32, 1], r"points\[0\] has 2 choices for 3 axes"),
        (("points", 3, "choices"), [32, 1, 1, 1], r"points\[3\] has 4 choices for 3 axes"),
        (("points", 1, "choices"), [7, 1, 1], "makes a choice that 'layers.0.mlp.width' does not have"),
        (("space", "axes", 0, "choices"), [], "found.json: the choices of layers.0.mlp.width must be distinct"),
        (("goal", "objectives"), [], "found.json: a search needs an objective"),
    ],
)
def test_a_damaged_search_is_one_line(tmp_path: Path, at: tuple[Any, ...], value: Any, words: str) -> None:
    place = made(tmp_path / "S")
    fields = inner = json.loads((place / "found.json").read_text())
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    (place / "found.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=words) as error:
        render(read_page(place))
    assert "found.json" in str(error.value)
    assert len(str(error.value)) < 300


def test_the_script_gets_every_point_and_its_command(tmp_path: Path) -> None:
    place = made(tmp_path / "S")
    data = data_of(place)
    assert [point["number"] for point in data["points"]] == [0, 1, 2, 3]
    assert [point["number"] for point in data["points"] if point["front"]] == [1, 2]
    assert [point["number"] for point in data["points"] if point["chosen"]] == [2]
    chosen = data["points"][2]
    assert chosen["cut"] == {"layers.0.mlp.width": 16, "layers.1.mlp": 0} and chosen["test"] == {"accuracy": 0.78}
    assert chosen["figures"] == {"accuracy": 0.8, "macs": 2e6}, "all points of a chart are of one split, the search's"
    assert chosen["selection"] == {"accuracy": 0.79} and data["points"][3]["selection"] == {}
    assert data["original"] == {"accuracy": 0.9, "macs": 4e6}
    assert (data["across"], data["up"]) == ("macs", "accuracy")
    assert data["limits"] == [{"name": "macs", "term": "macs<=2.5M", "value": 2.5e6}]
    assert "2".join(data["extract"]) == f"lissome extract {place} --point 2 --out S-point2"
    assert all(point["extractable"] for point in data["points"])


def test_with_batch_norms_only_the_front_and_the_choice_can_be_extracted(tmp_path: Path) -> None:
    place = made(tmp_path / "S", statistics=True)
    assert [point["extractable"] for point in data_of(place)["points"]] == [False, True, True, False]
    replace(Found.load(place / "found.json"), chosen=0).save(place / "found.json")
    assert [point["extractable"] for point in data_of(place)["points"]] == [True, True, True, False]


def test_without_a_script_the_front_is_a_table(tmp_path: Path) -> None:
    page = Reader(render(read_page(made(tmp_path / "S"))))
    text = " ".join(" ".join(page.texts).split())
    assert "4 sub-networks were evaluated by nsga2" in text
    assert "2 (chosen)" in text and "All 2 points of the front" in text
    assert "Its sizes" in text, "the ends that were measured when it was made"
    assert page.tags.count("script") == 3 and page.handlers == []


def test_before_a_search_the_page_says_how_to_search(tmp_path: Path) -> None:
    place = made(tmp_path / "S")
    (place / "found.json").unlink()
    page = Reader(render(read_page(place)))
    assert "script" not in page.tags
    assert f"lissome search {place}" in " ".join(page.texts)


def test_a_front_that_nothing_reaches_says_so(tmp_path: Path) -> None:
    page = Reader(render(read_page(made(tmp_path / "S", bound="macs<=5"))))
    assert "script" not in page.tags
    assert "no point that holds every bound" in " ".join(page.texts)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here to check the syntax of the scripts")
def test_the_scripts_are_javascript(tmp_path: Path) -> None:
    from lissome.report.page import _source

    for name in ("page.js", "front.js", "federation.js"):
        file = tmp_path / name
        file.write_text(_source("common.js") + _source(name), encoding="utf-8")
        subprocess.run(["node", "--check", str(file)], check=True)


_PLACE = (
    "(() => {{ const box = document.querySelectorAll('#chart .scatterlayer .trace')[{trace}]"
    ".querySelectorAll('.points path')[{point}].getBoundingClientRect();"
    " return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
)


@pytest.mark.peer
@pytest.mark.slow
def test_a_click_shows_a_point_and_its_command(tmp_path: Path) -> None:
    place = made(tmp_path / "S", statistics=True)
    with browser(tmp_path / "profile") as chromium:
        chromium.open(write_page(place))
        assert chromium.read("document.getElementById('title').textContent") == "Point 2, chosen"
        chromium.click(*chromium.read(_PLACE.format(trace=1, point=0)))  # the front from the left: the smallest
        chromium.wait("document.getElementById('title').textContent === 'Point 1, on the front'")
        command = chromium.read("document.getElementById('extract').textContent")
        assert command == f"lissome extract {place} --point 1 --out S-point1"
        shown = chromium.read("document.getElementById('subnet').innerText")
        assert "layers.0.mlp.width" in shown and "8" in shown and "removed" in shown and "<b>" in shown
        assert "25.0 %" in chromium.read("document.getElementById('figures').innerText")
        chromium.click(*chromium.read(_PLACE.format(trace=0, point=1)))  # evaluated, beaten
        chromium.wait("document.getElementById('title').textContent === 'Point 3, not on the front'")
        assert "Only the front and the chosen point" in chromium.read("document.getElementById('extract').textContent")
        assert chromium.read("document.getElementById('copy').hidden") is True
