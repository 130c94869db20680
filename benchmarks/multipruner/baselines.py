"""What MultiPruner must beat, at the same share of the block parameters and with the same calibration windows."""

# B windows, T tokens, D residual width

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.multipruner.measuring import TARGETS, Counted, at_targets, fast
from benchmarks.multipruner.texts import Texts
from lissome.cost.counted import Counter
from lissome.engine.calibrate import orders
from lissome.engine.greedy import moves
from lissome.engine.walk import Walk
from lissome.models.binding import reorder
from lissome.models.model import Model
from lissome.models.precision import fast_dtype
from lissome.models.space import Space, Subnet

Baseline = Callable[[Model, Texts, int], dict[str, Any]]
"""(model in float32, its text, seed) → as `measuring.at_targets`; the model may be changed."""


def shortgpt(model: Model, data: Texts, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Remove whole layers in the order of their Block Influence, 1 − cos(input, output) (arXiv 2403.03853)."""
    work = fast(model)
    space, counted = work.space(), Counted(work)
    influence = block_influence(Walk(work, data.calibration))
    values: dict[str, int] = dict(space.full)
    curve = [(1.0, space.full)]
    for block in sorted(range(len(influence)), key=influence.__getitem__):
        values |= {branch.name: 0 for branch in work.anatomy.of_block(block)}
        curve.append(_point(space, counted, values))
        if curve[-1][0] <= min(TARGETS):
            break
    return at_targets(work, space, curve, data.test, TARGETS)


def block_influence(walk: Walk) -> list[float]:
    """Mean over tokens of 1 − cos(input, output) of every block."""
    sums = [0.0] * walk.depth

    def watch(block: int, before: Tensor, after: Tensor) -> None:
        sums[block] += float((1 - F.cosine_similarity(before.float(), after.float(), dim=-1)).sum())

    walk.visit(watch)
    return [total / walk.windows.numel() for total in sums]


def uniform_magnitude(model: Model, data: Texts, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Cut the same number of MLP channels from every layer, those of the smallest weights."""
    return _uniform(model, data, "magnitude")


def uniform_activation(model: Model, data: Texts, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Cut the same number of MLP channels from every layer, by weight times activation (in the manner of Wanda)."""
    return _uniform(model, data, "activation")


def _uniform(model: Model, data: Texts, score: str) -> dict[str, Any]:
    work = fast(model)
    reorder(work, orders(work, ("width",), score=score, walk=Walk(work, data.calibration)))
    space, counted = work.space(width=16), Counted(work)
    widths = [axis for axis in space.axes if axis.name.endswith(".width")]
    curve = [
        _point(space, counted, {**space.full, **{axis.name: axis.choices[-1 - cut] for axis in widths}})
        for cut in range(min(len(axis.choices) for axis in widths))
    ]
    return at_targets(work, space, curve, data.test, TARGETS)


def random_structures(model: Model, data: Texts, seed: int) -> dict[str, Any]:
    """Remove attentions, MLPs and runs of MLP channels, each step drawn evenly from all that are possible."""
    work = fast(model)
    space, counted, rng = work.space(), Counted(work), Random(seed)
    curve = [(1.0, space.full)]
    while curve[-1][0] > min(TARGETS):
        options = moves(space, work.anatomy, curve[-1][1], ("attention", "mlp", "width"))
        move = rng.choice(options)
        curve.append(_point(space, counted, {**curve[-1][1], move.axis: move.value}))
    return at_targets(work, space, curve, data.test, TARGETS)


def _point(space: Space, counted: Counted, values: dict[str, int]) -> tuple[float, Subnet]:
    subnet = space.canonical(Subnet(values))
    return counted.share(subnet), subnet


def taylor(model: Model, data: Texts, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """First-order Taylor scores with torch-pruning, the same share of MLP channels from every layer (LLM-Pruner)."""
    return _taylor(model, data, everywhere=False)


def taylor_global(model: Model, data: Texts, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """The same scores, compared across layers."""
    return _taylor(model, data, everywhere=True)


def _taylor(model: Model, data: Texts, *, everywhere: bool) -> dict[str, Any]:
    gradients = calibration_gradients(model, data.calibration)
    whole = Counter(model).count().block_params
    mlp = sum(p.numel() for name, p in model.module.named_parameters() if _in_mlp(name))
    found = {}
    for target in TARGETS:
        small = taylor_cut(model, gradients, (1 - target) * whole / mlp, everywhere=everywhere)
        share = Counter(small).count().block_params / whole
        # One cut per target, made for it: it misses by a channel per layer at most, so nothing is interpolated.
        found[f"{target:g}"] = {"nll": Walk(fast(small), data.test).plain().tolist(), "between": [share, share]}
    return found


def calibration_gradients(model: Model, windows: Tensor) -> dict[str, Tensor]:
    """Gradient of the calibration loss for the MLP weights, by name, float32."""
    module = model.module
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_in_mlp(name))
    for window in windows:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() == torch.bfloat16):
            loss = module(input_ids=window[None], labels=window[None], use_cache=False).loss
        loss.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    module.requires_grad_(False)
    return found


def taylor_cut(model: Model, gradients: dict[str, Tensor], share: float, *, everywhere: bool) -> Model:
    """Cut a share of all MLP channels out of a copy with torch-pruning; what else there is stays whole."""
    import torch_pruning as tp

    module = copy.deepcopy(model.module).requires_grad_(True)
    for name, parameter in module.named_parameters():
        parameter.grad = gradients.get(name)
    if not everywhere:  # torch-pruning rounds the kept channels of a layer down; half a channel less rounds to nearest
        share -= 0.5 / model.anatomy.by_name["layers.0.mlp"].by_name["width"].size
    keep = [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and not _widens(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # norms are "unwrapped parameters": they are not to be cut
        pruner = tp.pruner.BasePruner(
            module,
            example_inputs={"input_ids": torch.arange(8)[None], "use_cache": False},
            output_transform=lambda output: output.logits,
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=everywhere,
            pruning_ratio=share,
            max_pruning_ratio=0.9,
            ignored_layers=keep,
            root_module_types=[nn.Linear],
        )
        pruner.step()
    module.zero_grad(set_to_none=True)
    return model.derived(module.requires_grad_(False))


def _in_mlp(name: str) -> bool:
    return ".mlp." in name and name.endswith(".weight")


def _widens(name: str) -> bool:
    return name.endswith((".gate_proj", ".up_proj"))


BASELINES: dict[str, Baseline] = {
    "shortgpt": shortgpt,
    "uniform-activation": uniform_activation,
    "uniform-magnitude": uniform_magnitude,
    "taylor": taylor,
    "taylor-global": taylor_global,
    "random": random_structures,
}
"""Baselines by name; those of `SEEDLESS` do not depend on calibration text."""

SEEDLESS = frozenset({"uniform-magnitude"})
