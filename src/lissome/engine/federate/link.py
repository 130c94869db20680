"""How the server reaches clients; each back end is one of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lissome.engine.federate.parcel import Parcel


@dataclass(frozen=True, kw_only=True, eq=False)
class Outgoing:
    """An order on its way.

    Attributes:
        address: Where the client is reached; of this link alone, not the client's name.
        ticket: What an answer to it will be recognised by.
        parcel: What is sent.
        largest: Bytes that its answer may have; what is larger need not be decoded.
    """

    address: str
    ticket: str
    parcel: Parcel
    largest: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Incoming:
    """An answer, or the news that there is none.

    Attributes:
        address: Where it came from.
        ticket: Of the order that it answers; may be anything when the client does not keep to the rules.
        parcel: What came; None when the client failed.
        error: Why there is no parcel.
        lost: Whether the order or its answer was lost on the way, or the client died; it may be sent again.
        broken: Whether something came that cannot be read, or is too large, which is against the rules.
    """

    address: str
    ticket: str
    parcel: Parcel | None = None
    error: str = ""
    lost: bool = False
    broken: bool = False


class Link(Protocol):
    """A way to all clients. Nothing that a client does may raise here; it becomes an `Incoming` with an error."""

    @property
    def patience(self) -> float:
        """Seconds to wait for an answer before looking whether somebody came back at another address."""

    def addresses(self) -> Sequence[str]:
        """Who can be reached now."""

    def send(self, orders: Sequence[Outgoing]) -> None:
        """Send orders; does not wait for answers."""

    def receive(self, until: float) -> Incoming | None:
        """Return the next answer, to whatever order; None when none came by `until`, or none can come any more."""

    def pause(self, seconds: float) -> None:
        """Let time pass."""

    def now(self) -> float:
        """Seconds on the clock of this link, which may be a virtual one."""
