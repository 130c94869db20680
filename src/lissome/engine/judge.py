"""What a removal is judged by besides the text's own loss: how far it moves the model from the original."""

# N windows, B windows of one batch, T tokens, D residual width

from __future__ import annotations

import torch
from torch import Tensor

from lissome.core.errors import NumericsError
from lissome.engine.walk import Walk
from lissome.ops.divergence import Opinion, opinion, rows_divergence


class Divergence:
    """Mean KL(original‖changed) per next token of each window; a judge for a walk.

    A distribution says more per token than the one token that followed, so that a choice made on a thousand tokens
    holds on other text too; the loss on so few tokens can be lowered by removals that harm the model.

    Args:
        walk: The walk over the windows; its model is the original now.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._opinions: list[Opinion] = []
        walk.plain(self._note)

    def _note(self, hidden: Tensor, _: slice) -> Tensor:
        self._opinions += [opinion(states[:-1], self._walk.model.anatomy.head) for states in hidden]
        return torch.zeros(len(hidden), dtype=torch.float64)

    def __call__(self, hidden: Tensor, batch: slice) -> Tensor:
        """Divergence of each window [B] in nats, from the last block's output [B, T, D].

        Raises:
            NumericsError: When it is NaN or infinite.
        """
        known = self._opinions[batch]
        rows = [
            rows_divergence(states[:-1], seen, self._walk.model.anatomy.head).mean()
            for states, seen in zip(hidden, known, strict=True)
        ]
        result = torch.stack(rows).double().cpu()
        if not torch.isfinite(result).all():
            raise NumericsError("the divergence is NaN or infinite; check the weights, or use float32.")
        return result
