"""Losses over a large vocabulary, computed in pieces so that logits [T, V] are never whole in memory."""

# T tokens, D residual width, V vocabulary

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
CHUNK = 128
"""Tokens per piece: 128 x 49,152 float32 logits are 25 MB."""


def _piece_nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    logits = head(hidden).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def token_nll(hidden: Tensor, ids: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Next-token negative log-likelihood of one window.

    Args:
        hidden: The last block's output [T, D].
        ids: Token ids, LongTensor[T]; token t+1 is the target at t.
        head: Maps [n, D] to logits [n, V].
        chunk: Tokens per piece.

    Returns:
        Tensor[T-1] in nats, float32; differentiable (pieces are recomputed in the backward pass, not kept).
    """
    states, targets = hidden[:-1], ids[1:]
    pieces = []
    for start in range(0, len(targets), chunk):
        part = states[start : start + chunk], targets[start : start + chunk], head
        if torch.is_grad_enabled() and hidden.requires_grad:
            pieces.append(checkpoint(_piece_nll, *part, use_reentrant=False))
        else:
            pieces.append(_piece_nll(*part))
    return torch.cat(pieces)
