"""What the kernels compute, in a few lines each; also what is used where there are none.

The layout is that of ``native/weight/weight.h``: panels of 32 outputs, steps of 2 (bf16) or 4 (int8) inputs, within a
step 32 outputs with their inputs side by side.
"""

# N outputs, K inputs, P panels, S steps, G inputs of a step, M rows of activations

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = {"bf16": 2, "int8": 4}
"""Inputs of a step, by format."""

PANEL, TILE = 32, 16  # outputs of a panel; steps to whose multiple inputs are padded

Codes = NDArray[np.int16] | NDArray[np.int8]


def codes_ref(weight: Tensor, form: str) -> tuple[Codes, NDArray[np.float32] | None]:
    """Numbers that are stored: bits of bfloat16 as int16[N, K], or int8[N, K] with a scale per output; −0 becomes 0."""
    if form == "bf16":
        bits = weight.detach().float().to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        return np.where(bits == np.int16(-0x8000), np.int16(0), bits), None
    integers, scales = quantised_ref(weight)
    return integers, scales


def quantised_ref(rows: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per row: round(r · 127 / max|r|), ties to even, and max|r| / 127; NaN where it is not finite."""
    values = rows.detach().float().numpy()
    largest = np.abs(values).max(1, initial=0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(127) / largest
        usable = np.isfinite(inverse) & np.isfinite(largest)
        integers = np.where(usable[:, None], np.rint(values * inverse[:, None]), 0).astype(np.int8)
    scales = np.where(usable, largest / np.float32(127), np.float32(0))
    return integers, np.where(np.isfinite(largest), scales, np.float32(np.nan))


def ordered_ref(codes: Codes, form: str) -> Codes:
    """Codes [N, K], padded with zeros and put in the order of panels, [P, S, 32, G]."""
    group = GROUP[form]
    rows, columns = -codes.shape[0] % PANEL, -codes.shape[1] % (TILE * group)
    padded = np.pad(codes, ((0, rows), (0, columns)))
    panels = padded.reshape(-1, PANEL, padded.shape[1] // group, group)
    return np.ascontiguousarray(panels.transpose(0, 2, 1, 3))


def compressed_ref(ordered: Codes) -> tuple[Codes, NDArray[np.int64], NDArray[np.int64]]:
    """Non-zero values, bitmap (the first weight in the lowest bit of the first word) and the start of each panel."""
    kept = ordered != 0
    words = np.packbits(kept.reshape(-1), bitorder="little").view(np.int64)
    starts = np.concatenate([[0], kept.reshape(len(kept), -1).sum(1).cumsum()])
    return ordered[kept], words, starts.astype(np.int64)


def expanded_ref(values: Codes, bitmap: NDArray[np.int64], panels: int) -> Codes:
    """Undo `compressed_ref`, up to the shape: [P, numbers of a panel]."""
    kept = np.unpackbits(bitmap.view(np.uint8), bitorder="little").astype(bool)
    dense = np.zeros(kept.size, values.dtype)
    dense[kept] = values
    return dense.reshape(panels, -1)


def unordered_ref(ordered: Codes, shape: tuple[int, int], form: str) -> Codes:
    """Undo `ordered_ref`: [P, ·] → [N, K]."""
    panels = ordered.reshape(len(ordered), -1, PANEL, GROUP[form])
    return panels.transpose(0, 2, 1, 3).reshape(len(ordered) * PANEL, -1)[: shape[0], : shape[1]]


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Float x[M, K] times a bf16 weight[N, K] in fp32, in the type of x."""
    y = x.float() @ weight.float().T
    return (y if bias is None else y + bias).to(x.dtype)


def linear_int8_ref(x: Tensor, codes: NDArray[np.int8], scales: NDArray[np.float32], bias: Tensor | None) -> Tensor:
    """x[M, K] quantised per row times int8[N, K]: exact integers, then scales, then the bias, in the type of x."""
    integers, x_scales = quantised_ref(x)
    y = torch.from_numpy(integers_ref(integers, codes).astype(np.float32) * (x_scales[:, None] * scales))
    return (y if bias is None else y + bias).to(x.dtype)


def integers_ref(x: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """int8[M, K] times int8[N, K] as int32[M, N], exact."""
    return x.astype(np.int32) @ codes.astype(np.int32).T
