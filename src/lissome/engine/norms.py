"""Running statistics of batch norms, taken again: those of a whole network are wrong for its Subnets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lissome.core.errors import ArtifactError, DataError


def batch_norms(module: nn.Module) -> list[Any]:
    """Return the batch norms of a module that keep running statistics."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def forward_of(module: nn.Module, batch: Any) -> Any:
    """Call a module with a batch: by name when it is a mapping, else as the one argument."""
    return module(**batch) if isinstance(batch, Mapping) else module(batch)


@torch.no_grad()
def reestimate(
    module: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] = forward_of
) -> int:
    """Replace the running statistics of all batch norms by those over some batches, each counting the same.

    All other layers stay in evaluation mode; nothing is learnt. Works on a masked model as well, whose statistics are
    views of the whole ones: see `adapted` for a way that puts them back.

    Args:
        module: The network; its modes are afterwards as they were.
        batches: Training examples, never those that it is judged by.
        forward: How a batch is given to it.

    Returns:
        Number of batches; 0 without a look at them when there are no batch norms.

    Raises:
        DataError: When there are batch norms but no batches.
    """
    norms = batch_norms(module)
    if not norms:
        return 0
    modes = {part: part.training for part in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    count = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the plain mean over all batches
            norm.train()
        for batch in batches:
            forward(module, batch)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes.items():
            part.training = mode
    if not count:
        raise DataError("statistics of batch norms need at least one batch of examples; give some.")
    return count


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Copy the running statistics of all batch norms, as large as they are now, by their names in the module."""
    return {
        f"{path}.{name}": getattr(part, name).clone()
        for path, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
        for name in ("running_mean", "running_var")
    }


@torch.no_grad()
def take_statistics(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put running statistics in the place of a module's own; the inverse of `statistics`.

    Raises:
        ArtifactError: When they are of another network.
    """
    for name in statistics(module):  # of batch norms alone: what else keeps such buffers was cut out with its weights
        value = module.get_buffer(name)
        if name not in values or values[name].shape != value.shape:
            raise ArtifactError(f"there are no statistics of {name} that fit it; search the super-network again.")
        value.copy_(values[name])


@contextlib.contextmanager
def adapted(
    module: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] = forward_of
) -> Iterator[None]:
    """Let a (masked) network have its own statistics inside the ``with`` block; arguments as in `reestimate`."""
    kept: list[tuple[Tensor, Tensor]] = [
        (buffer, buffer.clone())
        for norm in batch_norms(module)
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        if buffer is not None
    ]
    try:
        reestimate(module, batches, forward=forward)
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
