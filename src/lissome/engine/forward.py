"""One forward pass to the entrance of the head: what evaluation needs, without any logits; and a quick one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lissome.models.model import Model

_SHORT = 128  # tokens up to which the plain formula was faster, measured on AVX-512 with torch 2.13


@contextlib.contextmanager
def quick_attention(tokens: int, device: torch.device) -> Iterator[None]:
    """Compute attention by its plain formula inside the block, where torch's fused kernel is slow to train through.

    That is with short texts in bfloat16 on a CPU: its backward takes 6 times as long at 13 tokens, which was half of a
    training step of MiniLM, and 1.5 times at 128. For longer texts, and in float32, the fused one is the faster.

    Args:
        tokens: Longest text of the batch.
        device: Where it is.
    """
    slow = device.type == "cpu" and tokens <= _SHORT and torch.is_autocast_enabled("cpu")
    with sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext():
        yield


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
