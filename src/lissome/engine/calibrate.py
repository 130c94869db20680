"""Statistics from calibration text, gathered while streaming block by block; activations are never stored."""

# T tokens, D residual width, F inputs of a linear layer

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.engine.walk import Walk
from lissome.models.anatomy import Branch, Dim
from lissome.models.model import Model
from lissome.ops import importance

SCORES = ("magnitude", "activation")


@contextlib.contextmanager
def watch_inputs(module: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Sum the squared inputs of linear layers while the block is open.

    Args:
        module: The model.
        layers: Dotted names of linear layers.

    Yields:
        By layer name: sum over tokens of the squared input, Tensor[F] in float64.
    """
    # All sums have their place before the first forward: what is kept between large temporaries would split the heap.
    sums = {name: _zeros(module.get_submodule(name)) for name in layers}

    def add(name: str, given: Tensor) -> None:
        sums[name] += given.flatten(0, -2).double().square().sum(0)

    with hear_inputs(module, sums, add):
        yield sums


@contextlib.contextmanager
def hear_inputs(module: nn.Module, layers: Iterable[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `note` with the name and the first input of each of the layers at every forward while the block is open."""
    handles = []
    for name in layers:

        def hook(_layer: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            note(name, args[0].detach())

        handles.append(module.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zeros(layer: nn.Module) -> Tensor:
    """Room for one sum per input of a Linear, or of transformers' Conv1D."""
    features = layer.in_features if isinstance(layer, nn.Linear) else layer.nx
    return torch.zeros(cast(int, features), dtype=torch.float64, device=next(layer.parameters()).device)


def orders(
    model: Model,
    kinds: Iterable[str],
    *,
    score: str = "activation",
    walk: Walk | None = None,
    events: EventStream | None = None,
) -> dict[str, Tensor]:
    """Rank the units of every dim of the given kinds, most important first.

    Args:
        model: The model, unmasked.
        kinds: Dim names, e.g. ``("width", "groups")``.
        score: ``"magnitude"`` (weights alone) or ``"activation"`` (needs `walk`).
        walk: Calibration windows for the activation score.
        events: Where progress goes: a stage ``order units`` counted in windows.

    Returns:
        By axis name: LongTensor[lanes, units], new position → old unit; for `lissome.models.binding.reorder`.

    Raises:
        ConfigError: When the score is unknown, or needs calibration text that was not given.
    """
    if score not in SCORES:
        raise ConfigError(f"unknown score {score!r}; known: {', '.join(SCORES)}.")
    if score == "activation" and walk is None:
        raise ConfigError("the activation score needs calibration windows; give some, or choose score=magnitude.")
    wanted = frozenset(kinds)
    dims = [
        (branch, dim)
        for branch in model.anatomy.branches
        for dim in branch.dims
        if dim.name in wanted and dim.size > 1 and not dim.ordered
    ]
    if score == "magnitude":
        scores = {
            branch.axis(dim.name): importance.magnitude(_tensors(model, dim, producing=True)) for branch, dim in dims
        }
    else:
        assert walk is not None
        norms = _input_norms(walk, dims, events or EventStream())
        scores = {branch.axis(dim.name): _activation(model, dim, norms) for branch, dim in dims}
    return {axis: value.argsort(dim=-1, descending=True, stable=True) for axis, value in scores.items()}


def _tensors(model: Model, dim: Dim, *, producing: bool) -> list[tuple[Tensor, int, Tensor]]:
    """Weights on one side of a dim; a norm's scale is no weight of a sum, and left out."""
    found = [
        (model.module.get_parameter(cut.parameter), cut.dim, cut.units)
        for cut in dim.cuts
        if cut.reads != producing and cut.parameter.endswith(".weight")
    ]
    return [entry for entry in found if entry[0].dim() > 1]


def _consumers(dim: Dim) -> list[str]:
    """Layers that read a dim; what adapters hold beside their weights is no layer."""
    read = (cut.parameter for cut in dim.cuts if cut.reads)
    return [name.removesuffix(".weight") for name in read if name.endswith(".weight")]


def _input_norms(walk: Walk, dims: list[tuple[Branch, Dim]], events: EventStream) -> Mapping[str, Tensor]:
    layers = dict.fromkeys(name for _, dim in dims for name in _consumers(dim))
    with watch_inputs(walk.model.module, layers) as sums, events.stage("order units", len(walk.windows)) as stage:

        def passed(block: int, entered: Tensor, _: Tensor) -> None:
            if block == walk.depth - 1:
                stage.advance(len(entered))

        walk.visit(passed)
    return {name: total.sqrt() for name, total in sums.items()}


def _activation(model: Model, dim: Dim, norms: Mapping[str, Tensor]) -> Tensor:
    positions = {position: norms[name] for position, name in enumerate(_consumers(dim))}
    return importance.activation(_tensors(model, dim, producing=False), positions)
