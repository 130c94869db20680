"""Result rows as a grid of texts, which the terminal, Markdown and the page then only lay out.

A *row* is one model: ``{"name": …, "ppl": FIGURE, "latency": FIGURE, …}``. A *figure* is a `Metric` as JSON (value,
unit, better, provenance, and low, high, n when known), with ``ratio``, ``ratio_low`` and ``ratio_high`` when it was
compared. The first row is the original. Rows whose name begins with ``llama.cpp: `` are files timed in llama.cpp; they
are compared among themselves and get a table of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lissome.report.units import percent, quantity

Row = Mapping[str, Any]
Trend = Literal["better", "worse", "same", ""]

LABELS = {
    "params": "parameters",
    "block_params": "parameters in blocks",
    "disk": "size on disk",
    "file": "size of the file",
    "dense_disk": "size with all weights written out",
    "memory": "peak memory",
    "macs": "multiply-accumulates",
    "token_bytes": "weights read for a token",
    "latency": "latency of a request",
    "prefill": "prefill",
    "decode": "decode",
    "ppl": "perplexity",
    "accuracy": "accuracy",
    "f1": "F1 of answers",
    "exact": "exact answers",
    "answered": "questions answered",
    "miou": "mean IoU",
    "best_miou": "mean IoU of the best mask",
    "loss": "loss",
    "kl": "KL from the original",
    "agreement": "top-1 agreement",
}
"""How a person reads the names of metrics, in the order in which they are shown; others follow under their name."""

_ELSEWHERE = "llama.cpp: "
_SAME = 5e-4  # a ratio nearer to 1 than this is shown as 100.0 %


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of one model.

    Attributes:
        value: The figure with its unit.
        ratio: Its ratio to the first row, in percent; empty for the first row.
        interval: The 95 % interval of the ratio, or of the value where there is no ratio; empty when unknown.
        trend: Whether it is better than the first row; ``same`` when the interval of the ratio includes 1.
    """

    value: str
    ratio: str = ""
    interval: str = ""
    trend: Trend = ""

    @property
    def detail(self) -> str:
        """Ratio and interval as one text."""
        return " ".join(part for part in (self.ratio, f"[{self.interval}]" if self.interval else "") if part)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric over all models; a model without it has None."""

    name: str
    label: str
    cells: tuple[Cell | None, ...]
    better: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Metrics down, models across; the title is empty for the main table."""

    title: str
    models: tuple[str, ...]
    lines: tuple[Line, ...]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """Arrange rows as one table, and those that ran in llama.cpp as another; metrics that no row has are left out."""
    elsewhere = [row for row in rows if str(row.get("name", "")).startswith(_ELSEWHERE)]
    own = [row for row in rows if row not in elsewhere]
    named = [{**row, "name": str(row["name"]).removeprefix(_ELSEWHERE)} for row in elsewhere]
    return [_grid(title, some) for title, some in (("", own), ("In llama.cpp", named)) if some]


def _grid(title: str, rows: Sequence[Row]) -> Grid:
    found = dict.fromkeys(name for row in rows for name, figure in row.items() if isinstance(figure, Mapping))
    names = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    lines = tuple(_line(name, [row.get(name) for row in rows]) for name in names)
    return Grid(title=title, models=tuple(plain(str(row.get("name", ""))) for row in rows), lines=lines)


def _line(name: str, figures: Sequence[Mapping[str, Any] | None]) -> Line:
    known = [figure for figure in figures if figure]
    ways = dict.fromkeys(str(figure.get("provenance", "measured")) for figure in known)
    counts = sorted({int(figure["n"]) for figure in known if figure.get("n")})
    how = ", ".join(ways) + (f", n={'–'.join(map(str, counts))}" if counts else "")
    better = str(known[0].get("better", "lower")) if known else "lower"
    label = LABELS.get(name, plain(name))
    return Line(name=name, label=label, cells=tuple(cell(figure) for figure in figures), better=better, how=how)


def cell(figure: Mapping[str, Any] | None) -> Cell | None:
    """Word one figure."""
    if figure is None or figure.get("value") is None:
        return None
    unit, ratio = str(figure.get("unit", "")), figure.get("ratio")
    value = quantity(float(figure["value"]), unit) if unit != "%" else percent(float(figure["value"]))
    if ratio is None:
        return Cell(value=value, interval=_interval(value, figure.get("low"), figure.get("high"), unit))
    low, high = figure.get("ratio_low"), figure.get("ratio_high")
    interval = "" if low is None or high is None else f"{percent(low)[:-2]} – {percent(high)[:-2]}"
    trend = _trend(float(ratio), low, high, str(figure.get("better", "lower")))
    return Cell(value=value, ratio=percent(float(ratio)), interval=interval, trend=trend)


def _interval(value: str, low: float | None, high: float | None, unit: str) -> str:
    """Both ends; their unit is said once, by the value, when it is the same."""
    if low is None or high is None:
        return ""
    ends = quantity(low, unit), quantity(high, unit)
    name = value.partition(" ")[2]
    if name and all(end.partition(" ")[2] == name for end in ends):
        ends = ends[0].partition(" ")[0], ends[1].partition(" ")[0]
    return " – ".join(ends)


def _trend(ratio: float, low: float | None, high: float | None, better: str) -> Trend:
    unsure = low is not None and high is not None and low <= 1 <= high
    if unsure or abs(ratio - 1) < _SAME:
        return "same"
    return "better" if (ratio < 1) == (better == "lower") else "worse"


def change(text: str) -> str:
    """Word a step of a curve, e.g. ``layers.3.mlp.width 1536 → 1408``."""
    return plain(text).replace("->", " → ")


def plain(text: str) -> str:
    """Make a name from outside safe for a terminal: control characters become a replacement mark."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
