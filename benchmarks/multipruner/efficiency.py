"""Time of the search against the naive loop, and what recovery gives back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.multipruner.measuring import fast
from benchmarks.multipruner.pruning import Pruned, context
from benchmarks.multipruner.texts import Texts
from lissome.engine.greedy import CAREFUL, Greedy, lowest_loss
from lissome.engine.recover import RecoverConfig, recover
from lissome.engine.walk import Walk
from lissome.models.binding import Masking
from lissome.pipeline import load

SEARCH: dict[str, Any] = {"kinds": ["attention", "mlp"], "windows": 2, "steps": 6}
"""Whole blocks, as the published loop removes them; few windows and steps, because the naive loop is slow."""

VARIANTS = {
    "naive": {"lazy": None, "cached": False},
    "cached": {"lazy": None, "cached": True},
    "lazy": {"lazy": CAREFUL, "cached": True},
}
RECOVERY_SECONDS = 600.0
RECOVERY = RecoverConfig(steps=400, max_seconds=0.75 * RECOVERY_SECONDS, lr=1e-3)
"""`steps` is what a fast machine does in ten minutes; `max_seconds` shortens it before the first one, with room for
what else the machine may do meanwhile."""


class _ClockedWalk(Walk):
    """A walk that notes the time spent inside blocks, apart from embeddings and head."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.inside = _Clock()

    def block(self, index: int, hidden: Tensor) -> Tensor:
        cpu, wall = time.process_time(), time.perf_counter()
        after = super().block(index, hidden)
        self.inside.add(time.process_time() - cpu, time.perf_counter() - wall)
        return after


@dataclass
class _Clock:
    """Seconds of the processor (all threads) and of the wall clock."""

    cpu: float = 0.0
    wall: float = 0.0

    def add(self, cpu: float, wall: float) -> None:
        self.cpu += cpu
        self.wall += wall


@dataclass
class _Search:
    """One variant of the search on a model of its own."""

    walk: _ClockedWalk
    masking: Masking
    options: dict[str, Any]
    whole: _Clock = field(default_factory=_Clock)
    greedy: Greedy | None = None

    def advance(self, steps: int) -> None:
        """Go on until so many steps are accepted."""
        cpu, wall = time.process_time(), time.perf_counter()
        if self.greedy is None:
            lazy, cached = self.options["lazy"], self.options["cached"]
            self.greedy = Greedy(self.masking, self.walk, lazy=lazy, cached=cached)
        trace = self.greedy.trace
        self.greedy.run(
            SEARCH["kinds"],
            rank=lowest_loss,
            enough=lambda _: len(trace.steps) >= steps,
            goal=lambda _: len(trace.steps) / steps,
        )
        self.whole.add(time.process_time() - cpu, time.perf_counter() - wall)


def compare_searches(name: str, data: Texts) -> dict[str, Any]:
    """Run the three variants step by step in turns, so that what disturbs the machine disturbs all of them.

    Returns:
        By variant: seconds of the processor and of the wall, whole and inside blocks; moves; loss on calibration and
        on test text (nats).
    """
    steps, windows = SEARCH["steps"], data.calibration[: SEARCH["windows"]]
    runs = {}
    for kind, options in VARIANTS.items():
        work = fast(load(name))
        Walk(work, windows).plain()  # the first forward is slower, whichever variant it would fall to
        runs[kind] = _Search(_ClockedWalk(work, windows), Masking(work.binding, work.space()), options)
    for step in range(1, steps + 1):
        for search in runs.values():
            search.advance(step)
    return {"steps": steps, "runs": {kind: _facts(search, data.test) for kind, search in runs.items()}}


def _facts(search: _Search, test: Tensor) -> dict[str, Any]:
    assert search.greedy is not None
    trace = search.greedy.trace
    return {
        "cpu": search.whole.cpu,
        "wall": search.whole.wall,
        "block_cpu": search.walk.inside.cpu,
        "block_wall": search.walk.inside.wall,
        "moves": [str(step.move) for step in trace.steps],
        "scored": [step.scored for step in trace.steps],
        "loss": trace.loss,
        "test_loss": float(Walk(search.walk.model, test).plain().mean()),
    }


def recovered(pruned: Pruned, data: Texts, folder: Path) -> dict[str, Any]:
    """Recover the last point of a curve for ten minutes.

    Returns:
        ``before`` and ``after``: loss of every test window (nats); the share kept, and steps and seconds of training.
    """
    given = context(pruned.model, data, folder, share=pruned.curve[-1][0], seed=0)
    seen: dict[str, float] = {}
    given.events.listen(lambda event: seen.update(steps=event.step) if event.stage == "train" else None)
    small = pruned.small
    before = Walk(fast(small), data.test).plain()
    start = time.monotonic()
    with torch.enable_grad():
        recover(small, data.recovery, config=RECOVERY, context=replace(given, folder=folder))
    spent = time.monotonic() - start
    after = Walk(fast(small), data.test).plain()
    return {
        "before": before.tolist(),
        "after": after.tolist(),
        "share": pruned.curve[-1][0],
        "steps": int(seen.get("steps", 0)),
        "seconds": spent,
        "limit_seconds": RECOVERY_SECONDS,
        "settings": RECOVERY.to_mapping(),
    }
