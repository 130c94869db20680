"""Lays out the answer of each command for a terminal; the same fields are what ``--json`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lissome.core.budget import TERMS
from lissome.report.facts import unit_of
from lissome.report.rows import LABELS, change, plain
from lissome.report.table import pairs, results, sheet, verdict_lines
from lissome.report.units import duration, number, percent, quantity

if TYPE_CHECKING:
    from rich.console import RenderableType

Fields = Mapping[str, Any]
Parts = Sequence["RenderableType"]

_CURVE = {"block_params": "blocks", "disk": "disk", "latency": "latency"}
_SHOWN_STEPS = 24  # of a curve, spread evenly: one screen


def methods(fields: Fields) -> Parts:
    """All methods, one a line."""
    table = sheet("method", "family", "what it does")
    for method in fields["methods"]:
        table.add_row(method["name"], method["family"], text_of(method["summary"]))
    return [table, text_of("Settings of one: lissome methods NAME", "dim")]


def method(fields: Fields) -> Parts:
    """One method with its settings."""
    head = {key: ", ".join(fields[key]) or "–" for key in ("needs", "leaves", "removes")}
    table = sheet("setting", "type", "default", "allowed", "meaning", title="Settings (--set KEY=VALUE)")
    for one in fields["settings"]:
        table.add_row(
            one["name"],
            text_of(one["type"]),
            text_of(_value(one["default"])),
            text_of(_allowed(one)),
            text_of(one["help"]),
        )
    about = pairs({**head, "budget": ", ".join(fields["budget_terms"]) or "–"}, title=fields["name"])
    return [text_of(fields["summary"]), about, table]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(setting: Fields) -> str:
    low, high = setting["low"], setting["high"]
    if setting["choices"]:
        return ", ".join(map(_value, setting["choices"]))
    if low is None and high is None:
        return ""
    if high is None:
        return f"≥ {low:g}"
    return f"≤ {high:g}" if low is None else f"{low:g} … {high:g}"


def plan(fields: Fields) -> Parts:
    """What a job would do: figures now and expected, memory, steps."""
    table = sheet(
        "",
        "now",
        "expected",
        "of the original",
        "reachable",
        "how",
        title=": ".join(part for part in (fields["model"], fields["budget"]) if part),
    )
    for name in _ordered(fields["original"]):
        unit, now = unit_of(name), fields["original"][name]
        table.add_row(
            LABELS.get(name, plain(name)),
            quantity(now, unit),
            _expected(fields, name, unit),
            _share(fields["predicted"].get(name), now),
            _maybe(fields["reachable"].get(name), unit),
            text_of(fields["provenance"].get(name, ""), "dim"),
        )
    memory = {"peak memory of the job": quantity(fields["peak_memory"], "bytes")}
    memory |= {f"  {plain(name)}": quantity(value, "bytes") for name, value in fields["memory_parts"].items()}
    if fields.get("seconds") is not None:
        memory["time of the job"] = f"about {duration(fields['seconds'])}"
    return [table, pairs(memory), *map(_step, fields["recipe"]), *_notes(fields)]


def _expected(fields: Fields, name: str, unit: str) -> str:
    """A figure that is expected, with what it is worth; or when it will be known."""
    value = fields["predicted"].get(name)
    if value is None:
        counted = fields["provenance"].get(name) == "counted"
        return "to be counted" if counted else "to be measured" if unit in ("s", "tokens/s") else "–"
    bound = "at least" if TERMS[name].better == "higher" else "at most"
    return f"{bound if name in fields['at_most'] else 'about'} {quantity(value, unit)}"


def _step(step: Fields) -> RenderableType:
    settings = " ".join(f"{key}={_value(value)}" for key, value in step.items() if key != "method")
    return text_of(f"  {step['method']}  {settings}".rstrip())


def table(fields: Fields) -> Parts:
    """Models side by side, then the budget's verdicts and the notes."""
    parts: list[RenderableType] = [*results(fields["rows"])]
    return [*parts, *verdict_lines(fields.get("verdicts", ())), *_notes(fields)]


def fit(fields: Fields) -> Parts:
    """The result of a job."""
    return [*table(fields), text_of(f"{fields['out']} is ready ({duration(fields['seconds'])}).", "bold")]


def generate(fields: Fields) -> Parts:
    """The text that was written, as it is."""
    from rich.text import Text

    return [
        Text(
            "".join(
                char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in fields["text"]
            )
        )
    ]


def export(fields: Fields) -> Parts:
    """Where the file is, what is in it, and what was padded."""
    types = ", ".join(f"{name} {quantity(size, 'bytes')}" for name, size in fields["types"].items())
    about = {
        "file": fields["path"],
        "size": quantity(fields["bytes"], "bytes"),
        "format": f"{fields['format']} ({fields['architecture']}, {fields['blocks']} blocks)",
        "types": types,
    }
    parts: list[RenderableType] = [pairs(about)]
    if fields["padded"]:
        padded = sheet("padded", "", "added", title=f"{quantity(fields['padded_bytes'], 'bytes')} of it is padding")
        for one in fields["padded"]:
            padded.add_row(text_of(one["part"]), text_of(change(one["change"])), quantity(one["bytes"], "bytes"))
        parts.append(padded)
    return [*parts, *_notes(fields)]


def inspect(fields: Fields) -> Parts:
    """Facts about a model or a device, the counted figures, and the sizes of the layers."""
    shown = {
        key: value
        for key, value in fields.items()
        if key not in _TABLES and value not in (None, "", []) and (value or key not in _OF_TEXT)
    }
    parts: list[RenderableType] = [pairs({key.replace("_", " "): _fact(key, value) for key, value in shown.items()})]
    figures = fields.get("figures") or {}
    if figures:
        rows = {LABELS.get(name, name): quantity(figures[name], unit_of(name)) for name in _ordered(figures)}
        parts.append(pairs(rows, title="Figures"))
    if fields.get("space"):
        parts.append(_space(fields["space"]))
    elif fields.get("layers"):
        parts.append(_layers(fields["layers"]))
    if fields.get("rigid"):
        parts.append(pairs(fields["rigid"], title="What cannot change, and why"))
    return parts


_TABLES = ("figures", "layers", "rigid", "space")
_OF_TEXT = ("hidden", "vocabulary", "embedding_params", "cache_bytes")  # which others have none of
_SHOWN_CHOICES = 8


def _space(space: Mapping[str, Sequence[int]]) -> RenderableType:
    """The choices of every axis."""
    table = sheet("axis", "choices", title="What can change")
    for name, choices in space.items():
        few = len(choices) <= _SHOWN_CHOICES
        shown = [str(choice) for choice in (choices if few else (*choices[:3], "…", *choices[-2:]))]
        table.add_row(name, "kept or removed" if list(choices) == [0, 1] else " ".join(shown))
    return table


_FACT_UNITS = {
    "memory": "bytes", "cache_bytes": "bytes", "bandwidth": "bytes", "flops": "count", "embedding_params": "count",
}  # fmt: skip
_RATES = {"bandwidth": "/s", "flops": "FLOP/s"}


def _fact(name: str, value: Any) -> str:
    if name == "token_bytes":
        return ", ".join(f"{quantity(float(size), 'bytes')} at {bits} bits" for bits, size in value.items())
    if name in _FACT_UNITS:
        return f"{quantity(float(value), _FACT_UNITS[name])}{_RATES.get(name, '')}"
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else number(value)
        if isinstance(value, float)
        else str(value)
    )


def _layers(layers: Sequence[Fields]) -> RenderableType:
    """Sizes of all layers; neighbours that are alike share a line."""
    parts = list(dict.fromkeys(part for layer in sorted(layers, key=len, reverse=True) for part in layer))
    table = sheet("layers", *parts, title="Layers")
    start = 0
    for index in range(1, len(layers) + 1):
        if index == len(layers) or layers[index] != layers[start]:
            span = str(start) if index - start == 1 else f"{start}–{index - 1}"
            table.add_row(span, *(_sizes(layers[start].get(part)) for part in parts))
            start = index
    return table


def _sizes(sizes: Mapping[str, int] | None) -> str:
    return "–" if sizes is None else ", ".join(f"{dim} {size}" for dim, size in sizes.items()) or "kept"


def explain(fields: Fields) -> Parts:
    """The lineage of an artifact and its curve."""
    manifest = fields["manifest"]
    base = manifest["base"]
    about = {"name": manifest["name"], "made from": f"{base['name']} ({base['architecture']})"}
    about |= {"sha256 of that": base["sha256"]} if base.get("sha256") else {}
    about |= {"licence": base["license"]} if base.get("license") else {}
    parts: list[RenderableType] = [pairs(about)]
    for index, step in enumerate(manifest.get("lineage", ()), start=1):
        facts = {
            "settings": json.dumps(step["config"]),
            "seed": step["seed"],
            "data": step["data"],
            "time": duration(step["seconds"]),
        }
        facts |= {"peak memory": quantity(step["peak_memory"], "bytes")} if step.get("peak_memory") else {}
        facts |= {"before": _metrics(step.get("before", ())), "after": _metrics(step.get("after", ()))}
        facts |= {"versions": ", ".join(f"{name} {value}" for name, value in step.get("versions", {}).items())}
        parts.append(
            pairs({key: value for key, value in facts.items() if value}, title=f"{index}. {plain(step['method'])}")
        )
    return [*parts, *_curve(fields.get("curve", ()))]


def _metrics(metrics: Sequence[Fields]) -> str:
    return ", ".join(f"{plain(one['name'])} {quantity(one['value'], one.get('unit', ''))}" for one in metrics)


def _curve(points: Sequence[Fields]) -> Parts:
    if not points:
        return []
    names = [name for name in _CURVE if name in points[0]["figures"]]
    qualities = list(points[0]["quality"])
    table = sheet(
        "step",
        "change",
        *(_CURVE[name] for name in names),
        *(LABELS.get(name, name) for name in qualities),
        title="Curve",
    )
    for point in _spread(points):
        figures = [_share(point["figures"].get(name), points[0]["figures"][name]) for name in names]
        quality = [number(point["quality"][name]) if name in point["quality"] else "–" for name in qualities]
        table.add_row(str(point["step"]), text_of(change(point["change"])), *figures, *quality)
    hint = "One step: --step N. A step as a model: --extract STEP --out DIR."
    return [table, text_of(f"{len(points)} steps; sizes and times are shares of the original. {hint}", "dim")]


def _spread(points: Sequence[Fields]) -> list[Fields]:
    """First, last and evenly between; all when they are few."""
    last = len(points) - 1
    if last < _SHOWN_STEPS:
        return list(points)
    return [points[round(index * last / (_SHOWN_STEPS - 1))] for index in range(_SHOWN_STEPS)]


def point(fields: Fields) -> Parts:
    """One step of a curve."""
    figures = {
        LABELS.get(name, plain(name)): quantity(fields["figures"][name], unit_of(name))
        for name in _ordered(fields["figures"])
    }
    quality = {LABELS.get(name, plain(name)): number(value) for name, value in fields["quality"].items()}
    return [pairs({**figures, **quality}, title=f"Step {fields['step']}: {change(fields['change'])}")]


def assets(fields: Fields) -> Parts:
    """All assets, one a line."""
    table = sheet("asset", "kind", "size", "fetched", "licence", "what it is")
    for one in fields["assets"]:
        fetched = "yes" if one["fetched"] else "no"
        table.add_row(
            one["name"],
            one["kind"],
            quantity(one["bytes"], "bytes"),
            fetched,
            text_of(one["licence"]),
            text_of(one["summary"]),
        )
    return [table]


def search(fields: Fields) -> Parts:
    """The front of a search, the original above it, and the choice."""
    names = [objective.partition(" ")[2] for objective in fields["objectives"]]
    table = sheet("point", *(LABELS.get(name, plain(name)) for name in names), "held out", "", title=_asked(fields))
    whole, chosen = fields["whole"], fields["chosen"]
    original = (figure_of(name, fields["original"], {}) for name in names)
    table.add_row("original", *original, _qualities(whole["selection"]) if whole else "", "")
    front = _spread(fields["front"])
    if chosen and chosen["number"] not in [point["number"] for point in front]:
        front.append(chosen)
    for point in front:
        shown = [figure_of(name, point["figures"], fields["original"]) for name in names]
        mark = "← chosen" if chosen and point["number"] == chosen["number"] else ""
        table.add_row(str(point["number"]), *shown, _qualities(point["selection"]), mark)
    return [table, *_found(fields)]


def _qualities(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{LABELS.get(name, plain(name))} {number(value)}" for name, value in figures.items())


def _asked(fields: Fields) -> str:
    return plain(": ".join(part for part in (fields["model"], ", ".join(fields["bounds"])) if part))


def figure_of(name: str, figures: Mapping[str, float], original: Mapping[str, float]) -> str:
    """A figure, and its share of the original's."""
    if name not in figures:
        return "–"
    value = quantity(figures[name], unit_of(name))
    return f"{value} ({_share(figures[name], original[name])})" if original.get(name) else value


def _found(fields: Fields) -> list[RenderableType]:
    """What a search says below its table."""
    chosen = fields["chosen"]
    lines = []
    if chosen and chosen["test"]:
        told = _qualities(chosen["test"])
        lines.append(f"chosen: point {chosen['number']}; on the test split, which had no part in it: {told}")
    elif not chosen:
        lines.append("no point is chosen: " + ("none holds the bounds" if fields["bounds"] else "give a --budget"))
    ways: dict[str, list[str]] = {}
    for name, way in fields["provenance"].items():
        ways.setdefault(way, []).append(name)
    lines.append("; ".join(f"{way}: {', '.join(names)}" for way, names in ways.items()))
    lines += [f"{count} Subnets gave no figures: {reason}" for reason, count in fields["failed"].items()]
    about = f"{fields['evaluated']} Subnets, {len(fields['front'])} on the front ({duration(fields['seconds'])})"
    return [*(text_of(line, "dim") for line in lines), *_notes(fields), text_of(f"{about}; {fields['out']}", "bold")]


def path(fields: Fields) -> Parts:
    """Where something was written."""
    return [text_of(str(fields["path"]))]


def text_of(text: str, style: str = "") -> RenderableType:
    """A line of text."""
    from rich.text import Text

    return Text(plain(text), style=style)


def _notes(fields: Fields) -> list[RenderableType]:
    return [text_of(f"note: {note}", "dim") for note in fields.get("notes", ())]


def _ordered(figures: Mapping[str, float]) -> list[str]:
    return [name for name in LABELS if name in figures] + [name for name in figures if name not in LABELS]


def _maybe(value: float | None, unit: str) -> str:
    return "–" if value is None else quantity(value, unit)


def _share(value: float | None, whole: float) -> str:
    return percent(value / whole) if value is not None and whole else "–"
