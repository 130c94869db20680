"""Stand-ins: a network with random weights that shows what its architecture does, and modules for what is removed."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lissome.core.errors import UnsupportedModelError
from lissome.models.copies import without_history
from lissome.models.crops import drop_crops


class Skipped(nn.Module):
    """Stands where a residual block was: hands on what it gets."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first tensor."""
        return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


class NoPart(nn.Module):
    """Stands where a part of a residual block was: adds nothing.

    Args:
        block: Dotted name of the block.
        entries: Length of the tuple that the part returned, whose first entry counts; 0 when it returned a tensor.
        rank: Number of dimensions of what the part added.
    """

    def __init__(self, block: str, entries: int, rank: int) -> None:
        super().__init__()
        self.block, self.entries, self.rank = block, entries, rank

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return one zero of as many dimensions: it broadcasts, and code that asks for a size finds one."""
        inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        # made of the input, it would hold the input's channels fast when what is left is read again
        zero = torch.zeros((1,) * self.rank, dtype=inputs.dtype, device=inputs.device)
        return (zero, *[None] * (self.entries - 1)) if self.entries else zero


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy in evaluation mode whose weights are random, of a scale that keeps signals alive.

    What follows from it depends on the architecture alone: neither on training nor on whether there are weights yet.
    """
    generator = torch.Generator().manual_seed(seed)
    memo = without_history(module)
    for name, value in module.named_parameters():
        if _is_weight(value):
            memo[id(value)] = nn.Parameter(_drawn(name, value, generator), requires_grad=False)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            memo[id(buffer)] = _drawn(name, buffer, generator)
        elif buffer.is_meta:
            memo[id(buffer)] = torch.ones(buffer.shape, dtype=buffer.dtype)
        elif buffer.is_floating_point():
            memo[id(buffer)] = buffer.to(torch.float32, copy=True)
    result: nn.Module = copy.deepcopy(module, memo).eval()
    drop_crops(result)  # they have no part in the whole network
    return result


def _is_weight(value: Tensor) -> bool:
    """Whether a parameter is learnt: whole numbers are a table that something is picked by."""
    return value.is_floating_point() or value.is_complex()


def _drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if value.ndim >= 2 and not name.endswith("running_var"):
        fan_in = max(1, value.numel() // value.shape[0])
        return torch.randn(value.shape, generator=generator) * math.sqrt(2 / fan_in)
    if name.endswith(("bias", "running_mean")):
        return 0.1 * torch.randn(value.shape, generator=generator)
    return 0.5 + torch.rand(value.shape, generator=generator)


def drawn_inputs(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Draw one example of every input."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def results(module: nn.Module, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return all numbers that a forward gives, flat; `tensors` take the place of parameters for this once."""
    with _with_values(module, tensors or {}):
        found = module(**inputs)
    return torch.cat([value.flatten().float() for value in tensors_in(found)])


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors in what a network returns: in lists, mappings, and fields of data classes.

    Raises:
        UnsupportedModelError: When there is none.
    """
    if isinstance(result, Mapping):
        result = dict(result)
    elif is_dataclass(result):
        result = {each.name: getattr(result, each.name) for each in fields(result)}
    found = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    if not found:
        raise UnsupportedModelError(
            f"the network returns {type(result).__name__}, in which there is no tensor; let it return tensors, in a "
            "list, a dictionary or a data class."
        )
    return found


@contextlib.contextmanager
def _with_values(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Write numbers into parameters for a while: torch.func.functional_call loses those of modules held twice."""
    kept = {name: module.get_parameter(name).clone() for name in tensors}
    try:
        for name, value in tensors.items():
            module.get_parameter(name).copy_(value)
        yield
    finally:
        for name, value in kept.items():
            module.get_parameter(name).copy_(value)


@contextlib.contextmanager
def without_weights(module: nn.Module) -> Iterator[None]:
    """Set all parameters of a module to zero for a while."""
    kept = {name: value.clone() for name, value in module.named_parameters()}
    try:
        for value in filter(_is_weight, module.parameters()):
            value.zero_()
        yield
    finally:
        for name, value in module.named_parameters():
            value.copy_(kept[name])
