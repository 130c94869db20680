"""A made-up artifact: six small layers, eight steps, and a result table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lissome.core.manifest import CURVE, Base, Manifest, Step, write_curve, write_manifest
from lissome.core.method import CurvePoint
from lissome.core.metrics import Metric
from lissome.report.facts import RESULT

FULL = {
    key: value
    for layer in range(6)
    for key, value in {
        f"layers.{layer}.attention": 1,
        f"layers.{layer}.attention.groups": 3,
        f"layers.{layer}.mlp": 1,
        f"layers.{layer}.mlp.width": 1536,
    }.items()
}
MOVES = [
    ("layers.4.attention", 0),
    ("layers.2.mlp.width", 1408),
    ("layers.2.mlp.width", 1280),
    ("layers.5.mlp", 0),
    ("layers.1.attention.groups", 2),
    ("layers.0.mlp.width", 1408),
    ("layers.3.attention", 0),
    ("layers.3.mlp.width", 1280),
]
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'`\x1b[31m{{x}}"


def curve(moves: list[tuple[str, int]] = MOVES) -> tuple[CurvePoint, ...]:
    subnet, points = dict(FULL), []
    points.append(_point(0, "original", subnet))
    for step, (axis, value) in enumerate(moves, start=1):
        change = f"{axis} {subnet[axis]}->{value}"
        subnet = {**subnet, axis: value}
        points.append(_point(step, change, subnet))
    return tuple(points)


def _point(step: int, change: str, subnet: dict[str, int]) -> CurvePoint:
    left = sum(subnet[name] / FULL[name] for name in FULL) / len(FULL)
    figures = {
        "params": 28e6 + 106e6 * left,
        "block_params": 106e6 * left,
        "disk": 4 * (28e6 + 106e6 * left),
        "latency": 0.2 + 1.1 * left,
    }
    return CurvePoint(step=step, change=change, subnet=subnet, figures=figures, quality={"ppl": 29.0 * 1.045**step})


def rows(base: str = "smollm2-135m", name: str = "smollm2-135m-small") -> list[dict[str, Any]]:
    def figure(name: str, value: float, unit: str, better: str, how: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "value": value, "unit": unit, "better": better, "provenance": how, **more}

    return [
        {
            "name": base,
            "params": figure("params", 134515008, "count", "lower", "counted"),
            "disk": figure("disk", 538060032, "bytes", "lower", "counted"),
            "latency": figure("latency", 1.31, "s", "lower", "measured", low=1.28, high=1.35, n=15),
            "decode": figure("decode", 61.0, "tokens/s", "higher", "measured", low=59.0, high=62.0, n=15),
            "ppl": figure("ppl", 29.0, "", "lower", "measured", low=27.5, high=30.6, n=16),
        },
        {
            "name": name,
            "params": figure("params", 113181696, "count", "lower", "counted", ratio=0.8414),
            "disk": figure("disk", 452726784, "bytes", "lower", "counted", ratio=0.8414),
            "latency": figure(
                "latency", 1.09, "s", "lower", "measured", n=15, ratio=0.832, ratio_low=0.81, ratio_high=0.85
            ),
            "decode": figure(
                "decode", 72.5, "tokens/s", "higher", "measured", n=15, ratio=1.189, ratio_low=1.15, ratio_high=1.22
            ),
            "ppl": figure("ppl", 37.2, "", "lower", "measured", n=16, ratio=1.283, ratio_low=1.24, ratio_high=1.33),
            "kl": figure("kl", 0.31, "nats", "lower", "measured", low=0.28, high=0.34, n=16),
        },
    ]


VERDICTS = [{"term": "latency<=85%", "ok": True, "got": 1.09, "limit": 1.1135, "unit": "s", "slack": 0.02}]


def manifest(name: str = "smollm2-135m-small", base: str = "smollm2-135m") -> Manifest:
    figures = (Metric(name="ppl", value=29.0), Metric(name="disk", value=538060032, unit="bytes", provenance="counted"))
    small = (Metric(name="ppl", value=37.2), Metric(name="disk", value=452726784, unit="bytes", provenance="counted"))
    step = Step(
        method="multipruner",
        config={"split": "auto", "lazy": True},
        seed=0,
        data="3f2a" * 16,
        before=figures,
        after=small,
        seconds=213.4,
        peak_memory=1.1e9,
        versions={"python": "3.11.7", "torch": "2.13.0"},
    )
    points = curve()
    return Manifest(
        name=name,
        base=Base(name=base, architecture="llama", sha256="b1" * 32, license="Apache-2.0"),
        tags=("pruned",),
        space={},
        subnet=points[-1].subnet,
        lineage=(step,),
    )


def artifact(folder: Path, *, name: str = "smollm2-135m-small", base: str = "smollm2-135m") -> Path:
    """Write the sample as an artifact folder without weights."""
    folder.mkdir(parents=True)
    write_curve(folder, curve())
    result = {"rows": rows(base, name), "verdicts": VERDICTS, "notes": []}
    (folder / RESULT).write_text(json.dumps(result))
    write_manifest(folder, manifest(name, base).with_files(folder))
    assert (folder / CURVE).exists()
    return folder
