"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import Results, environment, inequalities, table


def summary(results: Results) -> str:
    """Return the README's table: accuracy by arm."""
    parts = []
    for result in results:
        intro = (
            "MiniLM on SST-2 by EFTNAS: one super-network cut to shares of the multiply-accumulates, beside lists made "
            "by hand, the teacher and networks distilled alone (accuracy in points, held-out sentences, mean of seeds)."
        )
        parts += [intro, _arms(result["cells"], result["seeds"])]
    return "\n\n".join([*parts, environment(results)])


def page(results: Results) -> str:
    """Return all tables."""
    parts = [summary(results)]
    for result in results:
        orders = result["cells"]["orders"]
        rows = [[order, f"{_elastic.points([right]):.2f}"] for order, right in orders.items()]
        parts += ["Half of all widths, untrained, by what sorted them:", table(["order", "accuracy"], rows)]
    return "\n\n".join([*parts, "### The claim, inequality by inequality", inequalities(results)])


def _arms(cells: Mapping[str, Any], seeds: list[int]) -> str:
    rows = [["teacher", f"{_elastic.points([cells['teacher']['test']]):.2f}", ""]]
    for name in cells:
        arm, _, seed = name.rpartition("-")
        if seed != str(seeds[0]):
            continue
        found = [cells[f"{arm}-{each}"] for each in seeds]
        if "cut" not in found[0]:
            rows.append([arm.replace("-", " at "), f"{_elastic.points([one['test'] for one in found]):.2f}", ""])
            continue
        for share in found[0]["cut"]:
            right = [one["cut"][share]["test"] for one in found]
            volume = sum(one["volume"] for one in found) / len(found)
            rows.append([f"{arm} at {share}", f"{_elastic.points(right):.2f}", f"{volume:.3f}"])
    return table(["arm", "accuracy", "volume of the front"], rows)
