"""A clock around hooks of the training loop."""

from __future__ import annotations

import random
import time
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from lissome.engine.hooks import Hooks


class Clock(Hooks):
    """Notes how long every step took, from the draw to its end: seconds of the processor and of the wall.

    Args:
        inner: Other hooks, whose paths are drawn; None draws nothing.
    """

    def __init__(self, inner: Hooks | None = None) -> None:
        self._inner = inner or Hooks()
        self.seconds = list[tuple[float, float]]()
        self._begun = (0.0, 0.0)

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Start the clock, and draw."""
        self._begun = (time.process_time(), time.perf_counter())
        return self._inner.path(step, rng)

    def snapshot(self, step: int, module: nn.Module) -> None:
        """Stop the clock."""
        self._inner.snapshot(step, module)
        cpu, wall = self._begun
        self.seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
