"""From cells to tables and inequalities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._frame import Inequality
from benchmarks._turns import reached
from benchmarks.pmpd.names import Case
from lissome.ops.stats import Interval, paired_bootstrap, ratio_of_medians

COST = 0.01
"""Share of decoding that deciding may take."""
SLACK = 1.02
"""By so much a mixed schedule may be slower than its share of bits says, before it counts as not between."""

_HALF, _LOW = "0.50", "0.00"
Cells = Mapping[str, Any]


def judge(cells: Cells, cases: Sequence[Case], threads: Sequence[int]) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn cells into the stored result and the inequalities."""
    found: list[Inequality] = []
    tables: dict[str, Any] = {}
    for case in cases:
        curve, made = cells[f"{case.name}-curve"], cells[f"{case.name}-schedulers"]
        found += _order(case, curve)
        found += _chord(case, curve, made)
        speeds = {}
        for count in threads:
            speed = cells[f"{case.name}-speed-{count}"]
            speeds[str(count)] = timed(case, speed)
            found += _time(case, speed, count)
        tables[case.name] = {**vars(case), "points": points(curve, made), "speed": speeds, "limit": made["limit"]}
        tables[case.name] |= {"prior": made["prior"], "static": made["static"]}
    return {"cases": tables}, found


def points(curve: Mapping[str, Any], made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean bits and divergence of every schedule, beside where the chord of the two precisions is at such bits."""
    alone = np.asarray(curve["high first"][_LOW]["kl"])
    low = curve["high first"][_LOW]["bits"]
    rows = []
    for way, by_share in curve.items():
        for share, one in by_share.items():
            if way == "high first" or share != _LOW:
                rows.append(_point(f"{way}, {float(share):.0%} high", one["bits"], one["kl"], alone, low))
    for name, one in made["by"].items():
        word, _, seed = name.rpartition("-")
        label = f"{word}, seed {seed}" if sum(other.startswith(word) for other in made["by"]) > 1 else word
        rows.append(_point(label, float(np.mean(one["bits"])), one["kl"], alone, low))
    return rows


def _point(name: str, bits: float, kl: Sequence[float], alone: np.ndarray, low: float) -> dict[str, Any]:
    mine = vars(paired_bootstrap(kl))
    chord = (low + 1 - bits) * alone  # the precisions are one bit apart
    return {"name": name, "bits": bits, "kl": mine, "chord": float(chord.mean()), "above": vars(_below(kl, chord))}


def _below(kl: Sequence[float], chord: np.ndarray) -> Interval:
    """By how much less it diverges than the chord says, paired by text."""
    return paired_bootstrap(chord - np.asarray(kl))


def _order(case: Case, curve: Mapping[str, Any]) -> Iterator[Inequality]:
    first, last = (np.asarray(curve[way][_HALF]["kl"]) for way in ("high first", "low first"))
    change = paired_bootstrap(first - last)
    detail = f"(KL {first.mean():.4f} and {last.mean():.4f} nats at {curve['high first'][_HALF]['bits']:.2f} bits, "
    detail += f"n={change.n} texts)"
    name = f"{case.name}: KL of high first − low first at equal bits, upper end of the 95 % interval"
    yield Inequality.of(name, change.high, "<", 0.0, detail)


def _chord(case: Case, curve: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[Inequality]:
    for row in points(curve, made):
        if row["name"].startswith(("high first", "learnt")) and row["bits"] > case.low:
            above = row["above"]
            detail = f"(at {row['bits']:.2f} bits; below the chord by 95 % {above['low']:.4f}–{above['high']:.4f})"
            name = f"{case.name}: KL of {row['name']}, against the chord"
            yield Inequality.of(name, row["kl"]["value"], "<=", row["chord"], detail)


def timed(case: Case, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens per second by arm, its speed beside high bits, share of the bandwidth, and the cost of deciding."""
    rows, high = {}, cell["seconds"][f"{case.high} bits"]
    for name, times in cell["seconds"].items():
        size = cell["bytes"][name]
        rows[name] = {
            "tokens": cell["steps"] / float(np.median(times)),
            "mb": size / 1e6,
            **reached(size * cell["steps"], times, cell["bandwidth"][name]),
            "faster": vars(ratio_of_medians(high, times)),
        }
    return {"rows": rows, "deciding": _cost(cell)}


def _cost(cell: Mapping[str, Any]) -> float:
    return float(np.median(cell["deciding"]) / np.median(cell["seconds"]["half"]))


def _time(case: Case, cell: Mapping[str, Any], threads: int) -> Iterator[Inequality]:
    where = f"{case.name}, threads: {threads}"
    yield Inequality.of(f"{where}: deciding ÷ decoding", _cost(cell), "<", COST)
    high, low, half = (
        float(np.median(cell["seconds"][name])) for name in (f"{case.high} bits", f"{case.low} bits", "half")
    )
    name = f"{where}: time of half and half ÷ mean of both precisions"
    yield Inequality.of(name, half / ((high + low) / 2), "<=", SLACK)
