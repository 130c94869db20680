"""Markdown of the claim's stored results: a line for the README, the whole for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._markdown import Results, environment, inequalities, of_bandwidth, table
from benchmarks.sparamx.names import sparse

_SHOWN = (0.5, 0.8)
_CACHES = (
    "Keys and values as integers with a scale per head and position; behind the colon, shares of zeros in keys and "
    "values of earlier blocks. No step finds anything in a cache. Perplexity is that of held-out texts of that length."
)


def summary(results: Results) -> str:
    """Return the README's line: half and four fifths of zeros beside dense layers."""
    rows = results[0]["tables"]["linears-1"]
    found = [
        f"{share:.0%} of zeros: {' and '.join(_times(rows[sparse(kind, share)]) for kind in ('bf16', 'int8'))} ×"
        for share in _SHOWN
    ]
    return (
        "linear layers with zeros in bf16 and int8 beside our own dense ones, on one thread; "
        f"{'; '.join(found)} as fast."
    )


def _times(row: Mapping[str, Any]) -> str:
    return f"{row['faster']['value']:.2f}"


def page(results: Results) -> str:
    """Return all tables."""
    parts = [environment(results)]
    for result in results:
        for name, rows in result["tables"].items():
            parts += [f"### {_title(name)}", _rows(rows, list(rows))]
        for name, found in result.get("attention", {}).items():
            parts += [
                f"### Attention after {found['tokens']} tokens of {found['model']}, threads: {name.split('-')[-1]}",
                _CACHES,
                _attention(found["rows"]),
            ]
    return "\n\n".join([*parts, inequalities(results)])


def _title(name: str) -> str:
    kind, _, number = name.partition("-")
    return f"Out of cache, threads: {number}" if kind == "linears" else f"In the cache: {number} × {number}"


def _attention(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [
            name,
            f"{row['mb']:.0f}",
            f"{row['attention']:.2f}",
            of_bandwidth(row),
            _interval(row["faster"]),
            f"{row['ms']:.2f}",
            _interval(row["step"]),
            f"{row['ppl']:.2f}",
        ]
        for name, row in rows.items()
    ]
    head = ["cache", "MB", "ms", "of the bandwidth", "× dense", "whole step, ms", "× dense", "perplexity"]
    return table(head, lines)


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _rows(rows: Mapping[str, Mapping[str, Any]], names: list[str]) -> str:
    lines = []
    for name in names:
        row = rows[name]
        faster = row.get("faster")
        shown = _interval(faster) if faster else "–"
        lines.append([name, f"{row['mb']:.0f}", f"{row['ms']:.2f}", of_bandwidth(row), shown])
    return table(["", "MB", "ms", "of the bandwidth", "× own dense"], lines)
