"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks._markdown import Results, environment, inequalities, table

_DOMAINS = ("noisy", "striped")


def summary(results: Results) -> str:
    """Return the README's table: mean IoU by domain."""
    parts = []
    for result in results:
        intro = (
            "MiniSAM, a segmenter of a million weights that was trained here (no Segment Anything), on two domains "
            "that it had not seen: parts of one super-network by SuperSAM (mean IoU of held-out masks, all seeds)."
        )
        parts += [intro, _domains(result["cells"], result["seeds"])]
    return "\n\n".join([*parts, environment(results)])


def page(results: Results) -> str:
    """Return all tables."""
    parts = [summary(results)]
    for result in results:
        cells, seeds = result["cells"], result["seeds"]
        keys = cells[f"orders-{seeds[0]}"]
        rows = [[key, _mean([cells[f"orders-{seed}"][key] for seed in seeds])] for key in keys]
        parts += ["MLP widths untrained, by what sorted their units, on photographs:", table(["order", "IoU"], rows)]
    return "\n\n".join([*parts, "### The claim, inequality by inequality", inequalities(results)])


def _domains(cells: Mapping[str, Any], seeds: list[int]) -> str:
    rows = [["untuned", *(_mean([cells["given"][domain]]) for domain in _DOMAINS)]]
    full = [_mean([cells[f"full-{domain}-{seed}"]["test"] for seed in seeds]) for domain in _DOMAINS]
    rows.append(["whole, trained as long", *full])
    for share in cells[f"super-{_DOMAINS[0]}-{seeds[0]}"]["cut"]:
        made = [[cells[f"super-{domain}-{seed}"]["cut"][share]["test"] for seed in seeds] for domain in _DOMAINS]
        rows.append([f"at most {float(share):.0%} of all parameters", *map(_mean, made)])
    return table(["", *_DOMAINS], rows)


def _mean(values: Any) -> str:
    return f"{float(np.mean(values)):.4f}"
