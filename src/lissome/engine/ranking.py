"""Which units matter: any score of single weights, added up by unit over all tensors that make (or read) it.

Works for every network, block by block or not: weights and gradients are all it looks at, and inputs of layers for the
score that weighs by them. Scores are plug-ins of `lissome.ops.importance`; the orders are for
`lissome.models.binding.reorder`, which leaves the function of the whole model as it was.
"""

# B examples, O outputs, I inputs of a layer

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lissome.core.errors import UnknownNameError, unknown_name
from lissome.engine.hooks import Batch, Task
from lissome.models.model import Model
from lissome.models.parts import is_conv1d, is_linear
from lissome.ops import importance

SCORES = (*importance.SCORES, "random")
"""Names of the scores of single weights."""

GRADIENTS = frozenset({"first_order", "movement"})
"""Those that need a task."""

Sides = Literal["makes", "reads", "both"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def saliency(
    model: Model,
    score: str,
    *,
    batches: Iterable[Mapping[str, Tensor]] = (),
    task: Task | None = None,
    examples: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score every weight of a model.

    Args:
        model: The model, unmasked; unchanged afterwards.
        score: One of `SCORES`.
        batches: Inputs, for ``"wanda"``.
        task: What is learnt, for `GRADIENTS`.
        examples: Examples whose gradients these look at, one by one.
        seed: Of ``"random"``.

    Returns:
        Tensor of the weight's shape by name; higher is more important.

    Raises:
        UnknownNameError: When there is no such score.
    """
    if score not in SCORES:
        raise UnknownNameError(unknown_name("score", score, SCORES))
    weights = {name: value for name, value in model.module.named_parameters() if value.dim() > 1}
    if score == "wanda":
        norms = _input_norms(model.module, batches)
        columns = {f"{name}.weight" for name, layer in model.module.named_modules() if is_conv1d(layer)}
        return {name: _wanda(value, norms.get(name), turned=name in columns) for name, value in weights.items()}
    if score in GRADIENTS:
        assert task is not None
        return _by_gradients(weights, task, examples, importance.SCORES[score])
    if score == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(value.shape, generator=generator) for name, value in weights.items()}
    return {name: importance.SCORES[score](value) for name, value in weights.items()}


def ranking(
    model: Model, saliencies: Mapping[str, Tensor], *, sides: Sides = "makes", axes: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Rank the units of every dim that may be reordered, the most important first.

    Args:
        model: The model, unmasked.
        saliencies: Of its weights, by name.
        sides: Which tensors count: those that make a unit, those that read it, or both.
        axes: Names of the axes (default: all).

    Returns:
        By axis name: LongTensor[lanes, units], new position → old unit.
    """
    totals = unit_scores(model, saliencies, sides=sides, axes=axes)
    return {axis: value.argsort(dim=-1, descending=True, stable=True) for axis, value in totals.items()}


def unit_scores(
    model: Model,
    saliencies: Mapping[str, Tensor],
    *,
    sides: Sides = "makes",
    axes: Iterable[str] | None = None,
    reduce: Callable[[Sequence[tuple[Tensor, int, Tensor]]], Tensor] = importance.total,
) -> dict[str, Tensor]:
    """Add saliencies up by unit: Tensor[lanes, units] by axis name; arguments as in `ranking`.

    `reduce` makes one number of each unit; see `lissome.ops.importance.total` and `strongest`.

    A unit that nothing of the wanted side makes or reads (a table of embeddings makes it, say) is scored by the other.
    """
    wanted = None if axes is None else frozenset(axes)
    tensors: dict[str, dict[bool, list[tuple[Tensor, int, Tensor]]]] = {}
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            name = branch.axis(dim.name)
            if dim.ordered or dim.beside or dim.size < 2 or (wanted is not None and name not in wanted):
                continue
            found = tensors.setdefault(name, {False: [], True: []})
            for cut in dim.cuts:
                if cut.parameter in saliencies:
                    found[cut.reads].append((saliencies[cut.parameter], cut.dim, cut.units))
    chosen = {name: _of_sides(found, sides) for name, found in tensors.items()}
    return {name: reduce(entries) for name, entries in chosen.items() if entries}


def _of_sides(
    found: Mapping[bool, Sequence[tuple[Tensor, int, Tensor]]], sides: Sides
) -> list[tuple[Tensor, int, Tensor]]:
    if sides == "both":
        return [*found[False], *found[True]]
    reads = sides == "reads"
    return list(found[reads] or found[not reads])


def _wanda(weight: Tensor, norms: Tensor | None, *, turned: bool) -> Tensor:
    """Score a weight [out, in, …], or one that is turned, [in, out]."""
    return importance.wanda(weight.T, norms).T if turned else importance.wanda(weight, norms)


@torch.no_grad()
def _input_norms(module: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Norm of every input of each linear layer and convolution over all batches: [I], by name of the weight."""
    sums: dict[str, Tensor] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, _CONVOLUTIONS) or is_linear(layer):
            handles.append(layer.register_forward_pre_hook(_adding(sums, f"{name}.weight"), with_kwargs=True))
    try:
        device = next(module.parameters()).device
        for batch in batches:
            module(**{key: value.to(device) for key, value in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}


def _adding(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (args[0] if args else named["input"]).detach().double().square()
        found = given.flatten(0, -2).sum(0) if is_linear(layer) else given.flatten(2).sum((0, 2))
        sums[name] = sums[name] + found if name in sums else found

    return hook


def _by_gradients(
    weights: Mapping[str, nn.Parameter], task: Task, examples: int, score: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Sum a score over single examples: gradients of many examples would cancel at a minimum."""
    from torch.utils.data import default_collate

    totals = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}
    before = {name: value.requires_grad for name, value in weights.items()}
    count = min(examples, len(task.data))
    places = [index * len(task.data) // count for index in range(count)]
    for value in weights.values():
        value.requires_grad_(True)
    try:
        for place in places:
            task.module.zero_grad(set_to_none=True)
            batch = Batch(default_collate([task.data[place]]), torch.tensor([place]), None, 0)
            task.loss(task.module, batch).sum().backward()
            for name, value in weights.items():
                if value.grad is not None:
                    totals[name] += score(value, value.grad)
    finally:
        task.module.zero_grad(set_to_none=True)
        for name, value in weights.items():
            value.requires_grad_(before[name])
    return totals
