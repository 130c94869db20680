"""Figures as a person reads them: 106 M, 98.4 MB, 1.25 s, 4 min 10 s."""

from __future__ import annotations

import math

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def number(value: float) -> str:
    """Four significant digits, without an exponent where one can be avoided."""
    if not math.isfinite(value):
        return "n/a"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 0.01 else f"{value:.2g}"


def quantity(value: float, unit: str) -> str:
    """Return a figure with its unit.

    Args:
        value: The figure, in `unit`.
        unit: ``"count"``, ``"bytes"``, ``"s"``, ``"tokens/s"`` … as in `Metric`; empty for a ratio.
    """
    if not math.isfinite(value):
        return "n/a"
    if unit in {"count", "bytes"}:
        for factor, prefix in _LARGE:
            if abs(value) >= factor:
                return f"{_short(value / factor)} {prefix}{'B' if unit == 'bytes' else ''}"
        return f"{number(value)} B" if unit == "bytes" else number(value)
    if unit == "s":
        if abs(value) >= 120:
            return duration(value)
        for factor, name in _SMALL:
            if abs(value) >= factor:
                return f"{_short(value / factor)} {name}"
        return f"{number(value)} s"
    return f"{number(value)} {unit}".rstrip()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return a span of time in at most two units."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(ratio: float) -> str:
    """Return a ratio to the original in percent; one decimal, none from 1000 % on."""
    if not math.isfinite(ratio):
        return "n/a"
    return f"{ratio * 100:,.0f} %" if abs(ratio) >= 10 else f"{ratio * 100:.1f} %"
