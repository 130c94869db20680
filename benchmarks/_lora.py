"""Plain adapters of one rank, which many arms are compared with."""

from __future__ import annotations

from typing import Any

from lissome.engine.objective import Objective
from lissome.engine.train import train
from lissome.methods.elastic.lonas import LoNAS
from lissome.models.adapters import merge_lora
from lissome.models.model import Model


def lora(
    model: Model,
    judge: Objective,
    *,
    rank: int,
    steps: int,
    lr: float,
    seed: int,
    batch: int | None = None,
    **more: Any,
) -> Model:
    """Train adapters of one rank, and the head for classes, on a model with frozen weights, in place; merge them.

    Args:
        model: A copy; it is changed.
        judge: What it learns.
        rank: Of the adapters.
        steps: Optimizer steps.
        lr: Peak learning rate.
        seed: Of the adapters and of the order of examples.
        batch: Examples of a step; None is the choice of `judge`.
        more: Where adapters go, their scale and dropout: settings of LoNAS.
    """
    LoNAS(LoNAS.Config(ranks=(rank,), **more)).adapt(model, seed=seed)
    train(judge.task(model), judge.training(steps=steps, lr=lr, batch=batch, max_seconds=None), seed=seed)
    merge_lora(model)
    return model
