"""What a search of a super-network found, for the page: a front to click on, and the command for each point."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.budget import TERMS
from lissome.core.manifest import Manifest
from lissome.report.rows import LABELS, plain
from lissome.report.units import quantity

if TYPE_CHECKING:
    from lissome.engine.search import Found

_REFUSED = "Only the front and the chosen point can be extracted: statistics of batch norms are kept for those."


@dataclass(frozen=True, kw_only=True)
class Front:
    """The trade-off of a super-network.

    Attributes:
        found: What was found; None where nothing was searched yet.
        path: How the user calls the artifact: its folder, or its name where it ships.
        all_extractable: Whether every point can be extracted, and not the front and the chosen one alone.
    """

    found: Found | None
    path: str
    all_extractable: bool = True


def read_front(folder: Path, manifest: Manifest) -> Front | None:
    """Return what an artifact knows of its trade-off; None when it is no super-network.

    Raises:
        ArtifactError: When the file is damaged.
    """
    if "elastic" not in manifest.tags:
        return None
    from lissome.engine.search import Found
    from lissome.models.zoo import called
    from lissome.pipeline.supernets import FOUND, STATISTICS, is_elastic

    if not is_elastic(folder):
        return None
    place = folder / FOUND
    found = Found.load(place) if place.is_file() else None
    return Front(found=found, path=called(folder), all_extractable=not (folder / STATISTICS).is_file())


def front(data: Front, text: Callable[[object], str]) -> str:
    """The chart, which the script fills, and the front as a table, which needs no script.

    Args:
        data: What was found.
        text: Escapes what comes from outside.
    """
    if data.found is None or not data.found.front:
        command = f"lissome search {shlex.quote(plain(data.path))}"
        what = "was not searched yet" if data.found is None else "has no point that holds every bound"
        return f"<section><h2>The trade-off</h2><p>It {what}; give <code>{text(command)}</code>.</p></section>\n"
    selects = "".join(
        f'<label>{word} <select id="{name}"></select></label>' for name, word in (("across", "across"), ("up", "up"))
    )
    sampler = f" by {text(data.found.sampler)}" if data.found.sampler else ""
    return (
        "<section><h2>The trade-off</h2>"
        f"<p>{len(data.found.points)} sub-networks were evaluated{sampler}; those on the front are beaten by none on "
        "the examples of the search, by which the chart is drawn. Some were also compared on examples to choose by. "
        "Click a point to see its sub-network and the command that gives you that model.</p>"
        f'<div class="tools">{selects}</div><div id="chart"></div>'
        '<div class="tools"><label for="step">along the front</label>'
        '<input id="step" type="range" min="0" value="0"></div>'
        '<div class="chosen"><div><h3 id="title"></h3><div class="scroll"><table id="figures"></table></div>'
        '<h3 style="margin-top:18px">Extract it</h3><div class="command"><code id="extract"></code>'
        '<button id="copy" type="button">Copy</button></div></div>'
        '<div><h3>Its sub-network</h3><div class="scroll tall"><table id="subnet"></table></div><p id="same"></p></div>'
        f"</div><details><summary>All {len(data.found.front)} points of the front as a table</summary>"
        f"{_table(data.found, text)}</details></section>\n"
    )


def _table(found: Found, text: Callable[[object], str]) -> str:
    names = _names(found)
    compared = [name for name in names if any(name in found.points[place].selection for place in found.front)]
    heads = [
        *(LABELS.get(name, name) for name in names),
        *(f"{LABELS.get(name, name)}, to choose" for name in compared),
    ]
    lines = [_row("th", ["point", *heads], text)]
    for place in found.front:
        point = found.points[place]
        known = [*((point.figures, name) for name in names), *((point.selection, name) for name in compared)]
        shown = (quantity(figures[name], _unit(name)) if name in figures else "–" for figures, name in known)
        mark = " (chosen)" if place == found.chosen else ""
        lines.append(_row("td", [f"{point.number}{mark}", *shown], text))
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _row(tag: str, values: Iterable[object], text: Callable[[object], str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{text(value)}</{tag}>' for value in values)}</tr>"


def script_data(data: Front) -> dict[str, Any]:
    """What the script needs: points with what differs from the whole, labels, units, bounds, the command."""
    found = data.found
    assert found is not None
    on_front, kept = set(found.front), set(found.kept)
    names = _names(found)
    better = {objective.name: objective.better for objective in found.goal.objectives}
    costs = [name for name in better if name in TERMS]
    across = costs[-1] if costs else next(reversed(better))
    folder = shlex.quote(plain(data.path))
    out = shlex.quote(plain(f"{Path(data.path).name}-point"))
    return {
        "points": [
            {
                "number": point.number,
                "figures": {name: point.figures[name] for name in names if name in point.figures},
                "selection": dict(point.selection),
                "test": dict(point.test),
                "cut": _cut(found, point.choices),
                "front": place in on_front,
                "chosen": place == found.chosen,
                "extractable": data.all_extractable or place in kept,
            }
            for place, point in enumerate(found.points)
        ],
        "full": {axis.name: axis.full for axis in found.space.axes},
        "original": _original(found, names),
        "better": better,
        "across": across,
        "up": next((name for name in better if name != across), across),
        "labels": {name: LABELS.get(name, plain(name)) for name in names},
        "units": {name: _unit(name) for name in names},
        "limits": [{"name": each.name, "term": str(each), "value": each.limit} for each in found.goal.bounds],
        "extract": [f"lissome extract {folder} --point ", f" --out {out}", ""],
        "refused": _REFUSED,
    }


def _names(found: Found) -> list[str]:
    """Figures of the front: objectives first."""
    known = dict.fromkeys(name for place in found.front for name in found.points[place].figures)
    return [*(name for name in found.goal.names if name in known), *(n for n in known if n not in found.goal.names)]


def _original(found: Found, names: Iterable[str]) -> dict[str, float]:
    """Figures of the whole: costs, and its quality where it was evaluated, which it is by default."""
    whole = [point for point in found.points if not _cut(found, point.choices)]
    known: Mapping[str, float] = {**found.original, **(whole[0].figures if whole else {})}
    return {name: known[name] for name in names if name in known}


def _cut(found: Found, choices: Iterable[int]) -> dict[str, int]:
    pairs = zip(found.space.axes, choices, strict=True)
    return {axis.name: choice for axis, choice in pairs if choice != axis.full}


def _unit(name: str) -> str:
    return TERMS[name].unit if name in TERMS else ""
