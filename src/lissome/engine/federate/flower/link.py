"""A Flower Grid as a link: one order pushed, one answer pulled at a time, so that memory does not grow with clients."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lissome.core import errors
from lissome.core.errors import FederationError
from lissome.engine.federate.flower.records import flower_app, from_records, kind_of, records_bytes, to_records
from lissome.engine.federate.guard import check_size
from lissome.engine.federate.link import Incoming, Outgoing
from lissome.engine.federate.parcel import Parcel

_PATIENCE = 2.0
_SENT = Parcel(kind="query", head={})  # stands for what was sent, which is not kept
_LOST = frozenset({3, 4, 5, 8})  # no such message, no reply, node gone, app died; 2 is an exception of the client's own
_RAISED = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>")
_POLL, _SLOWEST = 0.05, 1.0  # seconds between two looks at who has answered: at first, and at most


class FlowerLink:
    """Reaches clients through a Flower Grid.

    Args:
        grid: What Flower gives to a ServerApp.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._open: dict[str, Outgoing] = {}
        self._turn: Iterator[str] = iter(())
        self._failed: list[Incoming] = []

    @property
    def patience(self) -> float:
        """Seconds to wait before looking for nodes that were started anew."""
        return _PATIENCE

    def addresses(self) -> Sequence[str]:
        """Ids of all nodes that are connected."""
        return sorted(str(node) for node in self._grid.get_node_ids())

    def send(self, orders: Sequence[Outgoing]) -> None:
        """Push orders; what cannot be pushed is an answer that says so."""
        message = flower_app().Message
        for order in orders:
            made = message(
                content=to_records(order.parcel), dst_node_id=int(order.address), message_type=order.parcel.kind,
                group_id=str(order.parcel.head.get("round", 0)),
            )  # fmt: skip
            ids = [str(one) for one in self._grid.push_messages([made]) if one]
            if ids:
                self._open[ids[0]] = replace(order, parcel=_SENT)
            else:
                self._failed.append(Incoming(address=order.address, ticket=order.ticket, error="it was not delivered"))

    def receive(self, until: float) -> Incoming | None:
        """Pull the next answer; waits for it."""
        pause = _POLL
        while True:
            if self._failed:
                return self._failed.pop()
            found = self._look()
            if found is not None:
                return found
            left = until - time.monotonic()
            if left <= 0 or not self._open:
                return None
            time.sleep(min(pause, left))
            pause = min(_SLOWEST, pause * 1.5)

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, seconds))

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def _look(self) -> Incoming | None:
        """Ask once for each open order whether it was answered, those longest not asked for first."""
        for _ in range(len(self._open)):
            identity = next(self._turn, None)
            if identity is None:
                self._turn = iter(list(self._open))
                identity = next(self._turn)
            if identity not in self._open:
                continue
            for reply in self._grid.pull_messages([identity]):
                return _incoming(self._open.pop(identity), reply)
        return None


def _incoming(order: Outgoing, reply: Any) -> Incoming:
    address, ticket = order.address, order.ticket
    if reply.has_error():
        reason = str(reply.error.reason or "").strip().splitlines()[-1:]
        raised = _RAISED.search("".join(reason))
        text = f"Flower's error {reply.error.code}: {''.join(reason)}" if raised is None else _plain(*raised.groups())
        return Incoming(address=address, ticket=ticket, error=text, lost=reply.error.code in _LOST)
    try:
        check_size(records_bytes(reply.content), order.largest)
        parcel = from_records(reply.content, kind_of(reply))
    except FederationError as error:
        return Incoming(address=address, ticket=ticket, error=str(error), broken=True)
    return Incoming(address=address, ticket=ticket, parcel=parcel)


def _plain(kind: str, said: str) -> str:
    """What a client raised; an error of ours says all in its text."""
    return said if isinstance(getattr(errors, kind, None), type) else f"{kind}: {said}"
