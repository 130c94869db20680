"""The page's part on a federation: what it says of rounds, clients, bytes and sizes, and that nothing breaks out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lissome.core.files import write_json
from lissome.report.page import write_page
from lissome.report.rounds import bytes_of, federation, script_data, worst_decile
from lissome.report.sections import text
from tests.report import samples
from tests.report.browser import browser

pytest.importorskip("plotly", reason="the page needs the extra `report`")

LEDGER = """round,client,action,direction,payload,message,used
0,a,profile,down,0,100,1
1,a,train,down,900,1000,1
1,b,train,up,900,1500,0
1,b,train,sideways,1,1,1
2,a,train,down,x,y,1
"""


def result(**changes: Any) -> dict[str, Any]:
    def one(number: int, accuracy: float) -> dict[str, Any]:
        return {
            "number": number, "clients": ["a", "b"], "answered": 2, "ok": number < 2, "seconds": 1.5,
            "metrics": {"server/accuracy": accuracy, "train/loss": 2.0 - accuracy},
            "scores": {"a": {"accuracy": 0.9}, "<b>": {"accuracy": 0.5}} if number else {}, "subnets": {},
        }  # fmt: skip

    found = {
        "rounds": [one(0, 0.1), one(1, 0.4), one(2, 0.7)], "bytes": {"message_down": 1100, "message_up": 1500},
        "subnets": {"50%": 1, "100%": 3}, "audit": {"late": 2},
    }  # fmt: skip
    return {**found, **changes}


def test_what_it_says() -> None:
    html = federation(result(), bytes_of(LEDGER), text)
    for words in ("late: 2", "server/accuracy", "2 of 2, void", "worst decile", "Sizes trained", "70.0 %", "1.00 kB"):
        assert words in html, words
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "width:33%" in html
    assert html.count("<script") == 0


def test_what_is_drawn() -> None:
    told = script_data(result(), bytes_of(LEDGER))
    assert told is not None
    assert (told["measures"], told["shares"]) == (["accuracy", "loss"], ["accuracy"])
    assert [one["bytes"] for one in told["rounds"]] == [100, 2600, 2600], "of all rounds so far"
    assert [one["up"] for one in told["rounds"]] == [0, 1500, 0]
    assert told["rounds"][0]["values"] == {"accuracy": {"server": 0.1}, "loss": {"while training": 1.9}}
    last = told["rounds"][2]["values"]["accuracy"]
    assert last == {"server": 0.7, "clients, worst decile": pytest.approx(0.54)}
    assert told["clients"] == [{"name": "a", "scores": {"accuracy": 0.9}}, {"name": "<b>", "scores": {"accuracy": 0.5}}]


def test_nothing_is_drawn_of_less_than_two_rounds_or_without_numbers() -> None:
    rounds = result()["rounds"]
    assert script_data(result(rounds=rounds[:1]), {}) is None
    for metrics in ({}, {"train/loss": float("nan")}):  # what JSON cannot hold cannot be drawn either
        assert script_data(result(rounds=[{**one, "metrics": metrics} for one in rounds]), {}) is None
    assert 'id="chart"' not in federation(result(rounds=rounds[:1]), {}, text)
    assert federation({}, {}, text) == "" == federation(result(rounds=[]), {}, text)


@pytest.mark.peer
@pytest.mark.slow
def test_the_charts_follow_what_is_asked_of_them(tmp_path: Path) -> None:
    place = samples.artifact(tmp_path / "F")
    write_json(place / "result.json", result())
    (place / "ledger.csv").write_text(LEDGER, encoding="utf-8")
    with browser(tmp_path / "profile") as chromium:
        chromium.open(write_page(place))
        drawn = "document.querySelectorAll('#{} .{}').length"
        assert chromium.read(drawn.format("chart", "scatterlayer .trace")) == 2
        assert chromium.read(drawn.format("traffic", "barlayer .trace")) == 2
        assert chromium.read(drawn.format("clients", "bars .point")) == 2
        for select, value, words in (("across", "bytes", "messages so far"), ("up", "loss", "loss")):
            chromium.read(f"document.getElementById('{select}').value = '{value}'")
            chromium.read(f"document.getElementById('{select}').dispatchEvent(new Event('change'))")
            chromium.wait(f"document.getElementById('chart').textContent.includes('{words}')")
        assert chromium.read("document.getElementById('clients').parentElement.hidden") is True, "none has a loss"


def test_bytes_by_round() -> None:
    assert bytes_of(LEDGER) == {0: {"down": 100, "up": 0}, 1: {"down": 1000, "up": 1500}}
    assert bytes_of("") == {}


@pytest.mark.parametrize(("low", "expected"), [(True, 0.1), (False, 0.9)])
def test_the_worst_decile(low: bool, expected: float) -> None:
    values = [index / 10 for index in range(11)]
    assert worst_decile(values, low_is_bad=low) == pytest.approx(expected)
    assert worst_decile([0.3], low_is_bad=low) == 0.3
