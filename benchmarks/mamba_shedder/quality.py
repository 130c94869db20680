"""What the mean loss hides, and what training does: far context, exactness, recovery, a model of fewer blocks."""

# n windows, T bytes

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.mamba_shedder.names import CONTEXTS
from benchmarks.mamba_shedder.removing import context, without
from benchmarks.mamba_shedder.texts import Texts
from lissome.engine.recover import RecoverConfig, recover
from lissome.engine.walk import Walk
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.zoo import zoo
from lissome.testing.conformance import difference, logits, stepwise
from tools import train_zoo

SCORED = 16
"""Bytes at the end of a window that the probe scores."""
RECOVERY = RecoverConfig(steps=220, batch=8, small=1 << 20)
"""Two to three minutes of one core; a number of steps, so that rates are compared alike on a busy machine."""


@torch.no_grad()
def by_context(model: Model, test: Tensor) -> dict[str, list[float]]:
    """Loss of the last 16 bytes of every window when only so many bytes before them are seen, nats per byte."""
    end = test.shape[1]
    found = {}
    for size in CONTEXTS:
        seen = test[:, end - SCORED - size :]
        losses = [_tail_loss(model, rows) for rows in seen.split(max(1, 4096 // seen.shape[1]))]
        found[str(size)] = torch.cat(losses).tolist()
    return found


def _tail_loss(model: Model, ids: Tensor) -> Tensor:
    scores = model.module(ids, use_cache=False).logits[:, -SCORED - 1 : -1].log_softmax(-1)
    return -scores.gather(2, ids[:, -SCORED:, None]).double().mean((1, 2))


def far_context(model: Model, variants: Mapping[str, Sequence[str]], test: Tensor) -> dict[str, Any]:
    """Run the probe on the original and on masked variants, by name."""
    found = {"original": by_context(model, test)}
    space = model.space()
    for name, axes in variants.items():
        with masked(model, without(model, axes), space=space):
            found[name] = by_context(model, test)
    return found


def exactness(model: Model, variants: Mapping[str, Sequence[str]], test: Tensor) -> dict[str, float]:
    """Largest relative difference of logits: masked against cut, and a prompt at once against byte by byte."""
    space, ids, worst = model.space(), test[:2, :96], {"masked = cut": 0.0, "prefill = decode": 0.0}
    for axes in variants.values():
        subnet = without(model, axes)
        small = extract(model, subnet, space=space)
        whole = logits(small.module, ids)
        with masked(model, subnet, space=space):
            worst["masked = cut"] = max(worst["masked = cut"], difference(logits(model.module, ids), whole))
        with torch.no_grad():
            pieces = stepwise(small.module, {"input_ids": ids}, prompt=40)
        worst["prefill = decode"] = max(worst["prefill = decode"], difference(pieces, whole))
    return worst


def recovered(model: Model, axes: Sequence[str], data: Texts, rate: float, folder: Path) -> dict[str, Any]:
    """Cut, and train for two to three minutes at a learning rate.

    Returns:
        Losses of every test window ``before`` and ``after``, nats per byte, the mean loss of the selection text
        after it as ``choice``, ``seconds`` of processor time and ``settings``.
    """
    config = replace(RECOVERY, lr=rate)
    small = extract(model, without(model, axes), space=model.space())
    before, start = Walk(small, data.test).plain(), time.process_time()
    recover(small, data.recovery, config=config, context=context(model, data, folder))
    spent = time.process_time() - start
    after, choice = (Walk(small, windows).plain() for windows in (data.test, data.selection))
    return {
        "before": before.tolist(), "after": after.tolist(), "choice": float(choice.mean()), "seconds": spent,
        "settings": config.to_mapping(),
    }  # fmt: skip


def trained_shorter(name: str, layers: int, test: Tensor, folder: Path) -> dict[str, Any]:
    """Train a model of fewer blocks on as many bytes as the original saw: the honest alternative to removing blocks."""
    training = zoo()[name].training
    model, seconds = train_zoo.trained(
        train_zoo.RECIPES[name], int(training["steps"]), float(training["rate"]), folder, layers
    )
    return {"nll": Walk(model, test).plain().tolist(), "layers": layers, "seconds": seconds}


def bits(losses: Sequence[float]) -> float:
    """Mean loss in bits per byte."""
    return float(torch.tensor(losses, dtype=torch.float64).mean()) / math.log(2)
