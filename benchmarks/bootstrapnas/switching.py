"""What it costs to switch a network to a Subnet and back, beside a step of training."""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from random import Random
from typing import Any

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Scale
from benchmarks._frame import Store
from benchmarks.bootstrapnas.nets import subject
from lissome import pipeline
from lissome.engine.elastic import Elastic
from lissome.engine.objective import Objective, objective_of
from lissome.engine.paths import RandomPath, depth_groups
from lissome.engine.spaces import Widths, elastic_space
from lissome.engine.train import train
from lissome.models.model import Model
from lissome.pipeline.job import data_for

SWITCHED: dict[str, Any] = {"zoo-resnet": 128, "minilm": None, "smollm2-135m": None}
"""Examples of a training step; None is the choice of `lissome supernet`: 16 texts, and 4 windows of 256 tokens."""
SWITCHES, STEPS = 100, {"zoo-resnet": 10, "minilm": 10, "smollm2-135m": 3}
"""Subnets that are switched to, and steps that are timed."""


def switching(net: str, scale: Scale, store: Store) -> dict[str, Any]:
    """Seconds of processor time of a switch there and back (median), and of a step along a random path (mean).

    Switching draws a Subnet of widths and depths, puts views of its slices in the place of the parameters, and restores
    them. The first switch to a size also computes which indices stay; of many switches the median has known them.
    """
    model, judge = _ready(net, scale, store)
    space = elastic_space(
        model, Widths(shares=(1.0, 0.8, 0.6, 0.5), least=8, multiple=4), kinds=("depth", "width"),
        chains=depth_groups(model.anatomy),
    )  # fmt: skip
    hooks, rng, spent = Elastic(model, RandomPath(space)), Random(0), []
    for step in range(SWITCHES):
        start = time.process_time()
        for path in hooks.passes(step, rng):
            with path:
                pass
        spent.append(time.process_time() - start)
    run = partial(_trained, model, judge, space, SWITCHED[net])
    first, all_of_them = run(1), run(1 + STEPS[net])
    return {
        "switch": statistics.median(spent), "step": (all_of_them - first) / STEPS[net], "axes": len(space.axes),
        "branches": len(model.anatomy.branches),
    }  # fmt: skip


def _ready(net: str, scale: Scale, store: Store) -> tuple[Model, Objective]:
    """A copy of a network, and what it learns."""
    if net == "smollm2-135m":
        model, splits = data_for(pipeline.load(net), _tasks.addresses(), seed=0, searched=True)
        return model, objective_of(splits)
    it = subject(net, scale, store)
    given = _elastic.original(it)
    return given.derived(copy.deepcopy(given.module).requires_grad_(True)), _elastic.objective(it)


def _trained(model: Model, judge: Objective, space: Any, batch: int | None, steps: int) -> float:
    """Seconds of processor time of so many steps, with what comes before the first."""
    start = time.process_time()
    made = judge.training(steps=steps, lr=1e-5, batch=batch, max_seconds=None)
    train(judge.task(model), made, seed=0, hooks=Elastic(model, RandomPath(space)))
    return time.process_time() - start
