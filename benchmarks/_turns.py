"""Arms that are timed in turns, and what memory gave meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lissome.cost.clock import fixed_threads
from lissome.cost.device import last_cache
from lissome.ops.kernels import native

Clock = Callable[[], float]

_PASSES, _READ = 48, 4 << 30  # as many as tokens are written in a turn; bytes of all passes where one takes long


def in_turns(
    arms: Mapping[str, int], turn: Callable[[str, Clock], None], *, rounds: int, threads: int, cold: bool = False
) -> dict[str, list[float]]:
    """Give every arm its turn in every round, in the other order every other round.

    Before each turn memory is read, and timed. A last cache may be of hundreds of megabytes, and what fits it comes
    at several times the speed, though only after it was read many times; so what is read is either as much as the arm
    reads, again and again as decoding does, or, for arms that are to find nothing in a cache, twice what the last one
    holds.

    Args:
        arms: What a pass of each reads, in bytes.
        turn: Takes an arm and a clock; keeps what it measures itself, that of the first round too.
        rounds: Rounds after the first, which is to be thrown away.
        threads: Threads; with one the clock counts its processor time, with more the time that passes.
        cold: Whether no cache may hold what an arm reads.

    Returns:
        By arm, the bytes per second that memory gave before its turn in each round after the first.
    """
    now = clock(threads)
    compiled = native.required()
    most = beyond_caches() if cold else max(arms.values())
    block, widths = compiled.block(most), {name: list[float]() for name in arms}
    gc.collect()
    gc.disable()  # a collection would fall into somebody's turn
    try:
        with fixed_threads(threads):
            for number in range(rounds + 1):
                for name in list(arms)[:: 1 if number % 2 else -1]:
                    part = block if cold else block[: arms[name]]
                    times = []
                    for _ in range(1 if cold else max(3, min(_PASSES, _READ // part.nbytes))):
                        start = now()
                        compiled.checksum(part, threads)
                        times.append(now() - start)
                    widths[name].append(part.nbytes / float(np.median(times)))
                    turn(name, now)
    finally:
        gc.enable()
    return {name: found[1:] for name, found in widths.items()}


def clock(threads: int) -> Clock:
    """Return the clock of so many threads: with one, the processor time of this process."""
    return time.process_time if threads == 1 else time.perf_counter


def beyond_caches() -> int:
    """Return of how many bytes a reading leaves nothing else in a cache."""
    return max(256 << 20, 2 * last_cache())


def reached(nbytes: float, seconds: Sequence[float], widths: Sequence[float]) -> dict[str, Any]:
    """Return which ``share`` of the ``width`` (bytes per second) of the same rounds reading so much reached."""
    width = np.asarray(widths)
    return {"share": float(np.median(nbytes / np.asarray(seconds) / width)), "width": float(np.median(width))}
