"""Scores of the units of a `Dim`: how much each channel, KV group or query head matters, judged from tensors alone.

A score is [lanes, units], higher is more important. It is a plug-in for ordering, never a promise of quality.
"""

# U units, L lanes (1, or KV groups when query heads are ordered within each), W slices of one unit in a tensor

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def magnitude(weights: Sequence[tuple[Tensor, int, Tensor]]) -> Tensor:
    """L1 score of MultiPruner (arXiv 2501.09949): mean absolute row sum of what produces a unit, summed over tensors.

    Args:
        weights: For each producing tensor: the weight, the dimension of its units, and their index [U, L, W].

    Returns:
        Tensor[L, U].
    """
    total: Tensor | float = 0.0
    for weight, dim, units in weights:
        rows = weight.detach().float().abs().transpose(0, dim).flatten(1).sum(1)
        total = total + rows[units.to(rows.device)].mean(-1)
    assert isinstance(total, Tensor)
    return total.T.contiguous()


def salience(weights: Sequence[tuple[Tensor, int, Tensor]], *, norm: int = 1) -> Tensor:
    """Score of RaFFM (arXiv 2310.00247): the norms of the slices of a unit, summed over all tensors that have some.

    Args:
        weights: For each tensor that makes or reads the units: itself, their dimension, and their index [U, L, W].
        norm: 1 or 2; norms are taken over each tensor's slice.

    Returns:
        Tensor[L, U].
    """
    total: Tensor | float = 0.0
    for weight, dim, units in weights:
        rows = weight.detach().float().abs().pow(norm).transpose(0, dim).flatten(1).sum(1)
        total = total + rows[units.to(rows.device)].sum(-1).pow(1 / norm)
    assert isinstance(total, Tensor)
    return total.T.contiguous()


def activation(weights: Sequence[tuple[Tensor, int, Tensor]], norms: Mapping[int, Tensor]) -> Tensor:
    """Activation-aware score in the manner of Wanda (arXiv 2306.11695): |weight| times the norm of what it reads.

    Args:
        weights: For each consuming weight, [out, in] or [in, out]: itself, the dimension of its units, their index
            [U, L, W].
        norms: By position in `weights`: L2 norm of each input over the calibration text, Tensor[in].

    Returns:
        Tensor[L, U].
    """
    total: Tensor | float = 0.0
    for position, (weight, dim, units) in enumerate(weights):
        columns = torch.linalg.vector_norm(weight.detach().float(), dim=1 - dim) * norms[position].float()
        total = total + columns[units.to(columns.device)].square().sum(-1)
    assert isinstance(total, Tensor)
    return total.T.contiguous()
