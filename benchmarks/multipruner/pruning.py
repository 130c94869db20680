"""Runs MultiPruner as a user's job would, and keeps what the claim needs of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.multipruner.measuring import Counted, Curve
from benchmarks.multipruner.texts import Texts, texts
from lissome.core.budget import Budget
from lissome.core.events import Event, EventStream
from lissome.core.method import Context
from lissome.methods.compress.multipruner import MultiPruner
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.pipeline import load


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a run of MultiPruner left.

    Attributes:
        model: The original in float32, its channels and heads reordered (its function unchanged).
        small: The cut model at the last point of the curve.
        space: The Space of the curve.
        curve: Every accepted step.
        facts: Accepted moves, calibration perplexity after each, candidates scored.
    """

    model: Model
    small: Model
    space: Space
    curve: Curve
    facts: dict[str, Any]

    def near(self, share: float) -> tuple[float, Subnet]:
        """The point of the curve nearest to a share."""
        return min(self.curve, key=lambda point: abs(point[0] - share))


def context(model: Model, data: Texts, folder: Path, *, share: float, seed: int) -> Context:
    """Return what a method is given for ``block_params<=share``."""
    cost = Counted(model)
    return Context(
        budget=Budget.parse(f"block_params<={100 * share:g}%"),
        original=cost.original,
        seed=seed,
        events=EventStream(_Ticker()),
        folder=folder,
        data=data,
        cost=cost,
    )


def prune(name: str, options: Mapping[str, Any], *, seed: int, share: float, folder: Path) -> Pruned:
    """Run MultiPruner on a model down to a share of its block parameters; continues from `folder`."""
    model = load(name)
    given = context(model, texts(model, seed), folder, share=share, seed=seed)
    outcome = MultiPruner(MultiPruner.Config(**{"recover_steps": 0, **options})).run(model, given)
    assert outcome.space is not None
    counted = Counted(model)
    curve = [(counted.share(point.subnet), Subnet(point.subnet)) for point in outcome.curve]
    facts = {
        "moves": [point.change for point in outcome.curve[1:]],
        "shares": [round(share, 5) for share, _ in curve],
        "calibration_ppl": [round(point.quality["ppl"], 3) for point in outcome.curve],
        "scored": outcome.details["scored"],
    }
    return Pruned(model, outcome.value, Space.from_json(outcome.space), curve, facts)


class _Ticker:
    """Prints at most one line of progress every half minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.kind == "advance" and time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            numbers = " ".join(f"{key}={value:.4g}" for key, value in event.metrics.items())
            print(f"          {event.stage} {event.step}/{event.total} {event.message} {numbers}", flush=True)
