"""Time of a training step with ranks drawn against one rank, in turns in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.shears.hooks import Clock
from lissome.engine.hooks import Hooks, Task
from lissome.engine.train import TrainConfig, train
from lissome.ops.stats import ratio_of_medians


@dataclass(frozen=True)
class Timed:
    """One arm that is timed: what it learns, and what draws its ranks."""

    task: Task
    hooks: Hooks | None


def timed(arms: Mapping[str, Timed], config: TrainConfig, *, rounds: int, skipped: int = 2) -> dict[str, Any]:
    """Time the steps of several arms on the same batches, on one thread.

    Args:
        arms: By name; the ratios are to the first.
        config: Of one turn.
        rounds: Turns of each arm.
        skipped: Steps at the start of a turn that are not counted.

    Returns:
        By arm: median seconds of a ``step``, and its ratio with a 95 % interval, of processor time, which other
        programs disturb least, and of the ``wall``.
    """
    before, clocks = torch.get_num_threads(), {name: Clock(one.hooks) for name, one in arms.items()}
    torch.set_num_threads(1)
    try:
        for number in range(rounds):
            for name, one in arms.items():
                train(one.task, config, seed=number, hooks=clocks[name])
    finally:
        torch.set_num_threads(before)
    kept = [index for index in range(rounds * config.steps) if index % config.steps >= skipped]
    times = {name: [clock.seconds[index] for index in kept] for name, clock in clocks.items()}
    first, rows = next(iter(times.values())), {}
    for name, mine in times.items():
        cpu, wall = (
            vars(ratio_of_medians([one[place] for one in mine], [one[place] for one in first])) for place in (0, 1)
        )
        rows[name] = {"step": median(one[0] for one in mine), **cpu, "wall": wall}
    return rows
