"""Markdown of the claim's stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic, _sweep
from benchmarks._markdown import table

_ALONE = {
    "uniform": "one share of all widths to half, tuned (one seed)",
    "found": "what the search found at half, tuned alone (one seed)",
}


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
        arms |= {
            label: [cells[name]["test"]]
            for arm, label in _ALONE.items()
            if (name := f"{arm}-{net}-{seeds[0]}") in cells
        }
        single = cells.get(f"random-{net}-{seeds[0]}", {"cut": {}})
        arms |= {
            f"one random path at each step, as many passes, at {at} (one seed)": [one["test"]]
            for at, one in single["cut"].items()
        }
        rows += [[net, arm, f"{_elastic.points(tests):.2f}"] for arm, tests in arms.items()]
    return table(["network", "arm", "accuracy"], rows)


def _rates(result: Mapping[str, Any]) -> str:
    """Learning rate of each arm, and the share of multiply-accumulates that torch-pruning's network uses."""
    rows = [
        [name, f"{cell['rate']:g}", f"{cell['macs']:.3f}" if "macs" in cell else ""]
        for name, cell in result["cells"].items()
        if "rate" in cell and name.endswith(f"-{result['seeds'][0]}")
    ]
    return table(["arm, network and seed", "learning rate", "multiply-accumulates"], rows)


def _switching(result: Mapping[str, Any]) -> str:
    rows = [
        [name.removeprefix("switching-"), f"{1e3 * one['switch']:.2f}", f"{1e3 * one['step']:.0f}",
         f"{one['switch'] / one['step']:.2%}"]
        for name, one in result["cells"].items()
        if "switch" in one
    ]  # fmt: skip
    return table(["network", "switching, ms", "step, ms", "share"], rows)


def _before(result: Mapping[str, Any]) -> str:
    rows = []
    for name, cell in result["cells"].items():
        net = name.removeprefix("before-")
        if net != name:
            rows += [[net, *key.rsplit("-", 1), _points(test)] for key, test in cell["orders"].items()]
            if cell["plain"] != cell["own"]:  # a network without batch norms has none
                rows.append([net, "l1, statistics of the whole network", "0.5", _points(cell["plain"])])
    return table(["network", "order", "share of widths", "accuracy"], rows)


def _transferred(result: Mapping[str, Any]) -> str:
    found = result["cells"]["transfer"]
    rows = [[f"super-network, {name}", "", _points(test)] for name, test in found["ends"].items()]
    rows += [["cut out of it", f"{one['macs']:.0%}", _points(one["test"])] for one in found["cut"].values()]
    return table(["efficientnet-lite0", "multiply-accumulates", "accuracy"], rows)


def _points(test: str) -> str:
    return f"{_elastic.points([test]):.2f}"


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


def _line(result: Mapping[str, Any]) -> str:
    cells, seeds, found = result["cells"], result["seeds"], []
    for net in (name.removeprefix("given-") for name in cells if name.startswith("given-")):
        made, beside = ([cells[f"{arm}-{net}-{seed}"] for seed in seeds] for arm in ("super", "pruned"))
        half = _elastic.points([one["cut"]["0.5"]["test"] for one in made])
        cut = _elastic.points([one["test"] for one in beside])
        found.append(f"{half:.1f} % ({net}; given: {_points(cells[f'given-{net}']['test'])}, torch-pruning: {cut:.1f})")
    return (
        "networks cut to half of their multiply-accumulates out of super-networks that were made without annotations: "
        f"{', '.join(found)}."
    )


_TABLES = _elastic.Tables(
    _line,
    {
        "One super-network by BootstrapNAS, cut to half of the multiply-accumulates, beside the given network and what "
        "torch-pruning cuts and is tuned as long (accuracy in points on held-out examples, mean of seeds).": _arms,
        "One front (seed 0), on the split that nothing was searched on:": _fronts,
        "Before any training: the same share of all widths by what sorted them, with batch norm statistics of its own, "
        "and without:": _before,
        "EfficientNet-Lite0 from ImageNet, transferred to CIFAR-10 at 96 pixels (one seed), on held-out images:": (
            _transferred
        ),
        "Processor time of switching to a sub-network and back, beside a step of training along a random path:": (
            _switching
        ),
        "What each arm was trained with (one seed shown; the others have the same):": _rates,
        "Settings that were tried with one seed and shorter runs, on examples to choose by (accuracy in points; of "
        "super-networks the mean of the middle and the smallest). A step of the sandwich is three passes. Each arm was "
        "then trained with the best of its learning rates and else as usual.": _sweep.tried,
    },
    note=f"{_elastic.RESAMPLED} *At least as accurate as the given network* is judged strictly: the lower end of the "
    "interval must not be below 0.",
)
summary, page = _TABLES.summary, _TABLES.page
