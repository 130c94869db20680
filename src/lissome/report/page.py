"""One self-contained ``report.html``: what came out, every step on the way, and how it was made.

The page holds its data, its script and plotly; it opens from a file and may not load anything (its
Content-Security-Policy allows only the two scripts that were written here). What comes from outside, such as a model's
name, is escaped wherever it stands.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from lissome.core.budget import Term
from lissome.core.errors import ConfigError, MissingExtraError
from lissome.core.events import EventStream
from lissome.core.files import check_writable, write_text
from lissome.core.method import CurvePoint
from lissome.core.optional import optional_import
from lissome.report import front, rounds, sections
from lissome.report.facts import PageData, read_page, unit_of
from lissome.report.rows import LABELS, change, plain
from lissome.report.table import markdown

PAGE = "report.html"
_KINDS = ("attention", "mlp", "width", "groups", "queries")
_HEAD = 1 << 16  # bytes within which a page says its title
_TITLE = " – lissome</title>".encode()
_TABLE = re.compile(rb"\|  \| .* \| better \| how \|\n")
_LAYER = re.compile(r"layers\.(\d+)\.")


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of an artifact, or its result table alone.

    Args:
        folder: The artifact.
        out: Where to (default: ``report.html`` in the artifact); ``NAME.md`` gets the table as Markdown.

    Raises:
        ArtifactError: When the artifact cannot be read.
        ConfigError: When `out` cannot be written, or is a file that is no such page or table.
        MissingExtraError: When plotly is not installed.
    """
    target = out if out is not None else folder / PAGE
    data = read_page(folder)
    _check_place(target)
    write_text(target, markdown(data.rows) if target.suffix == ".md" else render(data))
    return target


def _check_place(target: Path) -> None:
    """Refuse to write over anything but an older page or table."""
    check_writable(target)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file such as {target / PAGE}.")
    if target.exists():
        if not target.is_file():
            raise ConfigError(f"{target} is not a file; name one such as {PAGE}.")
        with target.open("rb") as file:
            head = file.read(_HEAD)
        if head and _TITLE not in head and not _TABLE.match(head):
            raise ConfigError(f"{target} exists and is not a report of lissome; name another file, or remove it.")


def write_page_if_possible(folder: Path, events: EventStream) -> None:
    """Write the page of an artifact, or say why not: a job that is done does not fail for want of a picture."""
    try:
        events.message(f"report: {write_page(folder)}")
    except (MissingExtraError, ConfigError, OSError) as error:
        events.message(f"no {PAGE}: {error} (lissome report {shlex.quote(plain(str(folder)))} writes it later)")


def render(data: PageData) -> str:
    """Return the page as HTML, a function of `data` alone (the same data gives the same bytes)."""
    style = _source("page.css")
    parts = [
        sections.header(data),
        sections.cards(data.rows),
        sections.verdicts(data),
        sections.curve(data) if data.front is None else front.front(data.front, sections.text),
        sections.sizes(data) if data.front is not None else "",
        rounds.federation(data.federation, data.sent, sections.text),
        "" if data.federation else sections.table(data.rows),
        sections.lineage(data.manifest),
        sections.files(data),
    ]
    embedded, scripts = "", ""
    hashes = "'none'"
    drawn = _drawn(data)
    if drawn is not None:
        name, told = drawn
        script = _source("common.js") + _source(name)
        sources = (optional_import("plotly.offline", extra="report").get_plotlyjs(), script)
        embedded = f'<script type="application/json" id="data">{_embedded(told)}</script>'
        scripts = "".join(f"<script>{source}</script>\n" for source in sources)
        hashes = " ".join(f"'sha256-{_digest(source)}'" for source in sources)
    policy = f"default-src 'none'; base-uri 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{sections.text(data.manifest.name)} – lissome</title><style>{style}</style></head>\n<body><main>\n"
        f"{''.join(parts)}{sections.footer(data.manifest)}</main>\n{embedded}\n{scripts}</body></html>\n"
    )


def _source(name: str) -> str:
    return files("lissome.report").joinpath(name).read_text(encoding="utf-8")


def _drawn(data: PageData) -> tuple[str, dict[str, Any]] | None:
    """The script that draws the page's chart, and what it needs; None where there is nothing to draw."""
    if data.front is not None:
        searched = data.front.found is not None and data.front.found.front
        return ("front.js", front.script_data(data.front)) if searched else None
    if data.federation:
        told = rounds.script_data(data.federation, data.sent)
        return ("federation.js", told) if told else None
    return ("page.js", _script_data(data)) if data.curve else None


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _script_data(data: PageData) -> dict[str, Any]:
    """What the script needs: points with only what differs from the original, labels, units, bounds, the command."""
    full = dict(data.curve[0].subnet)
    names = dict.fromkeys(name for point in data.curve for name in (*point.figures, *point.quality))
    points = [
        {
            "step": point.step,
            "change": change(point.change),
            "kind": _kind(point),
            "figures": dict(point.figures),
            "quality": dict(point.quality),
            "cut": {name: value for name, value in point.subnet.items() if full.get(name) != value},
        }
        for point in data.curve
    ]
    return {
        "points": points,
        "full": full,
        "blocks": 1 + max((int(found[1]) for found in map(_LAYER.match, full) if found), default=-1),
        "result": _result_step(data),
        "labels": {name: LABELS.get(name, plain(name)) for name in names},
        "units": {name: unit_of(name) for name in names},
        "limits": [_limit(verdict) for verdict in data.verdicts],
        "extract": _extract(data.path),
    }


def _limit(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A bound as the chart draws it: as a share of the original, or as a figure."""
    term = Term.parse(str(verdict["term"]))
    return {"name": term.name, "term": str(term), "share": term.value if term.relative else None, "value": term.value}


def _extract(path: str) -> list[str]:
    """The command that extracts a step, in the pieces between which the step's number stands."""
    folder = shlex.quote(plain(path))
    out = shlex.quote(plain(f"{Path(path).name}-step"))
    return [f"lissome explain {folder} --extract ", f" --out {out}", ""]


def _kind(point: CurvePoint) -> str:
    word = point.change.split(" ")[0].rsplit(".", 1)[-1]
    return "original" if point.step == 0 else word if word in _KINDS else "other"


def _result_step(data: PageData) -> int | None:
    """The last step that is the artifact itself."""
    chosen = data.manifest.subnet
    steps = [point.step for point in data.curve if chosen is not None and dict(point.subnet) == dict(chosen)]
    return steps[-1] if steps else None
