"""Arms that are timed in turns, and what memory gave meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

from lissome.cost.clock import fixed_threads
from lissome.ops.kernels import native

Clock = Callable[[], float]


def in_turns(
    names: Sequence[str], turn: Callable[[str, Clock], None], *, rounds: int, threads: int, nbytes: int = 256 << 20
) -> list[float]:
    """Give every arm its turn in every round, in the other order every other round.

    Args:
        names: The arms.
        turn: Takes an arm and a clock; keeps what it measures itself, that of the first round too.
        rounds: Rounds after the first, which is to be thrown away.
        threads: Threads; with one the clock counts its processor time, with more the time that passes.
        nbytes: What is read to see what memory gives: as much as no cache holds, or what the arms read.

    Returns:
        Bytes per second that memory gave in each round after the first.
    """
    now = time.process_time if threads == 1 else time.perf_counter
    compiled = native.required()
    block, bandwidth = compiled.block(nbytes), []
    gc.collect()
    gc.disable()  # a collection would fall into somebody's turn
    try:
        with fixed_threads(threads):
            for number in range(rounds + 1):
                start = now()
                compiled.checksum(block, threads)
                bandwidth.append(block.nbytes / (now() - start))
                for name in list(names)[:: 1 if number % 2 else -1]:
                    turn(name, now)
    finally:
        gc.enable()
    return bandwidth[1:]
