"""The parts of the page as HTML; what comes from outside is escaped in `text`, and only there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lissome.core.manifest import Manifest
from lissome.core.method import CurvePoint
from lissome.report.facts import PageData, unit_of
from lissome.report.rows import LABELS, Grid, Row, cell, change, grids, plain
from lissome.report.units import duration, number, quantity

_HEADLINES = ("disk", "latency", "decode", "ppl", "accuracy", "block_params")
_CARDS = 4


def text(value: object) -> str:
    """A value from outside as HTML text or as an attribute in double quotes."""
    return escape(plain(str(value)))


def header(data: PageData) -> str:
    """What it is called, and what it was made from."""
    manifest, base = data.manifest, data.manifest.base
    origin = [f"made from <b>{text(base.name)}</b>", text(base.architecture)]
    if base.license:
        origin.append(text(base.license))
    if base.sha256:
        origin.append(f'sha256 <span class="mono">{text(base.sha256[:12])}…</span>')
    return (
        f'<header><div class="brand">lissome</div><h1>{text(manifest.name)}</h1><p>{" · ".join(origin)}</p></header>\n'
    )


def cards(rows: Sequence[Row]) -> str:
    """The figures that matter most, the result against the original."""
    if len(rows) < 2:
        return ""
    first, last = rows[0], rows[1]
    found: list[str] = []
    for name in _HEADLINES:
        before, after = cell(first.get(name)), cell(last.get(name))
        if before is None or after is None or len(found) == _CARDS:
            continue
        ratio = f'<span class="{after.trend}">{text(after.ratio)}</span> of ' if after.ratio else "from "
        found.append(
            f'<div class="card"><div class="what">{text(LABELS[name])}</div>'
            f'<div class="now">{text(after.value)}</div>'
            f'<div class="was">{ratio}{text(before.value)}</div></div>'
        )
    return f'<div class="cards">{"".join(found)}</div>\n' if found else ""


def verdicts(data: PageData) -> str:
    """How each bound of the budget ended, and the notes."""
    if not data.verdicts and not data.notes:
        return ""
    lines = []
    for verdict in data.verdicts:
        unit = str(verdict.get("unit", ""))
        word, style = ("✓ met", "better") if verdict["ok"] else ("✗ not met", "worse")
        got, limit = quantity(float(verdict["got"]), unit), quantity(float(verdict["limit"]), unit)
        lines.append(
            f'<li><b class="{style}">{word}</b> <code>{text(verdict["term"])}</code> – '
            f"{text(got)} against {text(limit)}</li>"
        )
    notes = "".join(f'<li class="note">{text(note)}</li>' for note in data.notes)
    return f'<section><h2>Budget</h2><ul class="verdicts">{"".join(lines)}{notes}</ul></section>\n'


def curve(data: PageData) -> str:
    """The chart, which the script fills, and every step as a table, which needs no script."""
    if not data.curve:
        return ""
    selects = "".join(
        f'<label>{word} <select id="{name}"></select></label>'
        for name, word in (("left", "left"), ("right", "right"), ("quality", "quality"))
    )
    return (
        "<section><h2>The way there</h2>"
        "<p>Every accepted step is a model of its own: smaller to the right. Sizes are counted, speeds predicted, "
        "and the quality is that on the text the method saw; the measured result is in the table below. Click a point "
        "to see what is left of each layer and the command that gives you that model.</p>"
        f'<div class="tools">{selects}</div><div id="chart"></div>'
        '<div class="tools"><label for="step">step</label><input id="step" type="range" min="0" value="0"></div>'
        '<div class="chosen"><div><h3 id="title"></h3><div class="scroll"><table id="figures"></table></div></div>'
        '<div><h3>What is left of each layer</h3><div class="layers" id="layers"></div>'
        '<p class="key"><span class="attention"></span>attention (above) <span class="mlp"></span>MLP (below); '
        "outlined: changed by this step; dashed: removed</p>"
        '<h3 style="margin-top:18px">Extract this step</h3><div class="command"><code id="extract"></code>'
        '<button id="copy" type="button">Copy</button></div></div></div>'
        f"<details><summary>All {len(data.curve)} steps as a table</summary>{_steps(data.curve)}</details></section>\n"
    )


def sizes(data: PageData) -> str:
    """The ends and the middle of a super-network, before any search."""
    if not data.curve:
        return ""
    own = ", with statistics of batch norms of its own" if data.batch_norms else ""
    note = f"Quality is that on the examples to choose by{own}."
    return f"<section><h2>Its sizes</h2><p>{note}</p>{_steps(data.curve)}</section>\n"


def _steps(curve: Sequence[CurvePoint]) -> str:
    figures = [name for name in curve[0].figures if all(name in point.figures for point in curve)]
    qualities = [name for name in curve[0].quality if all(name in point.quality for point in curve)]
    head = _cells("th", ["step", "change", *(LABELS.get(name, name) for name in (*figures, *qualities))])
    body = "".join(
        _cells(
            "td",
            [
                str(point.step),
                change(point.change),
                *(quantity(point.figures[name], unit_of(name)) for name in figures),
                *(number(point.quality[name]) for name in qualities),
            ],
        )
        for point in curve
    )
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _cells(tag: str, values: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{text(value)}</{tag}>' for value in values)}</tr>"


def table(rows: Sequence[Row]) -> str:
    """The result tables."""
    shown = [_table(grid) for grid in grids(rows) if grid.lines]
    if not shown:
        return ""
    return (
        "<section><h2>Before and after</h2><p>Measured in one run, interleaved with the original; text quality on "
        "held-out text that no method has seen. Brackets are 95 % intervals.</p>"
        f"{''.join(shown)}</section>\n"
    )


def _table(grid: Grid) -> str:
    lines = []
    for line in grid.lines:
        cells = []
        for one in line.cells:
            detail = f'<small class="{one.trend}">{text(one.detail)}</small>' if one and one.detail else ""
            cells.append(f"<td>{text(one.value) if one else '–'}{detail}</td>")
        lines.append(
            f'<tr><td>{text(line.label)}</td>{"".join(cells)}<td class="how">{text(line.better)}</td>'
            f'<td class="how">{text(line.how)}</td></tr>'
        )
    title = f"<h3>{text(grid.title)}</h3>" if grid.title else ""
    head = _cells("th", ["", *grid.models, "better", "how"])
    return f'{title}<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def lineage(manifest: Manifest) -> str:
    """Every step: settings, seed, data, time, memory, versions."""
    steps = []
    for index, step in enumerate(manifest.lineage, start=1):
        head: dict[str, object] = {"seed": step.seed, "data": f"{step.data[:16]}…", "time": duration(step.seconds)}
        if step.peak_memory is not None:
            head["peak memory"] = quantity(step.peak_memory, "bytes")
        blocks = [f"<h3>{index}. {text(step.method)}</h3>", _facts(head), _folded("Settings", step.config, shown=True)]
        blocks += [_folded("Versions and machine", step.versions), _folded("Details", step.details)]
        steps.append("".join(blocks))
    return f"<section><h2>Lineage</h2>{''.join(steps)}</section>\n" if steps else ""


def _facts(pairs: Mapping[str, object]) -> str:
    terms = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in pairs.items())
    return f'<dl class="facts">{terms}</dl>'


def _folded(title: str, pairs: Mapping[str, Any], *, shown: bool = False) -> str:
    if not pairs:
        return ""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in pairs.items()}
    return f"<details{' open' * shown}><summary>{text(title)}</summary>{_facts(texts)}</details>"


def files(data: PageData) -> str:
    """The artifact's files with their checksums."""
    records = data.manifest.files
    if not records:
        return ""
    body = "".join(
        f"<tr><td>{text(name)}</td><td>{quantity(record.bytes, 'bytes')}</td>"
        f'<td class="mono">{text(record.sha256)}</td></tr>'
        for name, record in records.items()
    )
    return (
        f"<section><h2>Files</h2><details><summary>{len(records)} files with their checksums</summary>"
        f'<div class="scroll"><table>{_cells("th", ("file", "size", "sha256"))}{body}</table></div>'
        "</details></section>\n"
    )


def footer(manifest: Manifest) -> str:
    """Which version wrote the artifact."""
    return f"<footer>Written by lissome {text(manifest.lissome)}; this page loads nothing from a network.</footer>"
