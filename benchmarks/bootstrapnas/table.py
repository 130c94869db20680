"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import table


def _arms(result: Mapping[str, Any]) -> str:
    cells, seeds, rows = result["cells"], result["seeds"], []
    for net in (name.removeprefix("given-") for name in cells if name.startswith("given-")):
        made = [cells[f"super-{net}-{seed}"] for seed in seeds]
        arms = {
            "given": [cells[f"given-{net}"]["test"]],
            "given, as many steps more": [cells[f"longer-{net}-{seed}"]["test"] for seed in seeds],
            "torch-pruning to half, tuned": [cells[f"pruned-{net}-{seed}"]["test"] for seed in seeds],
            "super-network, whole": [one["ends"]["largest"] for one in made],
            "super-network, smallest": [one["ends"]["smallest"] for one in made],
        } | {f"super-network, at {share}": [one["cut"][share]["test"] for one in made] for share in made[0]["cut"]}
        rows += [[net, arm, f"{_elastic.points(tests):.2f}"] for arm, tests in arms.items()]
    return table(["network", "arm", "accuracy"], rows)


def _fronts(result: Mapping[str, Any]) -> str:
    names = {"transfer": "efficientnet-lite0"}
    rows = [
        [names.get(name, name.removeprefix("super-").removesuffix("-0")), f"{point['macs']:.0%}", f"{100 * held:.1f}"]
        for name, cell in result["cells"].items()
        if name == "transfer" or (name.startswith("super-") and name.endswith("-0"))
        for point in cell["front"]
        if (held := point.get("held")) is not None
    ]
    return table(["network", "multiply-accumulates", "accuracy"], rows)


_TABLES = _elastic.Tables(
    {
        "One super-network by BootstrapNAS, cut to half of the multiply-accumulates, beside the given network and what "
        "torch-pruning cuts and is tuned as long (accuracy in points on held-out examples, mean of seeds).": _arms
    },
    {"One front (seed 0), on the split that nothing was searched on:": _fronts},
)
summary, page = _TABLES.summary, _TABLES.page
