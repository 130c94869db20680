"""Lays out what ``lissome federate`` plans and found, for a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from lissome.report.rounds import worst_decile
from lissome.report.table import columns, pairs, sheet
from lissome.report.units import duration, percent, quantity

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN_CLIENTS, _SHOWN_ROUNDS, _SHOWN_NAMES = 40, 24, 6
_LAYER = re.compile(r"(?:^|\.)\d+(?=\.|$)")  # the number of a layer in the name of an axis
Fields = Mapping[str, Any]


def plan(fields: Fields) -> Sequence[RenderableType]:
    """Who gets which Subnet, bytes per round, memory."""
    table = sheet("client", "device", "budget", "examples", "parameters", "down", "up", "memory", title="First round")
    for one in fields["clients"][:_SHOWN_CLIENTS]:
        figures = one.get("figures", {})
        table.add_row(
            one["name"], one["kind"], one["budget"] or "–", str(one["examples"]),
            quantity(figures["params"], "count") if figures else "–", quantity(one["down"], "bytes"),
            quantity(one["up"], "bytes"), quantity(one["memory"], "bytes") if one["memory"] else "–",
        )  # fmt: skip
    hidden = len(fields["clients"]) - _SHOWN_CLIENTS
    if hidden > 0:
        table.add_row(f"… {hidden} more", *[""] * 7)
    facts = {
        "tensors, a round of all clients": quantity(fields["payload"], "bytes"),
        "messages of such a round": quantity(fields["message"], "bytes"),
        "server, beside the model": quantity(fields["server_memory"], "bytes"),
        "federation": fields["federation"],
    }
    return [table, *subnetworks(fields["clients"]), pairs(facts)]


def subnetworks(clients: Sequence[Fields]) -> Sequence[RenderableType]:
    """Each Subnet that clients of a plan get, with the choices that differ from the whole model; none: all get it."""
    holders: dict[str, list[str]] = {}
    for one in clients:
        holders.setdefault(chosen(one["subnet"]), []).append(one["name"])
    if not any(holders):
        return []
    table = sheet("sub-network", "clients", "", title="Who gets which")
    for choices, names in holders.items():
        more = f" … {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        table.add_row(choices or "the whole model", str(len(names)), ", ".join(names[:_SHOWN_NAMES]) + more)
    return [table]


def chosen(subnet: Mapping[str, int]) -> str:
    """Write choices by what they are of, whatever the layer: ``mlp.width 768 ×6`` is that of six layers."""
    counted = Counter((_LAYER.sub("", name).strip("."), value) for name, value in subnet.items())
    return ", ".join(f"{name} {value}{f' ×{count}' if count > 1 else ''}" for (name, value), count in counted.items())


def result(fields: Fields) -> Sequence[RenderableType]:
    """Rounds, scores of clients, bytes, sizes."""
    rounds = fields["rounds"]
    every = {name for one in rounds for name in one["metrics"]}
    names = columns(name for one in rounds for name in one["metrics"])
    table = sheet("round", "clients", "clock, s", *names, title="Rounds")
    shown = rounds if len(rounds) <= _SHOWN_ROUNDS else [*rounds[:2], *rounds[2 - _SHOWN_ROUNDS :]]
    for one in shown:
        values = (f"{one['metrics'][name]:.4g}" if name in one["metrics"] else "" for name in names)
        clients = f"{one['answered']} of {len(one['clients'])}{'' if one['ok'] else ', void'}"
        table.add_row(str(one["number"]), clients, f"{one['seconds']:.1f}", *values)
    parts: list[RenderableType] = [table]
    scores = [found for one in rounds if (found := spread(one["scores"]))]
    if scores:
        parts.append(pairs(scores[-1], title="Clients after the last round"))
    facts = {
        "messages down": quantity(fields["bytes"]["message_down"], "bytes"),
        "messages up": quantity(fields["bytes"]["message_up"], "bytes"),
        "sizes trained": ", ".join(f"{share}: {count}" for share, count in fields["subnets"].items()),
        **({"other numbers": f"{len(every) - len(names)}, in result.json"} if len(every) > len(names) else {}),
        "not used": ", ".join(f"{event}: {count}" for event, count in fields["audit"].items()) or "nothing",
        "result": f"{fields['out']} ({duration(fields['seconds'])})",
    }
    return [*parts, pairs(facts)]


def credentials(fields: Fields) -> Sequence[RenderableType]:
    """Where certificates and keys are, and what to do with them."""
    table = sheet("client", "give it this folder")
    for name, folder in fields["clients"].items():
        table.add_row(name, folder)
    kept = {"keep for the server": fields["path"], "secret": "ca.key, server.key, and the key in each client's folder"}
    return [table, pairs(kept)]


def parts(fields: Fields) -> Sequence[RenderableType]:
    """The folder of each client, and what its device is expected to hold."""
    table = sheet("client", "give it this folder", "examples", "device", "budget")
    for one in fields["clients"][:_SHOWN_CLIENTS]:
        table.add_row(one["name"], one["path"], str(one["examples"]), one["kind"], one["budget"] or "–")
    hidden = len(fields["clients"]) - _SHOWN_CLIENTS
    if hidden > 0:
        table.add_row(f"… {hidden} more", *[""] * 4)
    return [table, pairs({"partition": fields["partition"]})]


def membership(fields: Fields) -> Sequence[RenderableType]:
    """How well losses tell what a model was trained on."""
    table = sheet("client", "told from others", title="Members by their loss: 50 % is guessing")
    for name, value in list(fields["clients"].items())[:_SHOWN_CLIENTS]:
        table.add_row(name, percent(value))
    facts = {
        "all clients": f"{percent(fields['auc'])} ± {percent(1.96 * fields['se'])} (95 %)",
        "examples": f"{fields['members']} that were learned from, {fields['others']} that were not",
        "mind": "a low figure is no proof: better attacks exist",
    }
    return [table, pairs(facts)]


def spread(scores: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Mean and worst decile over the clients of each number that they gave, as far as there is room."""
    found: dict[str, list[float]] = {}
    for one in scores.values():
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    shown = {}
    for name in columns(found):
        values = found[name]
        bad_is_low = name.rpartition("/")[2] in {"accuracy", "precision", "recall"}
        worst = worst_decile(values, low_is_bad=bad_is_low)
        write = percent if bad_is_low else "{:.4g}".format
        shown[name] = f"mean of clients {write(mean(values))}, worst decile {write(worst)} ({len(values)} clients)"
    return shown
