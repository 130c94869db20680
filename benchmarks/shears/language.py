"""Arms on text: a causal language model, pruned and tuned for a few hundred short steps, and what it costs in bytes."""

# N windows, T tokens

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from benchmarks.shears.arms import adapted, base, turned
from benchmarks.shears.names import MIDDLE, RANKS, SHARE, TEXT_ARMS, served
from benchmarks.shears.speed import Timed, timed
from benchmarks.shears.texts import Windows
from lissome.engine.hooks import Task
from lissome.engine.recover import token_loss
from lissome.engine.supernet import Paths
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import rank_space
from lissome.models.adapters.folder import WEIGHTS as PAIRS
from lissome.models.artifact import ADAPTER, WEIGHTS, save_model
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.precision import fast_dtype, frozen_in
from lissome.models.space import Subnet

STEPS, WARMUP = 200, 10
"""Steps of one window of 128 tokens."""
ROUNDS, TURN = 5, 5
"""How often each arm has its turn when steps are timed, and steps of a turn."""


def settings(rate: float, **more: Any) -> TrainConfig:
    """What all arms are trained with."""
    return TrainConfig(lr=rate, **{"steps": STEPS, "batch": 1, "warmup": WARMUP, **more})


def task(model: Model, data: Windows) -> Task:
    """Next tokens of windows."""
    return Task(module=model.module, loss=token_loss(model), data=data.train)


def before(kind: str, share: float, seed: int, model: Model, data: Windows) -> dict[str, Any]:
    """Score a base before anything is trained: ``nll`` and ``right`` of every test window."""
    return scored(base(model, kind, share, seed, data), data.test)


def measured(name: str, share: float, rate: float, seed: int, model: Model, data: Windows) -> dict[str, Any]:
    """Train one arm.

    Returns:
        By cut (a rank, perhaps with how it was cut), under ``test``: what `scored` says; mean ``validation`` loss of
        the cuts that the arm is to serve; losses of the first and last tenth of the steps; seconds.
    """
    arm = TEXT_ARMS[name]
    work = adapted(base(model, arm.base, share, seed, data), arm, seed)
    space = rank_space(work)
    done = train(task(work, data), settings(rate), seed=seed, hooks=Paths(work, space) if arm.draws == "each" else None)
    part = max(1, len(done.losses) // 10)
    found: dict[str, Any] = {
        "loss": [sum(losses) / part for losses in (done.losses[:part], done.losses[-part:])],
        "seconds": done.seconds, "steps": done.steps, "test": {},
    }  # fmt: skip
    paths = {rank: Subnet({axis.name: rank for axis in space.axes}) for rank in RANKS}
    validation = list[float]()
    for rank in arm.ranks:
        with masked(work, paths[rank], space=space):
            found["test"][str(rank)] = scored(work, data.test)
            if str(rank) in served(arm):
                validation += scored(work, data.validation)["nll"]
    found["validation"] = _mean(validation)
    if name == "lora":
        turned(work)
        for rank in RANKS[1:]:
            with masked(work, paths[rank], space=space):
                found["test"][f"svd {rank}"] = scored(work, data.test)
    return found


def timing(model: Model, data: Windows) -> dict[str, Any]:
    """Time the steps of two arms on one sparse base; see `speed.timed`."""
    sparse, arms = base(model, "wanda", SHARE, 0, data), dict[str, Timed]()
    for name in ("lora", "nls"):
        work = adapted(sparse, TEXT_ARMS[name], 0)
        arms[name] = Timed(task(work, data), Paths(work, rank_space(work)) if name == "nls" else None)
    return timed(arms, settings(1e-5, steps=TURN, warmup=0), rounds=ROUNDS, skipped=1)


@torch.no_grad()
def scored(model: Model, windows: Tensor) -> dict[str, list[float]]:
    """Return the mean loss (nats) and the share of right likeliest next tokens of every window LongTensor[N, T].

    In the number type that this machine multiplies fastest, as it is trained.
    """
    found: dict[str, list[float]] = {"nll": [], "right": []}
    dtype = fast_dtype()
    with frozen_in(model.module, dtype), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for row in windows:
            logits = model.module(row[None], use_cache=False).logits[0, :-1].float()
            found["nll"].append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
            found["right"].append(float((logits.argmax(-1) == row[1:]).float().mean()))
    return found


def sizes(model: Model, data: Windows, folder: Path) -> dict[str, int]:
    """Write the sparse base with adapters of the middle rank, and the dense original; bytes of their weights' files."""
    arm, found = TEXT_ARMS["nls"], {}
    work = adapted(base(model, "wanda", SHARE, 0, data), arm, 0)
    space = rank_space(work)
    small = extract(work, Subnet({axis.name: MIDDLE for axis in space.axes}), space=space)
    for name, one in {"dense": model, "sparse": small}.items():
        save_model(one, folder / name)
        for path in (folder / name / WEIGHTS, folder / name / ADAPTER / PAIRS):
            if path.exists():
                found[name if path.name == WEIGHTS else "adapters"] = path.stat().st_size
        rmtree(folder / name)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
