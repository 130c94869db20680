"""Scores of weights and of the units of a `Dim`: how much each channel, KV group or query head matters, from tensors.

A score of units is [lanes, units], one of weights has the weight's shape; higher is more important. It is a plug-in for
ordering, never a promise of quality.
"""

# U units, L lanes (1, or KV groups when query heads are ordered within each), W slices of one unit in a tensor

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


def total(saliencies: Sequence[tuple[Tensor, int, Tensor]]) -> Tensor:
    """Sum of the saliencies of a unit's weights (the mean over the rows of one), over all tensors.

    Args:
        saliencies: For each tensor: one number for every weight, the dimension of the units, and their index [U, L, W].

    Returns:
        Tensor[L, U].
    """
    found: Tensor | float = 0.0
    for values, dim, units in saliencies:
        rows = values.float().transpose(0, dim).flatten(1).sum(1)
        found = found + rows[units.to(rows.device)].mean(-1)
    assert isinstance(found, Tensor)
    return found.T.contiguous()


def strongest(saliencies: Sequence[tuple[Tensor, int, Tensor]]) -> Tensor:
    """Largest saliency of any weight of a unit in any tensor: below this threshold all of it is gone.

    Arguments and result as in `total`.
    """
    found: Tensor | None = None
    for values, dim, units in saliencies:
        rows = values.float().transpose(0, dim).flatten(1).amax(1)
        each = rows[units.to(rows.device)].amax(-1)
        found = each if found is None else torch.maximum(found, each)
    assert found is not None
    return found.T.contiguous()


def l1(weight: Tensor) -> Tensor:
    """|w| of every weight."""
    return weight.detach().float().abs()


def l2(weight: Tensor) -> Tensor:
    """w² of every weight: their sum orders units as the L2 norm does."""
    return weight.detach().float().square()


def wanda(weight: Tensor, norms: Tensor | None) -> Tensor:
    """|w| times the norm of what it reads (arXiv 2306.11695).

    Args:
        weight: [out, in, …]; of a grouped convolution `in` counts within a group.
        norms: L2 norm of each input of the layer over some examples, Tensor[in of all groups]; None where nothing was
            seen (a table of embeddings), then |w|.
    """
    if norms is None:
        return l1(weight)
    inside = weight.shape[1]
    groups = max(1, len(norms) // inside)
    scale = norms.float().view(groups, inside).repeat_interleave(max(1, weight.shape[0] // groups), 0)
    return l1(weight) * scale.view(*scale.shape, *[1] * (weight.dim() - 2)).to(weight.device)


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """(w · ∂loss/∂w)² of one example: what a loss loses, to first order, with each weight."""
    return (weight.detach().float() * gradient.detach().float()).square()


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w · ∂loss/∂w| of one example."""
    return (weight.detach().float() * gradient.detach().float()).abs()


SCORES: dict[str, Callable[..., Tensor]] = {
    "l1": l1,
    "l2": l2,
    "wanda": wanda,
    "first_order": first_order,
    "movement": movement,
}
"""Scores of single weights, by name."""
