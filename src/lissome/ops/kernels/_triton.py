"""The kernel of `lissome.ops.kernels.bitplane`, in Triton's language; imported when it is first used."""

# N outputs, K inputs, J groups, M rows of x

# Triton reads annotations as types of its own, so that pointers and sizes have none.
# ruff: noqa: ANN001, PLR0913, PLR0917
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bitplane_kernel(
    x, planes, scales, leasts, y,
    outputs, inputs, words, groups,
    bits: tl.constexpr, group_words: tl.constexpr, rows_of_block: tl.constexpr, words_of_block: tl.constexpr,
) -> None:  # fmt: skip
    """One block of outputs for one row of x: sums of ``scale · Σ code·x + least · Σ x`` over groups, in float32.

    Only the first `bits` planes are read. A word holds the same bit of 32 neighbouring inputs.
    """
    rows = tl.program_id(0) * rows_of_block + tl.arange(0, rows_of_block)
    batch = tl.program_id(1)
    inside = rows < outputs
    lanes = tl.arange(0, 32)
    total = tl.zeros((rows_of_block,), tl.float32)
    for first in range(0, words, words_of_block):
        at = first + tl.arange(0, words_of_block)
        there = inside[:, None] & (at < words)[None, :]
        place = rows[:, None] * words + at[None, :]
        codes = tl.zeros((rows_of_block, words_of_block, 32), tl.int32)
        for plane in tl.static_range(bits):
            word = tl.load(planes + plane * outputs * words + place, mask=there, other=0)
            codes = codes * 2 + ((word[:, :, None] >> lanes[None, None, :]) & 1)
        column = at[:, None] * 32 + lanes[None, :]
        part = tl.load(x + batch * inputs + column, mask=column < inputs, other=0.0).to(tl.float32)
        group = rows[:, None] * groups + at[None, :] // group_words
        scale = tl.load(scales + group, mask=there, other=0.0).to(tl.float32)
        least = tl.load(leasts + group, mask=there, other=0.0).to(tl.float32)
        products = tl.sum(codes.to(tl.float32) * part[None, :, :], axis=2)
        total += tl.sum(products * scale + least * tl.sum(part, axis=1)[None, :], axis=1)
    tl.store(y + batch * outputs + rows, total, mask=inside)
