"""How far a changed model is from the original on the same tokens, judged from a few numbers per token.

KL(original‖changed) over the original's likeliest K tokens and one bucket for all others: by the log-sum inequality it
is at most the divergence over the whole vocabulary, and it is equal when K covers it. The original's share is kept as
K numbers per token instead of V, so that it can be asked again and again without running the original.
"""

# N rows (tokens), D residual width, V vocabulary, K tokens that are kept

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lissome.ops.losses import CHUNK, ROWS, Head

TOP = 64
"""Tokens kept per row: few enough to be kept for every row, and the rest counts as one."""

_LEAST = 1e-6  # probability that the bucket has at least, since float32 cannot tell 1 - 1e-8 from 1


class Opinion(NamedTuple):
    """The original's next-token distribution at N places.

    Attributes:
        ids: Its likeliest tokens, LongTensor[N, K].
        log: Their log-probabilities, float32 Tensor[N, K].
        rest: Log-probability of all other tokens together, float32 Tensor[N].
    """

    ids: Tensor
    log: Tensor
    rest: Tensor


@torch.no_grad()
def opinion(hidden: Tensor, head: Head, *, top: int = TOP, chunk: int = CHUNK) -> Opinion:
    """Note the original's distribution.

    Args:
        hidden: Its last block's output [N, D].
        head: Maps [n, D] to logits [n, V].
        top: Tokens to keep, at most V.
        chunk: Rows that are projected at a time.
    """
    pieces = []
    for states in torch.split(hidden, chunk):
        for logits in torch.split(head(states), ROWS):
            log = log_softmax(logits.float(), dim=-1)
            kept = log.topk(min(top, log.shape[-1]), dim=-1)
            pieces.append(Opinion(kept.indices, kept.values, _rest(kept.values)))
    return Opinion(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))


@torch.no_grad()
def rows_divergence(hidden: Tensor, original: Opinion, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Divergence of every row from the original's opinion on it.

    Args:
        hidden: The changed model's last block's output [N, D].
        original: The original's opinion on the same N rows.
        head: Maps [n, D] to logits [n, V].
        chunk: Rows that are projected at a time.

    Returns:
        Tensor[N] in nats, float32, at least 0.
    """
    found = []
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        known = (torch.split(part[rows], ROWS) for part in original)
        for logits, ids, log, rest in zip(torch.split(head(hidden[rows]), ROWS), *known, strict=True):
            other = log_softmax(logits.float(), dim=-1).gather(1, ids)
            found.append((log.exp() * (log - other)).sum(-1) + rest.exp() * (rest - _rest(other)))
    return torch.cat(found).clamp_min(0.0)


def _rest(log: Tensor) -> Tensor:
    return (1 - log.exp().sum(-1)).clamp_min(_LEAST).log()
