"""Learning from text, from a teacher, or both: a loss per token whose gradient is taken while it is computed.

The gradient of a token's loss with respect to its hidden state needs the logits of that token alone. So each piece of
rows is projected to the vocabulary once, differentiated at once, and forgotten; the backward pass only scales what
was kept ([N, D]). Against recomputing the logits that saves a third of the vocabulary's work, against keeping them
the memory. It needs a head that is not trained itself.
"""

# N rows (tokens), D residual width, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lissome.ops.losses import CHUNK, Head


def learning_loss_reference(
    hidden: Tensor, targets: Tensor, head: Head, teacher: Tensor | None = None, share: float = 0.0
) -> Tensor:
    """Do what `learning_loss` does, with all logits at once; also trains the head."""
    logits = head(hidden).float()
    loss = cross_entropy(logits, targets, reduction="none")
    if teacher is None:
        return loss
    divergence = kl_div(log_softmax(logits, -1), teacher, reduction="none", log_target=True).sum(-1)
    return (1 - share) * loss + share * divergence


class Teacher:
    """A second model's opinion on the same rows.

    Args:
        hidden: Its last block's output [N, D'].
        head: Its projection [n, D'] → [n, V].
        share: Weight of KL(teacher‖student) against the text's own next token, 0..1.
    """

    def __init__(self, hidden: Tensor, head: Head, share: float) -> None:
        self.hidden, self.head, self.share = hidden, head, share

    @torch.no_grad()
    def log_probabilities(self, start: int, stop: int) -> Tensor:
        """Tensor[stop - start, V] in float32."""
        return log_softmax(self.head(self.hidden[start:stop]).float(), dim=-1)


class _EagerLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, teacher: Teacher | None, chunk: int) -> Tensor:
        losses, gradients = [], []
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            with torch.enable_grad():
                piece = hidden[rows].detach().requires_grad_()
                loss = _piece(piece, targets, head, teacher, rows)
                (gradient,) = torch.autograd.grad(loss.sum(), piece)
            losses.append(loss.detach())
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][:, None].to(gradient.dtype), None, None, None, None


def _piece(hidden: Tensor, targets: Tensor, head: Head, teacher: Teacher | None, rows: slice) -> Tensor:
    if teacher is None:
        return learning_loss_reference(hidden, targets[rows], head)
    opinion = teacher.log_probabilities(rows.start, rows.stop)
    return learning_loss_reference(hidden, targets[rows], head, opinion, teacher.share)


def learning_loss(
    hidden: Tensor, targets: Tensor, head: Head, *, teacher: Teacher | None = None, chunk: int = CHUNK
) -> Tensor:
    """Loss of every row: next-token negative log-likelihood, mixed with the divergence from a teacher.

    Args:
        hidden: The last block's output [N, D].
        targets: The tokens that follow, LongTensor[N].
        head: Maps [n, D] to logits [n, V]; its parameters get no gradient.
        teacher: Mixes in ``share · KL(teacher‖student)``; the text's part is weighted with ``1 - share``.
        chunk: Rows per piece.

    Returns:
        Tensor[N] in nats, float32, differentiable with respect to `hidden`.
    """
    loss: Tensor = _EagerLoss.apply(hidden, targets, head, teacher, chunk)  # type: ignore[no-untyped-call]
    return loss
