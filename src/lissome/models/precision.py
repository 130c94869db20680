"""Which number type a device multiplies fastest, and a model or parts of it in one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lissome.models.model import Model
from lissome.models.paging import page_out


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, float32 elsewhere.

    On a CPU that means AVX-512 BF16 or AMX.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    features = torch.backends.cpu.get_cpu_capability()
    has = features.startswith("AVX512") and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return torch.bfloat16 if has else torch.float32


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Return the model in another number type: a copy, or the model itself when it is of that type already."""
    if next(model.module.parameters()).dtype == dtype:
        return model
    memo = {
        id(parameter): torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=parameter.requires_grad)
        for parameter in model.module.parameters()
    }
    return model.derived(copy.deepcopy(model.module, memo))


@contextlib.contextmanager
def frozen_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold copies of the frozen linear weights in `dtype` inside the block; the originals come back unchanged.

    Autocast converts a frozen weight again in every forward pass. Weights that other layers share (tied embeddings)
    stay there as they are, and so do those that an adapter needs exactly, because it rounds its sum with them.
    """
    linears = [part for part in module.modules() if isinstance(part, nn.Linear) and not part.weight.requires_grad]
    frozen = [part for part in linears if not getattr(getattr(part, "adapter", None), "exact", False)]
    originals = [part.weight for part in frozen]
    try:
        for part in frozen:
            part.weight = nn.Parameter(part.weight.detach().to(dtype), requires_grad=False)
        page_out(originals)
        yield
    finally:
        for part, weight in zip(frozen, originals, strict=True):
            part.weight = weight


@contextlib.contextmanager
def depthwise_in_float32(module: nn.Module) -> Iterator[None]:
    """Let convolutions of one channel per group stay out of autocast inside the block.

    On a CPU their gradient in bfloat16 takes several times as long as in float32; all others gain from bfloat16.
    """
    depthwise = [
        part for part in module.modules() if isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels
    ]
    try:
        for part in depthwise:
            vars(part)["forward"] = partial(_without_autocast, part, part.forward)
        yield
    finally:
        for part in depthwise:
            vars(part).pop("forward", None)


def _without_autocast(part: nn.Conv2d, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return forward(inputs.to(part.weight.dtype))
