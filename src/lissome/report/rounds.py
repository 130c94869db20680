"""The part of the page that shows a federation: rounds, clients, bytes and sizes, as tables, lines and bars."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, quantiles
from typing import Any

from lissome.report.rows import plain
from lissome.report.units import duration, percent, quantity

Bytes = Mapping[int, Mapping[str, int]]
"""Bytes of messages of each round, ``down`` and ``up``."""

_WIDTH, _HEIGHT, _EDGE = 640, 180, 34
_SHARES = frozenset({"accuracy", "precision", "recall"})
_CLIENTS = 200  # of the table; more are summed up all the same
_COLOURS = ("--accent", "--mlp", "--attention", "--groups")


def bytes_of(ledger: str) -> dict[int, dict[str, int]]:
    """Sum the messages of a ledger by round and direction; lines that cannot be read are left out."""
    found: dict[int, dict[str, int]] = defaultdict(lambda: {"down": 0, "up": 0})
    for row in csv.DictReader(io.StringIO(ledger)):
        if row.get("direction") in {"down", "up"} and str(row.get("message", "")).isdigit():
            found[int(row["round"])][row["direction"]] += int(row["message"])
    return dict(found)


def federation(result: Mapping[str, Any], sent: Bytes, text: Any) -> str:
    """Return the section of a federation.

    Args:
        result: What ``result.json`` of a federation holds.
        sent: Bytes by round.
        text: Escapes what comes from outside.
    """
    rounds = result.get("rounds")
    if not isinstance(rounds, list) or not rounds:
        return ""
    parts = [_facts(result, rounds, text), _lines(rounds, text), _rounds(rounds, sent, text)]
    parts += [_clients(rounds, text), _sizes(result.get("subnets", {}), text)]
    return f"<section><h2>Federation</h2>{''.join(parts)}</section>\n"


def worst_decile(values: Sequence[float], *, low_is_bad: bool) -> float:
    """Return what a tenth of the clients does not reach, or passes."""
    deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else list(values) * 9
    return deciles[0] if low_is_bad else deciles[-1]


def _facts(result: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], text: Any) -> str:
    total = result.get("bytes", {})
    facts = {
        "rounds": rounds[-1]["number"],
        "messages down": quantity(total.get("message_down", 0), "bytes"),
        "messages up": quantity(total.get("message_up", 0), "bytes"),
        "tensors in them": quantity(total.get("payload_down", 0) + total.get("payload_up", 0), "bytes"),
        "answers not used": ", ".join(f"{name}: {count}" for name, count in result.get("audit", {}).items()) or "none",
    }
    terms = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{terms}</dl>'


def _lines(rounds: Sequence[Mapping[str, Any]], text: Any) -> str:
    """Draw shares (accuracy …) of the server and the clients over the rounds, else the losses."""
    names = list(dict.fromkeys(name for one in rounds for name in one["metrics"]))
    wanted = [name for name in names if _is_share(name)] or [name for name in names if name.endswith("/loss")]
    drawn = [name for name in wanted if sum(name in one["metrics"] for one in rounds) > 1][: len(_COLOURS)]
    if not drawn:
        return ""
    values = [one["metrics"][name] for name in drawn for one in rounds if name in one["metrics"]]
    low, high = (0.0, 1.0) if _is_share(drawn[0]) else (min(values), max(values))
    last = max(1, rounds[-1]["number"])
    paths, legend = [], []
    for name, colour in zip(drawn, _COLOURS, strict=False):
        points = " ".join(
            f"{_EDGE + (_WIDTH - _EDGE) * one['number'] / last:.1f},"
            f"{_HEIGHT - 18 - (_HEIGHT - 28) * (one['metrics'][name] - low) / ((high - low) or 1):.1f}"
            for one in rounds
            if name in one["metrics"]
        )
        paths.append(f'<polyline fill="none" stroke="var({colour})" stroke-width="2" points="{points}"/>')
        legend.append(f'<span style="color:var({colour})">■</span> {text(name)}')
    ticks = "".join(
        f'<text x="0" y="{y}" font-size="11" fill="var(--soft)">{text(_shown(drawn[0], value))}</text>'
        for y, value in ((14, high), (_HEIGHT - 18, low))
    )
    end = f'<text x="{_WIDTH - 60}" y="{_HEIGHT - 2}" font-size="11" fill="var(--soft)">round {last}</text>'
    return (
        f'<p>{" · ".join(legend)}</p><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" '
        f'aria-label="{text(", ".join(drawn))} by round">{ticks}{"".join(paths)}{end}</svg>'
    )


def _rounds(rounds: Sequence[Mapping[str, Any]], sent: Bytes, text: Any) -> str:
    names = list(dict.fromkeys(name for one in rounds for name in one["metrics"]))
    head = ["round", "clients", "time", "down", "up", *names]
    rows = []
    for one in rounds:
        moved = sent.get(one["number"], {"down": 0, "up": 0})
        clients = f"{one['answered']} of {len(one['clients'])}{'' if one['ok'] else ', void'}"
        numbers = [_shown(name, one["metrics"][name]) if name in one["metrics"] else "" for name in names]
        traffic = (quantity(moved[way], "bytes") for way in ("down", "up"))
        rows.append([str(one["number"]), clients, duration(one["seconds"]), *traffic, *numbers])
    return _folded(f"{len(rounds) - 1} rounds", head, rows, text)


def _clients(rounds: Sequence[Mapping[str, Any]], text: Any) -> str:
    scores: Mapping[str, Mapping[str, float]] = next((one["scores"] for one in reversed(rounds) if one["scores"]), {})
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    if not names:
        return ""
    rows = []
    for label, pick in (("mean", mean), ("worst decile", None)):
        row = [label]
        for name in names:
            values = [one[name] for one in scores.values() if name in one]
            value = pick(values) if pick else worst_decile(values, low_is_bad=_is_share(name))
            row.append(_shown(name, value))
        rows.append(row)
    ordered = sorted(scores.items(), key=lambda entry: entry[1].get(names[0], 0.0))
    rows += [
        [client, *(_shown(name, one[name]) if name in one else "" for name in names)]
        for client, one in ordered[:_CLIENTS]
    ]
    return _folded(f"{len(scores)} clients after the last round", ["client", *names], rows, text, shown=True)


def _sizes(sizes: Mapping[str, int], text: Any) -> str:
    """Draw how often each size was trained, by its share of the parameters."""
    if not sizes:
        return ""
    most = max(sizes.values())
    bars = "".join(
        f'<tr><td>{text(size)}</td><td>{text(count)}</td><td style="width:60%">'
        f'<div style="background:var(--accent);height:10px;border-radius:3px;width:{100 * count / most:.0f}%"></div>'
        "</td></tr>"
        for size, count in sizes.items()
    )
    head = "<tr><th>share of the parameters</th><th>orders to train it</th><th></th></tr>"
    return f'<h3>Sizes trained</h3><div class="scroll"><table>{head}{bars}</table></div>'


def _folded(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], text: Any, *, shown: bool = False) -> str:
    lines = [f"<tr>{''.join(f'<th>{text(one)}</th>' for one in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{text(one)}</td>' for one in row)}</tr>" for row in rows]
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    return f"<details{' open' * shown}><summary>{text(title)}</summary>{table}</details>"


def _is_share(name: str) -> bool:
    return name.rpartition("/")[2] in _SHARES


def _shown(name: str, value: float) -> str:
    return percent(value) if _is_share(name) else plain(f"{value:.4g}")
