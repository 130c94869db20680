"""Hooks of the training loop around others: a head that learns faster, a clock."""

from __future__ import annotations

import random
import time
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from lissome.engine.hooks import Hooks

FASTER = 5.0
"""Learning rate of a head, which starts from noise, over that of the adapters."""


class Around(Hooks):
    """Does what other hooks do.

    Args:
        inner: The others; None does nothing.
    """

    def __init__(self, inner: Hooks | None = None) -> None:
        self._inner = inner or Hooks()

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Draw what the others draw."""
        return self._inner.path(step, rng)

    def rate(self, name: str, parameter: nn.Parameter) -> float:
        """Learn as fast as with the others."""
        return self._inner.rate(name, parameter)

    def snapshot(self, step: int, module: nn.Module) -> None:
        """Let the others look."""
        self._inner.snapshot(step, module)


class FasterHead(Around):
    """Lets a classifier's head learn faster."""

    def rate(self, name: str, parameter: nn.Parameter) -> float:
        """Learn `FASTER` times as fast in the head."""
        return FASTER if name.startswith("head.") else super().rate(name, parameter)


class Clock(Around):
    """Notes how long every step took, from the draw to its end: seconds of the processor and of the wall."""

    def __init__(self, inner: Hooks | None = None) -> None:
        super().__init__(inner)
        self.seconds = list[tuple[float, float]]()
        self._begun = (0.0, 0.0)

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Start the clock, and draw."""
        self._begun = (time.process_time(), time.perf_counter())
        return super().path(step, rng)

    def snapshot(self, step: int, module: nn.Module) -> None:
        """Stop the clock."""
        super().snapshot(step, module)
        cpu, wall = self._begun
        self.seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
