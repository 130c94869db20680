"""The reference of state-space mixers: the full mixer with zeros, ones and factors instead of cuts."""

# C channels, N states, H heads of P channels, G groups

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def mute(mixer: Any, sizes: Mapping[str, int]) -> None:
    """Let a full mixer compute, in place, what one of smaller `sizes` must; what reads its channels is not touched.

    Without its scan the output must be its input: nothing is read from the states (C = 0), the skip term is all
    (D = 1). Heads that go must be missing from the norm's mean too: their gate is closed, and the mean rescaled.

    Args:
        mixer: A mixer of Mamba-1, Mamba-2 or Bamba.
        sizes: Units by dim: ``ssm`` 0 or 1, and ``heads`` per group in Mamba-2 (``channels`` of Mamba-1 just go).
    """
    if not sizes["ssm"] and hasattr(mixer, "D"):
        for reader in _readers(mixer):
            reader.zero_()
        mixer.D.fill_(1)
    if "heads" in sizes:
        _drop_heads(mixer, sizes["heads"])


def _readers(mixer: Any) -> list[Tensor]:
    """Slices of the weights that make C."""
    if not hasattr(mixer, "num_heads"):
        return [mixer.x_proj.weight[-mixer.ssm_state_size :]]
    shared = mixer.n_groups * mixer.ssm_state_size
    rows = slice(-mixer.num_heads - shared, -mixer.num_heads)
    made = [mixer.in_proj.weight[rows], mixer.conv1d.weight[-shared:]]
    if mixer.in_proj.bias is not None:
        made.append(mixer.in_proj.bias[rows])
    return made if mixer.conv1d.bias is None else [*made, mixer.conv1d.bias[-shared:]]


def _drop_heads(mixer: Any, kept: int) -> None:
    heads = mixer.num_heads // mixer.n_groups
    for tensor in (mixer.in_proj.weight, mixer.in_proj.bias):
        if tensor is not None:
            gate = tensor[: mixer.intermediate_size]
            gate.view(mixer.n_groups, heads, mixer.head_dim, -1)[:, kept:] = 0
    mixer.norm.weight.mul_(math.sqrt(kept / heads))
    mixer.norm.variance_epsilon *= kept / heads
