"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import table

_FOUND = ("f1", "exact")


def _arms(result: Mapping[str, Any]) -> str:
    cells, seeds, rows = result["cells"], result["seeds"], []
    for name, cell in cells.items():
        arm, _, seed = name.rpartition("-")
        if name.startswith("teacher-"):
            rows.append([name.replace("-", ", "), f"{_elastic.points([cell['test']]):.2f}", ""])
        if seed != str(seeds[0]):
            continue
        found = [cells[f"{arm}-{each}"] for each in seeds]
        label = arm.replace("-", ", ", 1)
        if "cut" not in found[0]:
            rows.append([label, f"{_elastic.points([one['test'] for one in found]):.2f}", ""])
            continue
        volume = sum(one["volume"] for one in found) / len(found)
        for share in found[0]["cut"]:
            right = [one["cut"][share]["test"] for one in found]
            rows.append([f"{label}, at {share}", f"{_elastic.points(right):.2f}", f"{volume:.3f}"])
    return table(["arm", "accuracy", "volume of the front"], rows)


def _orders(result: Mapping[str, Any]) -> str:
    orders = result["cells"]["orders"]
    return table(["order", "accuracy"], [[order, f"{_elastic.points([right]):.2f}"] for order, right in orders.items()])


def _answers(result: Mapping[str, Any]) -> str:
    found = {name: one for name, one in result["cells"]["answers"].items() if isinstance(one, Mapping)}
    rows = [
        [f"{name} of the multiply-accumulates" if "macs" in one else name, *(f"{100 * one[key]:.1f}" for key in _FOUND)]
        for name, one in found.items()
    ]
    return table(["MiniLM", "F1 of words", "exact"], rows)


_TABLES = _elastic.Tables(
    {
        "MiniLM by EFTNAS: one super-network cut to shares of the multiply-accumulates, beside lists made by hand, the "
        "teacher and networks distilled alone (accuracy in points on held-out texts, mean of seeds).": _arms
    },
    {
        "Half of all widths, untrained, by what sorted them:": _orders,
        "Answers in a text (SQuAD), an article that nothing was learnt from (one seed):": _answers,
    },
)
summary, page = _TABLES.summary, _TABLES.page
