"""Weights on a grid of few integers per group, with an exact zero, and a rounding that gradients pass straight through.

A weight w is stored as ``n = clamp(round(w / q) + z, 0, 2^b − 1)`` and read as ``q · (n − z)``. The zero point z is one
of the integers, so that 0 is read as 0: zeros of a sparse matrix survive.
"""

# R rows (outputs), C columns (inputs), G groups of neighbouring columns of a row

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import ConfigError

_BITS = (2, 8)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the integers of a matrix lie.

    Attributes:
        scale: Distance q of two of them, Tensor[R, G], positive.
        zero: The integer z that is read as 0, Tensor[R, G] of whole numbers.
        bits: Their bits b.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def top(self) -> int:
        """The largest integer, 2^b − 1."""
        return (1 << self.bits) - 1


def grid_of(weight: Tensor, bits: int, group: int) -> Grid:
    """Put a grid over the range of every group, zero included.

    Args:
        weight: Tensor[R, C].
        bits: 2 to 8.
        group: Columns per group; a number that does not divide C makes each row one group.

    Raises:
        ConfigError: When `bits` is out of range.
    """
    if not _BITS[0] <= bits <= _BITS[1]:
        raise ConfigError(f"bits must be {_BITS[0]} to {_BITS[1]}, got {bits}.")
    rows, columns = weight.shape
    grouped = weight.detach().float().reshape(rows, -1, group if columns % group == 0 else columns)
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    span = high - low
    scale = torch.where(span > 0, span / (2**bits - 1), torch.ones_like(span))
    return Grid(scale, (-low / scale).round(), bits)


def codes(weight: Tensor, grid: Grid) -> Tensor:
    """Integers of a matrix, Tensor[R, C] → uint8[R, C]."""
    return _whole(weight, grid).to(torch.uint8).view(weight.shape)


def values(integers: Tensor, grid: Grid) -> Tensor:
    """What integers uint8[R, C] are read as, float32[R, C]."""
    grouped = _grouped(integers.float(), grid)
    return (grid.scale[..., None] * (grouped - grid.zero[..., None])).view(integers.shape)


def codes_ref(weight: Tensor, grid: Grid) -> Tensor:
    """`codes` one number at a time."""
    found = torch.zeros(weight.shape, dtype=torch.uint8)
    width = weight.shape[1] // grid.scale.shape[1]
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            place = row, column // width
            whole = torch.round(weight[row, column] / grid.scale[place]) + grid.zero[place]
            found[row, column] = int(min(max(whole.item(), 0), grid.top))
    return found


def rounded(weight: Tensor, grid: Grid) -> Tensor:
    """What is read back of a matrix that is stored on a grid; its gradient is passed to `weight` unchanged.

    Bit for bit ``values(codes(weight))``.
    """
    result: Tensor = _StraightThrough.apply(weight, grid)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """Rounding whose derivative is taken as 1 (Bengio et al. 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(_ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        whole = _whole(weight, grid).sub_(grid.zero[..., None]).mul_(grid.scale[..., None])
        return whole.view(weight.shape)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _whole(weight: Tensor, grid: Grid) -> Tensor:
    """`codes` as float32[R, G, C / G]; one piece of memory, since training does this in every step."""
    whole = _grouped(weight, grid) / grid.scale[..., None]
    return whole.round_().add_(grid.zero[..., None]).clamp_(0, grid.top)


def _grouped(matrix: Tensor, grid: Grid) -> Tensor:
    return matrix.float().reshape(*grid.scale.shape, -1)
