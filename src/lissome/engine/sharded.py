"""Tensors that FSDP has spread over processes: whole ones from shards, and shards from whole ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor; every process must call it, as the shards are gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(whole: Tensor, model: Tensor) -> Tensor:
    """Return `whole` placed as `model` is: same device, and the same shard when `model` is spread."""
    if isinstance(model, DTensor):
        return distribute_tensor(whole.to(model.device), model.device_mesh, model.placements)
    return whole.to(model.device)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state with whole tensors on the CPU; every process must call it."""
    with torch.no_grad():
        return {name: full(value).detach().cpu() for name, value in module.state_dict().items()}
