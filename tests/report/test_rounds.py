"""The page's part on a federation: what it says of rounds, clients, bytes and sizes, and that nothing breaks out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lissome.report.rounds import bytes_of, federation, worst_decile
from lissome.report.sections import text

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
    points = re.findall(r'points="([^"]+)"', html)
    assert [len(line.split()) for line in points] == [3]
    heights = [float(point.split(",")[1]) for point in points[0].split()]
    assert heights == sorted(heights, reverse=True), "better is higher"
    assert "width:33%" in html
    assert html.count("<script") == 0


def test_losses_are_drawn_where_there_is_no_share_and_nothing_without_rounds() -> None:
    rounds = result()["rounds"]
    for one in rounds:
        del one["metrics"]["server/accuracy"]
    assert "train/loss" in federation(result(rounds=rounds), {}, text)
    assert federation({}, {}, text) == ""
    assert federation(result(rounds=[]), {}, text) == ""


def test_bytes_by_round() -> None:
    assert bytes_of(LEDGER) == {0: {"down": 100, "up": 0}, 1: {"down": 1000, "up": 1500}}
    assert bytes_of("") == {}


@pytest.mark.parametrize(("low", "expected"), [(True, 0.1), (False, 0.9)])
def test_the_worst_decile(low: bool, expected: float) -> None:
    values = [index / 10 for index in range(11)]
    assert worst_decile(values, low_is_bad=low) == pytest.approx(expected)
    assert worst_decile([0.3], low_is_bad=low) == 0.3
