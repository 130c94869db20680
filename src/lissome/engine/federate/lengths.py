"""How long clients' updates are beside each other: one that is far longer is no training, and spoils every mean.

Answers are merged one by one, before those after them are there. So each is compared with what was sent, and with the
median of the last round; in the first one all are compared once they are in, and it is void when one was far longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch

from lissome.core.errors import FederationError, NumericsError
from lissome.engine.federate.merge import Piece, Tensors, update_norm

_FAR = 1e3  # times what was sent, or the median: honest updates differ at most as their numbers of steps do
_SUSPECT = 10.0  # times the median, where what was merged cannot be used
_FEWEST = 3  # lengths that have a median; of two, nobody can tell which one lies


class Lengths:
    """L2 norms of the updates of one phase, and the median of each action's last one.

    Attributes:
        action: Of the phase.
        found: By client, how long its update is; 0 where nobody looks.
    """

    def __init__(self) -> None:
        self.action = ""
        self.found: dict[str, float] = {}
        self._base: Tensors | None = None
        self._sent = 0.0
        self._usual: dict[str, float] = {}

    def begin(self, action: str, base: Tensors | None) -> None:
        """Begin a phase.

        Args:
            action: What clients do.
            base: The old values; None where the merge itself limits what one client moves, so that nobody looks.
        """
        self.action, self.found, self._base = action, {}, base
        self._sent = norm(base) if base is not None else 0.0

    def check(self, piece: Piece) -> None:
        """Measure an update.

        Raises:
            FederationError: When it is far longer than all that was sent, or than the updates of the last round.
        """
        length = update_norm(piece, self._base) if self._base is not None else 0.0
        if self._sent and length > _FAR * self._sent:
            raise FederationError(f"its update has norm {length:.3g}, all that was sent {self._sent:.3g}")
        usual = self._usual.get(self.action, 0.0)
        if self._is_far(length, usual):
            raise FederationError(f"its update has norm {length:.3g}, where {usual:.3g} is usual")
        self.found[piece.client] = max(length, self.found.get(piece.client, 0.0))

    def settle(self) -> None:
        """End a phase, and remember its median for the next one.

        Raises:
            NumericsError: When there was none yet, and an update is far longer than the median of this phase.
        """
        first, usual = self.action not in self._usual, self._median()
        if usual:
            self._usual[self.action] = usual
        longest = max(self.found.values(), default=0.0)
        if first and self._is_far(longest, usual):
            raise NumericsError(f"one update has norm {longest:.3g}, where {usual:.3g} is usual.")

    def suspects(self) -> dict[str, float]:
        """Return whose updates stand out, with how many times the median they are long; none without a median."""
        usual = self._median()
        apart = {name: length / usual for name, length in self.found.items()} if usual else {}
        return {name: times for name, times in sorted(apart.items()) if times > _SUSPECT}

    def state(self) -> dict[str, float]:
        """Return the medians by action, for a checkpoint."""
        return dict(self._usual)

    def restore(self, usual: Mapping[str, float]) -> None:
        """Take back what `state` gave."""
        self._usual = dict(usual)

    def _median(self) -> float:
        """Median of this phase; 0 without one."""
        return median(self.found.values()) if len(self.found) >= _FEWEST else 0.0

    def _is_far(self, length: float, usual: float) -> bool:
        """Whether an update is far longer than is usual; one no longer than all that was sent never is."""
        return usual > 0 and length > max(_FAR * usual, self._sent)


def norm(tensors: Tensors) -> float:
    """L2 norm of all numbers of tensors."""
    parts = [torch.linalg.vector_norm(value.double()) for value in tensors.values()]
    return float(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0
