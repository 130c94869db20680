"""The part of the page that shows a federation: rounds, clients, bytes and sizes, as charts and tables."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from statistics import mean, quantiles
from typing import Any

from lissome.report.rows import plain
from lissome.report.units import duration, percent, quantity

Bytes = Mapping[int, Mapping[str, int]]
"""Bytes of messages of each round, ``down`` and ``up``."""

_SHARES = frozenset({"accuracy", "precision", "recall"})
_CLIENTS = 200  # of the table; more are summed up all the same
_FEWEST = 2  # rounds that make a curve
_WHO = {"server": "server", "evaluate": "clients, mean by examples", "train": "while training"}
_CHARTS = (
    '<div class="tools"><label>across <select id="across"></select></label><label>up <select id="up"></select></label>'
    '</div><div id="chart"></div><div class="pair"><div><h3>Messages of each round</h3><div id="traffic"></div></div>'
    '<div><h3>Clients after the last round</h3><div id="clients"></div></div></div>'
)


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
    charts = _CHARTS if _measures(rounds) else ""
    parts = [_facts(result, rounds, text), charts, _rounds(rounds, sent, text)]
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


def script_data(result: Mapping[str, Any], sent: Bytes) -> dict[str, Any] | None:
    """What the script draws: measures by round and by bytes so far, bytes of rounds, scores of clients; None: nothing.

    Args:
        result: As of `federation`.
        sent: Bytes by round.
    """
    rounds = result.get("rounds") or []
    measures = _measures(rounds)
    if not measures:
        return None
    told, so_far = [], 0
    for one in rounds:
        moved = sent.get(one["number"], {"down": 0, "up": 0})
        so_far += moved["down"] + moved["up"]
        told.append({"number": one["number"], "bytes": so_far, **moved, "values": _values(one, measures)})
    return {
        "rounds": told,
        "measures": measures,
        "shares": [name for name in measures if _is_share(name)],
        "clients": [
            {"name": plain(name), "scores": {key: value for key, value in scores.items() if isfinite(value)}}
            for name, scores in _last_scores(rounds).items()
        ],
        "labels": {"round": "round", "bytes": "messages so far"},
    }


def _measures(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what can be drawn, whoever measured it: shares first, then the rest in their order."""
    if len(rounds) < _FEWEST:
        return []
    known = (name for one in rounds for name, value in one["metrics"].items() if isfinite(value))
    found = dict.fromkeys(name.rpartition("/")[2] for name in known)
    return sorted(found, key=lambda name: not _is_share(name))


def _values(one: Mapping[str, Any], measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """What a round measured, by measure and by who measured it, with the worst decile of its clients."""
    found: dict[str, dict[str, float]] = {name: {} for name in measures}
    for name, value in one["metrics"].items():
        who, _, measure = name.rpartition("/")
        if isfinite(value):
            found[measure][_WHO.get(who, plain(who))] = value
    for measure in measures:
        values = [scores[measure] for scores in one["scores"].values() if isfinite(scores.get(measure, inf))]
        if len(values) > 1:
            found[measure]["clients, worst decile"] = worst_decile(values, low_is_bad=_is_share(measure))
    return found


def _rounds(rounds: Sequence[Mapping[str, Any]], sent: Bytes, text: Any) -> str:
    names = list(dict.fromkeys(name for one in rounds for name in one["metrics"]))
    head = ["round", "clients", "clock", "down", "up", *names]
    rows = []
    for one in rounds:
        moved = sent.get(one["number"], {"down": 0, "up": 0})
        clients = f"{one['answered']} of {len(one['clients'])}{'' if one['ok'] else ', void'}"
        numbers = [_shown(name, one["metrics"][name]) if name in one["metrics"] else "" for name in names]
        traffic = (quantity(moved[way], "bytes") for way in ("down", "up"))
        rows.append([str(one["number"]), clients, duration(one["seconds"]), *traffic, *numbers])
    return _folded(f"{len(rounds) - 1} rounds", head, rows, text)


def _clients(rounds: Sequence[Mapping[str, Any]], text: Any) -> str:
    scores = _last_scores(rounds)
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    if not names:
        return ""
    rows = []
    for label, pick in (("mean of clients", mean), ("worst decile", None)):
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
    return _folded(f"{len(scores)} clients after the last round", ["client", *names], rows, text)


def _last_scores(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, float]]:
    return next((one["scores"] for one in reversed(rounds) if one["scores"]), {})


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
    return f'<h3 class="after">Sizes trained</h3><div class="scroll"><table>{head}{bars}</table></div>'


def _folded(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], text: Any) -> str:
    lines = [f"<tr>{''.join(f'<th>{text(one)}</th>' for one in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{text(one)}</td>' for one in row)}</tr>" for row in rows]
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    return f"<details><summary>{text(title)}</summary>{table}</details>"


def _is_share(name: str) -> bool:
    return name.rpartition("/")[2] in _SHARES


def _shown(name: str, value: float) -> str:
    return percent(value) if _is_share(name) else plain(f"{value:.4g}")
