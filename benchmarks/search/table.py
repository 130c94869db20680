"""Markdown of the claim's stored results: the volume by sampler, and what figures cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, table


def summary(results: Results) -> str:
    """Return the README's table: volumes by sampler."""
    parts = []
    for result in results:
        intro = (
            "Search of SmolLM2's 150 axes for perplexity and parameters, without training: the share of the plane that "
            "each sampler's front leaves behind it after so many evaluations (mean of seeds; higher is better)."
        )
        parts += [intro, _volumes(result["volumes"])]
    return "\n\n".join([*parts, environment(results)])


def page(results: Results) -> str:
    """Return all tables."""
    parts = [summary(results)]
    for result in results:
        rates, latency = result["rates"]["rates"], result["latency"]
        parts += [
            "Counted figures of distinct Subnets, a second of processor time:",
            table(["", "a second"], [[name, f"{rate:,.0f}"] for name, rate in rates.items()]),
            "Predicted latency against measurements that it never saw:",
            table(
                ["", "Spearman", "Kendall", "mean error", "within 10 %", "n"],
                [_agreement(way, latency[way]) for way in ("table", "regression")],
            ),
        ]
    return "\n\n".join([*parts, "### The claim, inequality by inequality", inequalities(results)])


def _volumes(volumes: Mapping[str, Mapping[str, list[float]]]) -> str:
    marks = list(next(iter(volumes.values())))
    rows = [[name, *(_mean(by_trials[mark]) for mark in marks)] for name, by_trials in volumes.items()]
    return table(["", *(f"{mark} trials" for mark in marks)], rows)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _agreement(way: str, one: Mapping[str, Any]) -> list[str]:
    return [
        way, f"{one['spearman']:.2f}", f"{one['kendall']:.2f}", f"{one['error']:.1%}", f"{one['hits']:.0%}",
        str(one["n"]),
    ]  # fmt: skip
