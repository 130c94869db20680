"""What a search prints: each row's figures are of the same examples, and the choice is always among them."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from lissome.report import answers


def point(number: int, accuracy: float | None, selection: float, macs: float) -> dict[str, Any]:
    figures = {"macs": macs, **({} if accuracy is None else {"accuracy": accuracy})}
    return {"number": number, "figures": figures, "selection": {"accuracy": selection}, "test": {}}


def printed(whole: dict[str, Any], front: list[dict[str, Any]], chosen: dict[str, Any] | None) -> list[list[str]]:
    fields = {
        "model": "S", "bounds": [], "objectives": ["max accuracy", "min macs"], "front": front, "chosen": chosen,
        "original": whole["figures"], "whole": whole, "provenance": {}, "failed": {}, "evaluated": 3, "seconds": 1.0,
        "out": "o", "notes": [],
    }  # fmt: skip
    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(*answers.search(fields))
    return [line.split() for line in capture.get().splitlines() if line.split()]


def test_the_original_is_compared_on_the_same_examples() -> None:
    whole = point(0, 0.8, 0.9, 4e6)
    rows = {row[0]: " ".join(row[1:]) for row in printed(whole, [whole, point(2, 0.6, 0.7, 2e6)], None)}
    assert rows["original"] == "0.8 4.00 M accuracy 0.9"
    assert rows["0"] == "0.8 (100.0 %) 4.00 M (100.0 %) accuracy 0.9"
    assert rows["2"].startswith("0.6 (75.0 %)")


def test_without_figures_on_the_same_examples_there_is_no_share() -> None:
    rows = {row[0]: " ".join(row[1:]) for row in printed(point(0, None, 0.9, 4e6), [point(2, 0.6, 0.7, 2e6)], None)}
    assert rows["original"] == "– 4.00 M accuracy 0.9"
    assert rows["2"].startswith("0.6 2.00 M (50.0 %)")


def test_the_choice_is_shown_where_it_is_not_on_the_front_or_not_among_a_dozen_of_it() -> None:
    whole, front = point(0, 0.8, 0.9, 4e6), [point(number, 0.8, 0.7, 2e6) for number in range(1, 60)]
    for chosen in (whole, front[1]):
        rows = printed(whole, front, chosen)
        assert [row[0] for row in rows if row[-1] == "chosen"] == [str(chosen["number"])]
