"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import Results, environment, inequalities, table


def summary(results: Results) -> str:
    """Return the README's table: accuracy by width."""
    parts = []
    for result in results:
        intro = (
            "MiniLM on SST-2 with frozen weights: one run of LoNAS at several widths, beside a run of LoRA on a model "
            "pruned to each first (accuracy in points on held-out sentences, mean of seeds)."
        )
        parts += [intro, _widths(result["cells"], result["seeds"])]
    return "\n\n".join([*parts, environment(results)])


def page(results: Results) -> str:
    """Return all tables."""
    return "\n\n".join([summary(results), "### The claim, inequality by inequality", inequalities(results)])


def _widths(cells: Mapping[str, Any], seeds: list[int]) -> str:
    made, rows = [cells[f"lonas-{seed}"] for seed in seeds], []
    for share in made[0]["widths"]:
        mine = _elastic.points([one["widths"][share] for one in made])
        other = _elastic.points([cells[f"lora-{share}-{seed}"]["test"] for seed in seeds])
        rows.append([f"{float(share):.0%}", f"{mine:.2f}", f"{other:.2f}"])
    for share in made[0]["cut"]:
        mine = _elastic.points([one["cut"][share]["test"] for one in made])
        rows.append([f"searched, at most {share} of the multiply-accumulates", f"{mine:.2f}", ""])
    return table(["widths", "LoNAS, one run", "pruned, then LoRA"], rows)
