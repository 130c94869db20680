"""How much each weight matters: the diagonal of the empirical Fisher information, by which `make` weighs errors."""

# S sequences, T tokens

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import DataError
from lissome.models.model import Model


def fisher(model: Model, sequences: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sum the squared gradients of each sequence's mean loss, for every matrix.

    Gradients are squared and dropped as soon as they are there, so that memory holds the model, one layer's gradients
    and the result. The model is as it was afterwards.

    Args:
        model: A causal language model.
        sequences: Token ids, int[T] with at least 2 each. The papers take 100 of 512 tokens.

    Returns:
        float32 sums of the shape of each matrix, by parameter's name; of one that layers share once, under its first.

    Raises:
        DataError: When there is no sequence.
    """
    module: Any = model.module
    matrices = {name: weight for name, weight in module.named_parameters() if weight.dim() == 2}
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in matrices.items()}
    before = {weight: weight.requires_grad for weight in module.parameters()}
    for weight in before:
        weight.requires_grad_(weight.dim() == 2)
    hooks = [
        weight.register_post_accumulate_grad_hook(lambda weight, name=name: _add(weight, found[name]))
        for name, weight in matrices.items()
    ]
    used = False
    try:
        with torch.enable_grad():
            for ids in sequences:
                used = True
                module(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for weight, wanted in before.items():
            weight.requires_grad_(wanted)
    if not used:
        raise DataError("there is no calibration text; give at least one sequence.")
    return found


def _add(weight: nn.Parameter | Tensor, total: Tensor) -> None:
    assert weight.grad is not None
    total.addcmul_(weight.grad.float(), weight.grad.float())
    weight.grad = None
