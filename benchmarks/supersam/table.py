"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import _elastic, _sweep
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
    least = [[cells[f"super-{domain}-{seed}"]["smallest"] for seed in seeds] for domain in _DOMAINS]
    floor = max(one["params"] for found in least for one in found)
    rows.append([f"the smallest, {floor:.1%} of all", *(_mean([one["test"] for one in found]) for found in least)])
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


def _line(result: Mapping[str, Any]) -> str:
    cells, seeds, found = result["cells"], result["seeds"], []
    for domain in _DOMAINS:
        half = _mean([cells[f"super-{domain}-{seed}"]["cut"]["0.5"]["test"] for seed in seeds])
        whole = _mean([cells[f"full-{domain}-{seed}"]["test"] for seed in seeds])
        found.append(f"{half} ({domain}; whole: {whole}, untuned: {_mean([cells['given'][domain]])})")
    return (
        "half of MiniSAM, a segmenter trained here, cut out of one super-network, has a mean IoU of "
        f"{' and '.join(found)}."
    )


_TABLES = _elastic.Tables(
    _line,
    {
        "MiniSAM, a segmenter of a million weights that was trained here (no Segment Anything), on two domains that it "
        "had not seen: parts of one super-network by SuperSAM (mean IoU of held-out masks, all seeds).": _domains,
        "MLP widths untrained, by what sorted their units, on photographs:": _orders,
        "Volume that each sampler's front leaves behind it, at equal evaluations:": _samplers,
        "Settings that were tried with one seed and shorter runs on one domain: of super-networks the volume of a "
        "short search, of the whole model the mean IoU on scenes to choose by (higher is better). In turn, a step is "
        "one pass; else it is three. Both were then trained with the best of their learning rates and else as usual.": (
            _sweep.tried
        ),
    },
    note=_elastic.RESAMPLED,
)
summary, page = _TABLES.summary, _TABLES.page
