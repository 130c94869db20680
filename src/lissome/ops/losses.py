"""Losses and distances over a large vocabulary, computed in pieces so that logits [T, V] are never whole in memory.

A vocabulary of 50,000 to 260,000 tokens makes the logits the largest tensor of a small model: 2,048 tokens of
Gemma-3 take 2 GB in float32, more than its weights. So every function here takes hidden states and a `head` (hidden
→ logits), projects a few rows at a time, and keeps one number per token, in float32. A fast function comes with a
`_reference` of a few lines; tests hold one beside the other.
"""

# N rows (tokens), T tokens of one window, D residual width, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Maps hidden states [n, D] to logits [n, V], soft-capping included."""

CHUNK = 128
"""Tokens per piece: enough rows for full matrix speed; 128 x 49,152 bfloat16 logits are 13 MB."""

ROWS = 32
"""Rows that are turned into float32 and normalised at a time: they stay in the processor's cache."""


def rows_nll_reference(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Do what `rows_nll` does, with all logits at once."""
    return cross_entropy(head(hidden).float(), targets, reduction="none")


def rows_nll(hidden: Tensor, targets: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Negative log-likelihood of one target per row.

    Args:
        hidden: The last block's output, row by row [N, D].
        targets: LongTensor[N].
        head: Maps [n, D] to logits [n, V].
        chunk: Tokens per piece.

    Returns:
        Tensor[N] in nats, float32; differentiable (pieces are recomputed in the backward pass, not kept).
    """
    pieces = []
    for part in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        if torch.is_grad_enabled() and hidden.requires_grad:
            pieces.append(checkpoint(_piece_nll, *part, head, use_reentrant=False))
        else:
            pieces.append(_piece_nll(*part, head))
    return torch.cat(pieces)


def _piece_nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    rows = zip(torch.split(head(hidden), ROWS), torch.split(targets, ROWS), strict=True)
    return torch.cat([cross_entropy(logits.float(), wanted, reduction="none") for logits, wanted in rows])


def token_nll(hidden: Tensor, ids: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Next-token negative log-likelihood of one window.

    Args:
        hidden: The last block's output [T, D].
        ids: Token ids, LongTensor[T]; token t+1 is the target at t.
        head: Maps [n, D] to logits [n, V].
        chunk: Tokens per piece.

    Returns:
        Tensor[T-1] in nats, as `rows_nll`.
    """
    return rows_nll(hidden[:-1], ids[1:], head, chunk=chunk)


class Comparison(NamedTuple):
    """Per-token figures of two models on the same tokens; each field is a Tensor[N].

    Attributes:
        nll: Negative log-likelihood under the first model (the reference), nats.
        other_nll: The same under the second model.
        kl: Kullback-Leibler divergence KL(first‖second), nats.
        agrees: Whether both models rank the same token first (bool).
    """

    nll: Tensor
    other_nll: Tensor
    kl: Tensor
    agrees: Tensor


def compare_reference(hidden: Tensor, other: Tensor, targets: Tensor, head: Head, other_head: Head) -> Comparison:
    """Do what `compare` does, with all logits at once."""
    first, second = log_softmax(head(hidden).float(), dim=-1), log_softmax(other_head(other).float(), dim=-1)
    column = targets[:, None]
    return Comparison(
        nll=-first.gather(1, column)[:, 0],
        other_nll=-second.gather(1, column)[:, 0],
        kl=(first.exp() * (first - second)).sum(-1),
        agrees=first.argmax(-1) == second.argmax(-1),
    )


@torch.no_grad()
def compare(
    hidden: Tensor, other: Tensor, targets: Tensor, head: Head, other_head: Head, *, chunk: int = CHUNK
) -> Comparison:
    """Compare two models with one vocabulary token by token.

    Args:
        hidden: The first model's (the reference's) last block output [N, D].
        other: The second model's [N, D'].
        targets: The tokens that follow, LongTensor[N].
        head: Vocabulary projection of the first model.
        other_head: Vocabulary projection of the second model.
        chunk: Tokens per piece.
    """
    states, others = torch.split(hidden, chunk), torch.split(other, chunk)
    blocks = zip(states, others, torch.split(targets, chunk), strict=True)
    pieces = [_compare_piece(h, o, t, head, other_head) for h, o, t in blocks]
    return Comparison(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))


def _compare_piece(hidden: Tensor, other: Tensor, targets: Tensor, head: Head, other_head: Head) -> Comparison:
    rows = zip(
        torch.split(head(hidden), ROWS), torch.split(other_head(other), ROWS), torch.split(targets, ROWS), strict=True
    )
    return Comparison(*(torch.cat(columns) for columns in zip(*(_compare_rows(*row) for row in rows), strict=True)))


def _compare_rows(first: Tensor, second: Tensor, targets: Tensor) -> Comparison:
    agrees = first.argmax(-1) == second.argmax(-1)
    first, second = log_softmax(first.float(), dim=-1), log_softmax(second.float(), dim=-1)
    column = targets[:, None]
    nll, other_nll = -first.gather(1, column)[:, 0], -second.gather(1, column)[:, 0]
    difference = second.neg_().add_(first)  # in place: few temporaries live at a time
    kl = first.exp_().mul_(difference).sum(-1)
    return Comparison(nll, other_nll, kl, agrees)


@torch.no_grad()
def rows_scores(hidden: Tensor, targets: Tensor, head: Head, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of one target per row, and whether it is the most likely token.

    Args:
        hidden: The last block's output, row by row [N, D].
        targets: LongTensor[N].
        head: Maps [n, D] to logits [n, V].
        chunk: Tokens per piece.

    Returns:
        Tensor[N] in nats, float32, and BoolTensor[N].
    """
    losses, firsts = [], []
    for states, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        for logits, target in zip(torch.split(head(states), ROWS), torch.split(wanted, ROWS), strict=True):
            losses.append(cross_entropy(logits.float(), target, reduction="none"))
            firsts.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(firsts)
