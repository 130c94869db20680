"""Which number type a device multiplies fastest, and a model in it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

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
