"""Tables for a terminal (rich) and for a document (Markdown)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from lissome.report.rows import Cell, Grid, Row, grids, plain
from lissome.report.units import quantity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"better": "green", "worse": "red", "same": "dim", "": "dim"}
_MARKS = {"better": "✓ ", "worse": "", "same": "≈ ", "": ""}
_ARROWS = {"lower": "↓", "higher": "↑"}
_ROOM, _SERIES = 10, re.compile(r"-\d+(?=/|$)")
_WIDTH = 110  # columns when the answer goes to a file or a pipe


def terminal(stream: IO[str]) -> Console:
    """Return a console for `stream` that does not guess, wrap or colour where nobody sees it."""
    from rich.console import Console

    wide = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(file=stream, width=wide, markup=False, highlight=False, emoji=False)


def sheet(*columns: str, title: str = "") -> Table:
    """Return an empty table in the one style that all answers share; the first column is for names."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    wide = len(title) + 2 if title else None  # a title is never broken to fit a narrow table
    table = Table(
        box=SIMPLE_HEAD,
        title=plain(title) or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        min_width=wide,
    )
    for index, column in enumerate(columns):
        table.add_column(plain(column), justify="left", style="bold" if index == 0 else "", overflow="fold")
    return table


def columns(names: Iterable[str]) -> list[str]:
    """Return what a table on a terminal has room for, each name once: of many not the series, such as ``loss-0``."""
    found = list(dict.fromkeys(names))
    return found if len(found) <= _ROOM else [name for name in found if not _SERIES.search(name)]


def results(rows: Sequence[Row]) -> list[Table]:
    """Lay out models side by side: every metric with its ratio to the original, interval, and how it came about.

    Args:
        rows: As in `lissome.report.rows`; the first one is the original.
    """
    from rich.text import Text

    tables = []
    for grid in grids(rows):
        table = sheet("", *grid.models, "how", title=grid.title)
        for line in grid.lines:
            label = Text.assemble(line.label, (f" {_ARROWS[line.better]}", "dim"))
            table.add_row(label, *map(_cell, line.cells), Text(line.how, style="dim"))
        tables.append(table)
    return tables


def _cell(cell: Cell | None) -> Text:
    from rich.text import Text

    if cell is None:
        return Text("–", style="dim")
    text = Text(cell.value)
    if cell.detail:
        text.append(f"\n{_MARKS[cell.trend]}{cell.detail}", style=_STYLES[cell.trend])
    return text


def markdown(rows: Sequence[Row]) -> str:
    """Return the same tables as Markdown."""
    return "\n".join(map(_markdown, grids(rows)))


def _markdown(grid: Grid) -> str:
    head = [grid.title, *grid.models, "better", "how"]
    lines = [head, ["---", *["---:"] * len(grid.models), "---", "---"]]
    for line in grid.lines:
        cells = [
            "–" if cell is None else f"{cell.value} ({cell.detail})" if cell.detail else cell.value
            for cell in line.cells
        ]
        lines.append([line.label, *cells, line.better, line.how])
    return "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)


def _escaped(text: str) -> str:
    """A text that cannot end a Markdown cell or become markup."""
    for char in "\\|<>*_`[]":
        text = text.replace(char, f"\\{char}") if char != "<" else text.replace("<", "&lt;")
    return text


def verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[Text]:
    """One line for each bound of the budget: met or not, the figure and the bound."""
    from rich.text import Text

    lines = []
    for verdict in verdicts:
        unit = str(verdict.get("unit", ""))
        got, limit = quantity(float(verdict["got"]), unit), quantity(float(verdict["limit"]), unit)
        word, style = ("✓ met", "green") if verdict["ok"] else ("✗ not met", "bold red")
        lines.append(Text(f"{word}  {verdict['term']}: {got} against {limit}", style=style))
    return lines


def pairs(fields: Mapping[str, Any], *, title: str = "") -> Table:
    """Lay out plain facts, one a line."""
    from rich.text import Text

    table = sheet("", "", title=title)
    table.show_header = False
    for name, value in fields.items():
        table.add_row(plain(name), Text(plain(str(value))))
    return table
