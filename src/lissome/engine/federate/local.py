"""Clients in this process, one after the other, on a virtual clock: what tests and simulations run on.

The clock says when an answer would have arrived, so that deadlines, stragglers and drop-out are simulated in no time
and the same way every time. Nothing of Flower is needed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from lissome.core.errors import ConfigError, LissomeError
from lissome.core.seeds import derive
from lissome.engine.federate.link import Incoming, Outgoing
from lissome.engine.federate.parcel import PROFILE, Parcel


class Handler(Protocol):
    """Anything that answers orders; see `lissome.engine.federate.client.Worker`."""

    def handle(self, parcel: Parcel) -> Parcel:
        """Answer one order; may raise."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """How a simulated device behaves.

    Attributes:
        seconds: For one order, transfers apart.
        spread: Standard deviation of the logarithm of that; 0 is always the same.
        bandwidth: Bytes per second, either way; infinite by default.
        dropout: Probability that an order is never answered.

    Raises:
        ConfigError: When a number is out of range.
    """

    seconds: float = 1.0
    spread: float = 0.0
    bandwidth: float = math.inf
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.spread < 0 or not self.bandwidth > 0 or not 0 <= self.dropout <= 1:
            raise ConfigError(
                f"a device needs seconds and spread of at least 0, a bandwidth above 0 and a dropout in [0, 1]: {self}."
            )


@dataclass(order=True)
class _Event:
    arrival: float
    number: int
    order: Outgoing = field(compare=False)


class LocalLink:
    """Clients in this process.

    Args:
        clients: What makes the client of each name; called for every order, so that a client takes memory only while
            it works.
        devices: How the device of each name behaves; others answer after a second.
        seed: Of drop-out and of the spread of times.
    """

    def __init__(
        self,
        clients: Mapping[str, Callable[[], Handler]],
        devices: Mapping[str, Device] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._clients, self._devices, self._seed = dict(clients), dict(devices or {}), seed
        self._clock, self._count = 0.0, 0
        self._events: list[_Event] = []
        self._busy: dict[str, float] = {}

    @property
    def patience(self) -> float:
        """Endless: nobody comes back at another address."""
        return math.inf

    def addresses(self) -> Sequence[str]:
        """Names of all clients."""
        return tuple(self._clients)

    def send(self, orders: Sequence[Outgoing]) -> None:
        """Find out when each order will be answered; one client works on one order at a time."""
        for order in orders:
            device = self._devices.get(order.address, Device())
            rng = Random(derive(self._seed, "device", order.address, order.ticket))
            asks_profile = order.parcel.head.get("action") == PROFILE  # saying who one is takes no work
            if rng.random() < device.dropout and not asks_profile:
                continue
            work = 0.0 if asks_profile else device.seconds * math.exp(device.spread * rng.gauss(0.0, 1.0))
            start = max(self._clock, self._busy.get(order.address, 0.0))
            # Twice: what comes back is about as large, and is not known yet.
            arrival = start + work + 2 * order.parcel.bytes / device.bandwidth
            self._busy[order.address] = arrival
            self._count += 1
            heapq.heappush(self._events, _Event(arrival, self._count, order))

    def receive(self, until: float) -> Incoming | None:
        """Move the clock to the next answer, or to `until`; the client works now."""
        if not self._events or self._events[0].arrival > until:
            self._clock = max(self._clock, until) if math.isfinite(until) else self._clock
            return None
        event = heapq.heappop(self._events)
        self._clock = max(self._clock, event.arrival)
        address, ticket = event.order.address, event.order.ticket
        try:
            return Incoming(address=address, ticket=ticket, parcel=self._clients[address]().handle(event.order.parcel))
        except LissomeError as error:
            return Incoming(address=address, ticket=ticket, error=str(error))
        except Exception as error:  # noqa: BLE001 (a client may raise anything, the server goes on)
            return Incoming(address=address, ticket=ticket, error=f"{type(error).__name__}: {error}")

    def pause(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._clock += max(0.0, seconds)

    def now(self) -> float:
        """Seconds on the virtual clock."""
        return self._clock
