"""Marks in time on the device that does the work: the host's clock for a CPU, events for a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lissome.core.errors import ConfigError

Mark = Any
"""What `Clock.mark` returns: nanoseconds of the host, or an event of the GPU."""


class Clock:
    """Times work on one device.

    On a GPU a mark is an event in the stream, so that marking inside a forward costs no synchronisation.

    Args:
        device: Where the work runs: a CPU or a CUDA GPU.
        busy: On a CPU, count only the time in which the calling thread computes. On a busy machine that is the time
            that the work would take on an idle one: what other programs' time slices add falls out.

    Raises:
        ConfigError: When the device is another one.
    """

    def __init__(self, device: torch.device, *, busy: bool = False) -> None:
        if device.type not in {"cpu", "cuda"}:
            raise ConfigError(f"timing on {device.type!r} is not supported; move the model to cpu or cuda.")
        self._gpu = device.type == "cuda"
        self._device = device
        self._now = time.thread_time_ns if busy else time.perf_counter_ns

    @classmethod
    def of(cls, module: nn.Module, *, busy: bool = False) -> Clock:
        """Return the clock of the device that holds a module's parameters."""
        return cls(next(module.parameters()).device, busy=busy)

    def mark(self) -> Mark:
        """Mark the present moment."""
        if not self._gpu:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Wait until all work given to the device is done; nothing to do on a CPU."""
        if self._gpu:
            torch.cuda.synchronize(self._device)

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two marks; call `settle` before the first use of it."""
        if self._gpu:
            return float(start.elapsed_time(end)) / 1e3
        return float(end - start) / 1e9


@contextlib.contextmanager
def fixed_threads(threads: int | None) -> Iterator[int]:
    """Compute with a fixed number of threads inside the ``with`` block; yields that number.

    Args:
        threads: How many; None keeps the present number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
