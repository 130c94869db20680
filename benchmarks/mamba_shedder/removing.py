"""Who decides what goes: the method, and what it must beat at the same number of removals."""

# B windows, T bytes, D residual width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.mamba_shedder.names import COUNTS
from benchmarks.mamba_shedder.texts import DOCUMENTS, Texts, texts
from benchmarks.multipruner.measuring import Counted, at_targets
from lissome.core.budget import Budget
from lissome.core.events import EventStream
from lissome.core.method import Context, Method
from lissome.engine.calibrate import orders
from lissome.engine.walk import Walk
from lissome.methods.compress.mamba_shedder import MambaShedder
from lissome.models.binding import Masking, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

Chooser = Callable[[Model, Texts, str, int, Path], list[str]]
"""(model, text, target, seed, folder for work in progress) → axes in the order in which they are removed."""

_PLAIN: dict[str, Any] = {"recover_steps": 0, "cliff": None, "precision": "float32"}


def context(model: Model, data: Texts, folder: Path, *, budget: str = "", seed: int = 0) -> Context:
    """Return what a method is given."""
    cost = Counted(model)
    return Context(
        budget=Budget.parse(budget) if budget else Budget(), original=cost.original, seed=seed, events=EventStream(),
        folder=folder, data=data, cost=cost,
    )  # fmt: skip


def run(method: Method, model: Model, given: Context) -> tuple[Space, list[Subnet], list[str]]:
    """Run a method of removal; returns the Space, the Subnet of every point of its curve, and the changes."""
    outcome = method.run(model, given)
    assert outcome.space is not None
    subnets = [Subnet(point.subnet) for point in outcome.curve]
    return Space.from_json(outcome.space), subnets, [point.change for point in outcome.curve[1:]]


def candidates(model: Model, target: str) -> list[str]:
    """Axes of a target, in the order of the blocks."""
    mixers = [branch for branch in model.anatomy.branches if branch.kind == "mixer"]
    return [branch.name if target == "blocks" else branch.axis("ssm") for branch in mixers]


def greedy(model: Model, data: Texts, target: str, seed: int, folder: Path, **settings: Any) -> list[str]:
    """Remove as the method does: all scans, or all blocks but one; `settings` change it."""
    most = len(candidates(model, target)) - (target == "blocks")
    config = MambaShedder.Config.from_mapping({**_PLAIN, "targets": [target], "steps": most, **settings})
    _, _, changes = run(MambaShedder(config), model, context(model, data, folder, seed=seed))
    return [change.split()[0] for change in changes]


def otherwise(model: Model, how: str, target: str, folder: Path) -> list[str]:
    """Remove as the method does, as much as is compared, by what `OTHERWISE` names."""
    data = texts(0, "all" if how not in DOCUMENTS else how)
    every = {"quarter": 4, "half": 2}.get(how, 1)
    damage = "kl" if how == "divergence" else "auto"
    fewer = replace(data, calibration=data.calibration[::every])
    return greedy(model, fewer, target, 0, folder, steps=max(COUNTS), damage=damage)


def one_shot(model: Model, data: Texts, target: str, seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    """Rank once by the calibration loss after each removal alone."""
    space = model.space()
    losses = masked_losses(model, [space.full.replace({axis: 0}) for axis in candidates(model, target)], data)
    return _ranked(candidates(model, target), [float(loss.mean()) for loss in losses])


def influence(model: Model, data: Texts, target: str, seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    """Rank by 1 − cos(output of the block, its output without the part); for blocks ShortGPT's Block Influence."""
    space, walk = model.space(), Walk(model, data.calibration)
    masking, sums = Masking(model.binding, space), dict.fromkeys(candidates(model, target), 0.0)
    block_of = {axis: model.anatomy.by_name[space.by_name[axis].switch or axis].block for axis in sums}

    def watch(block: int, before: Tensor, after: Tensor) -> None:
        for axis in (axis for axis, index in block_of.items() if index == block):
            masking.switch(space.full.replace({axis: 0}))
            without = walk.block(block, before)
            masking.switch(space.full)
            sums[axis] += float((1 - F.cosine_similarity(after.float(), without.float(), dim=-1)).sum())

    walk.visit(watch)
    masking.restore()
    return _ranked(list(sums), list(sums.values()))


def first(model: Model, data: Texts, target: str, seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    """Remove from the input on."""
    return candidates(model, target)


def last(model: Model, data: Texts, target: str, seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    """Remove from the output on."""
    return candidates(model, target)[::-1]


def random(model: Model, data: Texts, target: str, seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    """Remove in an order that the seed draws."""
    axes = candidates(model, target)
    return Random(seed).sample(axes, len(axes))


def _ranked(axes: Sequence[str], scores: Sequence[float]) -> list[str]:
    return [axes[index] for index in sorted(range(len(axes)), key=scores.__getitem__)]


def masked_losses(model: Model, subnets: Sequence[Subnet], data: Texts, *, test: bool = False) -> list[Tensor]:
    """Loss of every window (calibration, or test) with each Subnet, nats per byte."""
    masking, walk = Masking(model.binding, model.space()), Walk(model, data.test if test else data.calibration)
    found = []
    try:
        for subnet in subnets:
            masking.switch(masking.space.canonical(subnet))
            found.append(walk.plain())
    finally:
        masking.restore()
    return found


def pairs(model: Model, data: Texts, target: str) -> dict[str, float]:
    """Mean test loss, nats per byte, without every two parts of a target: what no way to choose two can beat."""
    named = list(combinations(candidates(model, target), 2))
    losses = masked_losses(model, [without(model, axes) for axes in named], data, test=True)
    return {" ".join(axes): float(loss.mean()) for axes, loss in zip(named, losses, strict=True)}


def without(model: Model, axes: Sequence[str]) -> Subnet:
    """Return the Subnet that lacks these parts."""
    space = model.space()
    return space.canonical(space.full.replace(dict.fromkeys(axes, 0)))


def narrower(model: Model, data: Texts, counts: Sequence[int]) -> dict[str, list[float]]:
    """Cut channels (heads) of the smallest weights from all mixers alike, to what removing blocks leaves.

    Returns:
        By number of blocks: loss of every test window, nats per byte; read off the curve of cuts at exactly that share.
    """
    units = ("channels", "heads")
    reorder(model, orders(model, units, score="magnitude"))
    space, counted, blocks = model.space(channels=4, heads=1), Counted(model), len(model.anatomy.blocks)
    axes = [axis for axis in space.axes if axis.name.endswith(units)]
    curve = []
    for cut in range(min(len(axis.choices) for axis in axes)):
        subnet = space.full.replace({axis.name: axis.choices[-1 - cut] for axis in axes})
        curve.append((counted.share(subnet), subnet))
    found = at_targets(model, space, curve, data.test, [1 - count / blocks for count in counts])
    return {str(count): found[f"{1 - count / blocks:g}"]["nll"] for count in counts}


CHOOSERS: dict[str, Chooser] = {
    "greedy": greedy,
    "one-shot": one_shot,
    "influence": influence,
    "first": first,
    "last": last,
    "random": random,
}
"""Arms by name; see `benchmarks.mamba_shedder.names.ARMS`."""
