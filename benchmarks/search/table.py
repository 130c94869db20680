"""Markdown of the claim's stored results: the volume by sampler, and what figures cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks import _elastic
from benchmarks._markdown import table
from benchmarks.search.run import FEW, MODEL, PASSES, volumes

_WAYS = {
    "table": "table",
    "regression": "regression",
    "few": f"regression on {FEW}",
    "corrected": f"{FEW} that correct one thread's",
    "one thread": "one thread's",
}


def _volumes(result: Mapping[str, Any]) -> str:
    by = volumes(result["cells"])
    marks = list(next(iter(by.values())))
    rows = [[name, *(_mean(by_trials[mark]) for mark in marks)] for name, by_trials in by.items()]
    return table(["", *(f"{mark} trials" for mark in marks)], rows)


def _rates(result: Mapping[str, Any]) -> str:
    rates = result["cells"]["rates"]["rates"]
    return table(["", "a second"], [[name, f"{rate:,.0f}"] for name, rate in rates.items()])


def _latency(result: Mapping[str, Any]) -> str:
    cells, rows = result["cells"], []
    for name in (MODEL, *PASSES):
        cell = cells["latency" if name == MODEL else f"latency-{name}"]
        rows += [[name, *_agreement(words, cell[way])] for way, words in _WAYS.items() if way in cell]
    return table(["", "", "Spearman", "Kendall", "mean error", "within 10 %", "n"], rows)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _agreement(words: str, one: Mapping[str, Any]) -> list[str]:
    return [
        words, f"{one['spearman']:.2f}", f"{one['kendall']:.2f}", f"{one['error']:.1%}", f"{one['hits']:.0%}",
        str(one["n"]),
    ]  # fmt: skip


def _line(result: Mapping[str, Any]) -> str:
    by = volumes(result["cells"])
    most = list(next(iter(by.values())))[-1]
    mean = {name: statistics.mean(by_trials[most]) for name, by_trials in by.items()}
    rate = result["cells"]["rates"]["rates"]["rows"]
    return (
        f"after {most} evaluations the fronts of NSGA-II and of an ensemble of techniques hold "
        f"{mean['nsga2'] / mean['random']:.3f} and {mean['ensemble'] / mean['random']:.3f} × what random ones do; "
        f"{rate:,.0f} sub-networks of SmolLM2 are counted a second."
    )


_TABLES = _elastic.Tables(
    _line,
    {
        "Search of a language model of bytes for perplexity and parameters, without training: the share of the plane "
        "that each sampler's front leaves behind it after so many evaluations (mean of seeds; higher is better).": (
            _volumes
        ),
        "Counted figures of distinct Subnets of SmolLM2, 150 axes, a second of processor time:": _rates,
        "Predicted latency of sub-networks against measurements that it never saw. One thread stands for another "
        "device: what is known of it is used as it is, or corrected.": _latency,
    },
)
summary, page = _TABLES.summary, _TABLES.page
