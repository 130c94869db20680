"""How many numbers a forward pass makes, which a backward pass keeps: counted on one made-up input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lissome.models.example import example
from lissome.models.model import Model


@torch.no_grad()
def layer_outputs(model: Model) -> int:
    """Return how many numbers all layers of a model give for one made-up input; layers are modules without parts."""
    total = 0

    def count(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    layers = [part for part in model.module.modules() if not any(part.children())]
    handles = [part.register_forward_hook(count) for part in layers]
    training = model.module.training
    try:
        model.module.eval()(**example(model))
    finally:
        model.module.train(training)
        for handle in handles:
            handle.remove()
    return total
