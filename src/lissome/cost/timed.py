"""What can be timed beside torch models: a request in pieces, so that several are answered in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lissome.cost.measured import Request


class Timed(Protocol):
    """What is timed: a request in pieces."""

    def prefill(self) -> float:
        """Begin the request; seconds."""

    def step(self) -> float:
        """Go on by one token; seconds."""

    def close(self) -> None:
        """End it."""


class Writing(Protocol):
    """What writes tokens by other means than torch, and says itself how to time it."""

    def timed(self, request: Request) -> Timed:
        """Return one that answers such requests."""
