"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import _elastic
from benchmarks._markdown import table

_DOMAINS = ("noisy", "striped")


def _domains(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    rows = [["untuned", *(_mean([cells["given"][domain]]) for domain in _DOMAINS)]]
    full = [_mean([cells[f"full-{domain}-{seed}"]["test"] for seed in seeds]) for domain in _DOMAINS]
    rows.append(["whole, trained as long", *full])
    for share in cells[f"super-{_DOMAINS[0]}-{seeds[0]}"]["cut"]:
        made = [[cells[f"super-{domain}-{seed}"]["cut"][share]["test"] for seed in seeds] for domain in _DOMAINS]
        rows.append([f"at most {float(share):.0%} of all parameters", *map(_mean, made)])
    return table(["", *_DOMAINS], rows)


def _orders(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    keys = cells[f"orders-{seeds[0]}"]
    return table(["order", "IoU"], [[key, _mean([cells[f"orders-{seed}"][key] for seed in seeds])] for key in keys])


def _samplers(result: Mapping[str, Any]) -> str:
    cells, seeds = result["cells"], result["seeds"]
    names = cells[f"super-{_DOMAINS[0]}-{seeds[0]}"]["volumes"]
    rows = [
        [name, *(_mean([cells[f"super-{domain}-{seed}"]["volumes"][name] for seed in seeds]) for domain in _DOMAINS)]
        for name in names
    ]
    return table(["sampler", *_DOMAINS], rows)


def _mean(values: Any) -> str:
    return f"{float(np.mean(values)):.4f}"


_TABLES = _elastic.Tables(
    {
        "MiniSAM, a segmenter of a million weights that was trained here (no Segment Anything), on two domains that it "
        "had not seen: parts of one super-network by SuperSAM (mean IoU of held-out masks, all seeds).": _domains
    },
    {
        "MLP widths untrained, by what sorted their units, on photographs:": _orders,
        "Volume that each sampler's front leaves behind it, at equal evaluations:": _samplers,
    },
)
summary, page = _TABLES.summary, _TABLES.page
