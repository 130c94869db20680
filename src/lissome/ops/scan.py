"""Scans of state-space models, fast on a CPU beside their ten-line references.

Mamba-1 (arXiv 2312.00752): every channel c has N states of its own decay,

    s_t = exp(dt_t A) s_{t-1} + dt_t B_t x_t,    y_t = C_t · s_t.

`selective_scan` runs this over all chunks at once, twice: from zero to learn what each chunk adds to its start, then
from the true starts. Mamba-2 (arXiv 2405.21060) has one decay per head, so that a chunk is a few matrix products:
`ssd_scan`. The skip term D x and the gate are the caller's. Nothing is divided by a decay and every exponent is at most
0, so that nothing overflows, however long the sequence.

Why own ones: without compiled kernels transformers runs Mamba-1 as a Python loop that allocates five tensors per token
(with gradients its time grows faster than the length), and Mamba-2 in chunks of 256 with B and C copied for every head.
Against those, a model without its scan would look faster than it is.
"""

# B sequences, T tokens, C channels, N states, K chunks, L tokens of a chunk, R = B*K rows; H heads of P channels, G
# groups of heads that share B and C

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_ENOUGH = 1 << 16  # numbers in one step over all chunks for which the call of an operation no longer counts
_WORTH = 4  # chunks do the work twice: fewer than these save less in calls than they cost
_LOG2_E = math.log2(math.e)  # powers of 2 instead of e: torch's exp2 is faster than its exp on a CPU
SSD_CHUNK = 32
"""Default tokens per chunk of `ssd_scan`: the fastest of 16, 32, 64 and 128 for 8 to 24 heads and 32 to 128 states."""


def selective_scan_reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token; arguments and results as in `selective_scan`."""
    s = x.new_zeros(len(x), *a.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        s = torch.exp(dt[:, t, :, None] * a) * s + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        outputs.append((s * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1), s


def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan of Mamba-1, differentiable once; memory for the backward pass is that of the inputs, not of all states.

    Args:
        x: Inputs, Tensor[B, T, C] with T of at least 1.
        dt: Step sizes, not negative: Tensor[B, T, C].
        a: Decay rates, negative: Tensor[C, N].
        b: What the inputs do to the states, Tensor[B, T, N].
        c: How the outputs read the states, Tensor[B, T, N].
        state: States before the first token, Tensor[B, C, N] (default: zero).
        chunk: Tokens per chunk (default: whatever makes the steps large enough to be worth a call).

    Returns:
        Outputs Tensor[B, T, C] and the states after the last token Tensor[B, C, N], both in float32.
    """
    batch, tokens, channels = x.shape
    length = chunk or _chunk_length(batch * a.numel(), tokens)
    chunks = -(-tokens // length)
    dt, b, c = (value.float() for value in (dt, b, c))
    rows = [_rows(value, chunks, length) for value in (dt, dt * x.float(), b, c)]  # each [L, R, ·]
    start = a.new_zeros(batch, *a.shape, dtype=torch.float32) if state is None else state.float()
    y, end = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        rows[0].unsqueeze(2), rows[1].unsqueeze(2), a.float().T, rows[2].unsqueeze(3), rows[3].unsqueeze(2),
        start.transpose(1, 2),
    )  # fmt: skip
    y = y.view(length, batch, chunks, channels).permute(1, 2, 0, 3).reshape(batch, -1, channels)
    return y[:, :tokens], end.transpose(1, 2)


def _chunk_length(numbers: int, tokens: int) -> int:
    chunks = min(_ENOUGH // max(1, numbers), math.isqrt(tokens))
    return tokens if chunks < _WORTH else -(-tokens // chunks)


def _rows(value: Tensor, chunks: int, length: int) -> Tensor:
    """[B, T, ·] to [L, B*K, ·]; tokens that fill up the last chunk are zero: they keep the state (dt = 0)."""
    padded = F.pad(value, (0, 0, 0, chunks * length - value.shape[1]))
    return padded.view(-1, length, value.shape[2]).transpose(0, 1).contiguous()


class _SelectiveScan(torch.autograd.Function):
    """y and last states from dt, u = dt x [L, R, 1, C], a [N, C], b [L, R, N, 1], c [L, R, 1, N], state [B, N, C]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        dt, u, a, b, c, state = inputs
        a = a.contiguous()
        starts, end = _starts(dt, u, a, b, state)
        s, y = starts.clone(), torch.empty_like(u)
        for decay, u_now, b_now, c_now, y_now in _steps(dt, a, u, b, c, y):
            s.mul_(decay).addcmul_(u_now, b_now)
            torch.bmm(c_now, s, out=y_now)
        ctx.save_for_backward(dt, u, a, b, c, starts)
        return y, s if len(starts) == len(state) else end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        dt, u, a, b, c, starts = ctx.saved_tensors
        dy, dend = grads[0].contiguous(), grads[1].contiguous()
        states = _states(dt, u, a, b, starts)  # [L + 1, R, N, C], the start of each chunk first
        g = _ends(dt, a, c, dy, dend)  # gradient of the states, from later tokens
        ddt, du, db, da = torch.empty_like(dt), torch.empty_like(u), torch.empty_like(b), torch.zeros_like(g)
        now = (u, b, c.transpose(2, 3), dt, states[:-1], dy, ddt, du, db)
        for decay, u_now, b_now, c_now, dt_now, before, dy_now, *made in _steps(dt, a, *now, back=True):
            g.addcmul_(c_now, dy_now)
            torch.sum(g * b_now, 1, keepdim=True, out=made[1])
            torch.sum(g * u_now, 2, keepdim=True, out=made[2])
            slope = g.mul_(decay) * before  # by the exponent dt a
            da.addcmul_(slope, dt_now)
            torch.sum(slope.mul_(a), 1, keepdim=True, out=made[0])
        dc = torch.matmul(dy, states[1:].transpose(2, 3))
        return ddt, du, da.sum(0), db, dc, g.view(len(dend), -1, *a.shape)[:, 0]


def _steps(dt: Tensor, a: Tensor, *others: Tensor, back: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Step by step exp(dt a) [R, N, C], made in one place that the next step overwrites, and slices of the others."""
    room, rates = dt.new_empty(dt.shape[1], *a.shape), a * _LOG2_E
    slices = zip(*(value.unbind() for value in (dt, *others)), strict=True)
    for now, *rest in reversed(list(slices)) if back else slices:
        yield torch.mul(now, rates, out=room).exp2_(), *rest


def _starts(dt: Tensor, u: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk [R, N, C], and after the last one [B, N, C] (not known when there is one chunk)."""
    batch, chunks = len(state), dt.shape[1] // len(state)
    if chunks == 1:
        return state.contiguous(), state
    added = dt.new_zeros(dt.shape[1], *a.shape)
    for decay, u_now, b_now in _steps(dt, a, u, b):
        added.mul_(decay).addcmul_(u_now, b_now)
    whole, added = _over_chunks(dt, a, batch), added.view(batch, chunks, *a.shape)
    found = [state]
    for index in range(chunks):
        found.append(whole[:, index] * found[-1] + added[:, index])
    return torch.stack(found[:-1], 1).flatten(0, 1), found[-1]


def _ends(dt: Tensor, a: Tensor, c: Tensor, dy: Tensor, dend: Tensor) -> Tensor:
    """Gradient of the states after each chunk [R, N, C], from what comes later."""
    batch, chunks = len(dend), dt.shape[1] // len(dend)
    if chunks == 1:
        return dend.clone()
    added = dt.new_zeros(dt.shape[1], *a.shape)
    for decay, c_now, dy_now in _steps(dt, a, c.transpose(2, 3), dy, back=True):
        added.addcmul_(c_now, dy_now).mul_(decay)
    whole, added = _over_chunks(dt, a, batch), added.view(batch, chunks, *a.shape)
    found = [dend]
    for index in reversed(range(1, chunks)):
        found.append(whole[:, index] * found[-1] + added[:, index])
    return torch.stack(found[::-1], 1).flatten(0, 1)


def _over_chunks(dt: Tensor, a: Tensor, batch: int) -> Tensor:
    """Decay over each whole chunk [B, K, N, C]."""
    return (dt.sum(0) * (a * _LOG2_E)).exp2_().view(batch, -1, *a.shape)


def _states(dt: Tensor, u: Tensor, a: Tensor, b: Tensor, starts: Tensor) -> Tensor:
    states = dt.new_empty(len(dt) + 1, *starts.shape)
    states[0] = starts
    for decay, before, u_now, b_now, after in _steps(dt, a, states[:-1], u, b, states[1:]):
        torch.addcmul(decay.mul_(before), u_now, b_now, out=after)
    return states


def ssd_scan_reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token; arguments and results as in `ssd_scan`."""
    heads = x.shape[2] // b.shape[2]
    b, c = (value.repeat_interleave(heads, 2) for value in (b, c))
    s = x.new_zeros(*x[:, 0].shape, b.shape[3]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        decay, u = torch.exp(dt[:, t] * a)[..., None, None], (dt[:, t, :, None] * x[:, t])[..., None]
        s = decay * s + u * b[:, t, :, None]
        outputs.append((s * c[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1), s


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = SSD_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scan of Mamba-2 as matrix products within chunks and a recurrence over chunks.

    Args:
        x: Inputs, Tensor[B, T, H, P] with T of at least 1.
        dt: Step sizes, not negative: Tensor[B, T, H].
        a: Decay rate of each head, negative: Tensor[H].
        b: What the inputs do to the states, Tensor[B, T, G, N]; G divides H.
        c: How the outputs read the states, Tensor[B, T, G, N].
        state: States before the first token, Tensor[B, H, P, N] (default: zero).
        chunk: Tokens per chunk; the result is the same for all.

    Returns:
        Outputs Tensor[B, T, H, P] and the states after the last token Tensor[B, H, P, N], both in float32.
    """
    (batch, tokens, heads, width), (groups, states) = x.shape, b.shape[2:]
    length = min(chunk, tokens)
    x, dt, b, c = (
        _chunked(value.float(), length, groups) for value in (x, dt[..., None], b, c)
    )  # [B, K, G, H/G, L, ·]
    # in float64, because a small exponent is the difference of two large ones
    total = (dt[..., 0].double() * (a.double() * _LOG2_E).view(groups, -1, 1)).cumsum(-1)
    u, decay = x * dt, total.float().exp2()[..., None]
    within = _within(total) * (c @ b.transpose(-1, -2))
    to_end = (total[..., -1:] - total).float().exp2()[..., None]
    added = (u * to_end).transpose(-1, -2) @ b  # [B, K, G, H/G, P, N]
    s = x.new_zeros(batch, heads, width, states) if state is None else state.float()
    s, starts = s.reshape(batch, groups, -1, width, states), []
    for index in range(added.shape[1]):
        starts.append(s)
        s = decay[:, index, ..., -1:, :] * s + added[:, index]
    y = within @ u + decay * (c @ torch.stack(starts, 1).transpose(-1, -2))
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, -1, heads, width)
    return y[:, :tokens], s.reshape(batch, heads, width, states)


def _chunked(value: Tensor, length: int, groups: int) -> Tensor:
    """[B, T, M, ·] to [B, K, G, M/G, L, ·]; tokens that fill up the last chunk are zero."""
    padded = F.pad(value, (0, 0, 0, 0, 0, -value.shape[1] % length))
    return padded.view(len(value), -1, length, groups, value.shape[2] // groups, value.shape[3]).permute(
        0, 1, 3, 4, 2, 5
    )


def _within(total: Tensor) -> Tensor:
    """Decay from token j to token i of a chunk [..., i, j], zero where j comes later; from exponents of 2."""
    exponents = (total[..., :, None] - total[..., None, :]).float()
    later = torch.ones(exponents.shape[-2:], dtype=torch.bool, device=total.device).triu(1)
    return exponents.masked_fill(later, -math.inf).exp2()
