"""One forward pass to the entrance of the head: what evaluation needs, without any logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lissome.models.model import Model


def last_states(model: Model, ids: Tensor) -> Tensor:
    """Return the last block's output [B, T, D] for token ids LongTensor[B, T], where `Anatomy.head` takes over.

    The model may be masked or cut. No attention mask is used: there is no padding, or it stands on the right. Virtual
    tokens, which stand before the others, are left out.
    """
    module = model.module
    found: list[Tensor] = []

    def keep(_block: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = module.get_submodule(model.anatomy.blocks[-1]).register_forward_hook(keep)
    device = next(module.parameters()).device
    try:
        module.base_model(input_ids=ids.to(device), use_cache=False)  # type: ignore[operator]
    finally:
        handle.remove()
    return found[0][:, -ids.shape[1] :]
