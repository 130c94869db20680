"""Products of two thin matrices, made thinner."""

# O outputs, I inputs, R rank

from __future__ import annotations

import torch
from torch import Tensor


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the pair of a smaller rank whose product is nearest to B A (Eckart & Young), without forming the product.

    Args:
        a: Tensor[R, I].
        b: Tensor[O, R].
        rank: At most R.

    Returns:
        A' [rank, I] and B' [O, rank], in float32; B' has the singular values.
    """
    left, inner_left = torch.linalg.qr(b.detach().double())
    right, inner_right = torch.linalg.qr(a.detach().double().T)
    u, values, v = torch.linalg.svd(inner_left @ inner_right.T)
    keep = slice(0, rank)
    return (v[keep] @ right.T).float(), (left @ (u[:, keep] * values[keep])).float()


def truncated_ref(a: Tensor, b: Tensor, rank: int) -> Tensor:
    """Product of `truncated`, from the SVD of the whole matrix, Tensor[O, I]."""
    u, values, v = torch.linalg.svd(b.detach().double() @ a.detach().double(), full_matrices=False)
    nearest: Tensor = (u[:, :rank] * values[:rank]) @ v[:rank]
    return nearest.float()
