"""New random weights for a model, as its class draws them: training that starts from nothing."""

from __future__ import annotations

from typing import Any

import torch

from lissome.core.errors import UnsupportedModelError
from lissome.models.model import Model


@torch.no_grad()
def fresh_weights(model: Model, seed: int) -> None:
    """Draw all weights anew, in place; the global generator is left alone.

    Args:
        model: The model.
        seed: Of the draw.

    Raises:
        UnsupportedModelError: When its class cannot be built from its configuration alone.
    """
    module: Any = model.module
    if not hasattr(module, "config"):
        raise UnsupportedModelError(f"{model.name} has no configuration to draw new weights from.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        drawn = type(module)(module.config)
    module.load_state_dict(drawn.state_dict())
