"""Fast scans against the recurrence token by token: any shape, chunk, start, size of step; gradients too."""

# B sequences, T tokens, C channels, N states, H heads of P channels, G groups

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lissome.ops.scan import selective_scan, selective_scan_reference, ssd_scan, ssd_scan_reference

Scan = Callable[..., tuple[Tensor, Tensor]]
_SIZES = st.integers(1, 5)
_STEPS = st.sampled_from([1e-4, 0.1, 1.0, 30.0])  # sizes of a step: the state hardly moves … is forgotten at once


def _mamba1(seed: int, tokens: int, sizes: tuple[int, int, int], size: float, *, start: bool) -> list[Tensor]:
    batch, channels, states = sizes
    rng = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(batch, tokens, channels, generator=rng),
        size * torch.rand(batch, tokens, channels, generator=rng),
        -16 * torch.rand(channels, states, generator=rng),
        torch.randn(batch, tokens, states, generator=rng),
        torch.randn(batch, tokens, states, generator=rng),
    ]
    return [*inputs, torch.randn(batch, channels, states, generator=rng)] if start else inputs


def _mamba2(seed: int, tokens: int, sizes: tuple[int, int, int], size: float, *, start: bool) -> list[Tensor]:
    groups, heads, states = sizes  # heads per group; two sequences and three channels per head
    rng = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(2, tokens, groups * heads, 3, generator=rng),
        size * torch.rand(2, tokens, groups * heads, generator=rng),
        -16 * torch.rand(groups * heads, generator=rng),
        torch.randn(2, tokens, groups, states, generator=rng),
        torch.randn(2, tokens, groups, states, generator=rng),
    ]
    return [*inputs, torch.randn(2, groups * heads, 3, states, generator=rng)] if start else inputs


_KINDS = [
    pytest.param((selective_scan, selective_scan_reference, _mamba1), id="mamba-1"),
    pytest.param((ssd_scan, ssd_scan_reference, _mamba2), id="mamba-2"),
]


def _far(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-6))


@pytest.mark.parametrize("kind", _KINDS)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 40),
    sizes=st.tuples(_SIZES, _SIZES, _SIZES),
    size=_STEPS,
    chunk=st.integers(1, 50),
    start=st.booleans(),
)
@example(seed=0, tokens=7, sizes=(2, 3, 4), size=1.0, chunk=1, start=True)
@example(seed=0, tokens=7, sizes=(2, 3, 4), size=1.0, chunk=3, start=True)
@example(seed=0, tokens=7, sizes=(2, 3, 4), size=1.0, chunk=7, start=False)
def test_any_chunk_gives_the_recurrence(kind, seed, tokens, sizes, size, chunk, start) -> None:
    fast, reference, make = kind
    inputs = make(seed, tokens, sizes, size, start=start)
    exact = reference(*(value.double() for value in inputs))
    got = fast(*inputs, chunk=chunk)
    for one, other in zip(got, exact, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        assert _far(one, other) <= 1e-5


@pytest.mark.parametrize("kind", _KINDS)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 12),
    sizes=st.tuples(_SIZES, _SIZES, _SIZES),
    size=_STEPS,
    chunk=st.integers(1, 13),
    start=st.booleans(),
)
def test_gradients_are_those_of_the_recurrence(kind, seed, tokens, sizes, size, chunk, start) -> None:
    fast, reference, make = kind
    inputs = make(seed, tokens, sizes, size, start=start)

    def gradients(scan: Scan, dtype: torch.dtype, **options: int) -> list[Tensor]:
        leaves = [value.to(dtype).requires_grad_() for value in inputs]
        weights = torch.Generator().manual_seed(1)
        loss = sum(
            (value * torch.randn(value.shape, generator=weights).to(dtype)).sum() for value in scan(*leaves, **options)
        )
        return list(torch.autograd.grad(loss, leaves))

    exact = gradients(reference, torch.float64)
    for one, other in zip(gradients(fast, torch.float32, chunk=chunk), exact, strict=True):
        assert _far(one, other) <= 1e-4


@pytest.mark.parametrize("kind", _KINDS)
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 30), cut=st.integers(1, 29), chunk=st.integers(1, 9))
def test_two_halves_are_the_whole(kind, seed, tokens, cut, chunk) -> None:
    fast, _, make = kind
    cut = 1 + cut % (tokens - 1)
    x, dt, a, b, c = make(seed, tokens, (2, 3, 4), 1.0, start=False)
    whole, end = fast(x, dt, a, b, c, chunk=chunk)
    first, middle = fast(x[:, :cut], dt[:, :cut], a, b[:, :cut], c[:, :cut], chunk=chunk)
    second, last = fast(x[:, cut:], dt[:, cut:], a, b[:, cut:], c[:, cut:], middle, chunk=chunk)
    assert _far(torch.cat([first, second], 1), whole.double()) <= 1e-5
    assert _far(last, end.double()) <= 1e-5


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("size", [1e-3, 100.0])
def test_long_sequences_do_not_overflow(kind, size) -> None:
    fast, reference, make = kind
    inputs = make(0, 5000, (1, 2, 3), size, start=True)  # exponents add up to -8 million
    exact = reference(*(value.double() for value in inputs))
    for one, other in zip(fast(*inputs), exact, strict=True):
        assert torch.isfinite(one).all()
        assert _far(one, other) <= 1e-5


@pytest.mark.parametrize("kind", _KINDS)
def test_large_steps_after_small_ones_keep_their_digits(kind) -> None:
    fast, reference, make = kind
    inputs = make(0, 64, (1, 2, 3), 1.0, start=True)
    inputs[1][:, 3] = 1e4  # the sum of the exponents jumps; differences after the jump must still be right
    exact = reference(*(value.double() for value in inputs))
    for one, other in zip(fast(*inputs), exact, strict=True):
        assert _far(one, other) <= 1e-5


@pytest.mark.parametrize("kind", _KINDS)
def test_half_precision_and_strided_inputs_are_taken(kind) -> None:
    fast, reference, make = kind
    inputs = [value.bfloat16() for value in make(0, 9, (2, 3, 4), 1.0, start=False)]
    strided = [value.transpose(0, 1).contiguous().transpose(0, 1) for value in inputs[:2]] + inputs[2:]
    for one, other in zip(fast(*strided), reference(*(value.double() for value in inputs)), strict=True):
        assert one.dtype == torch.float32
        assert _far(one, other) <= 1e-5


def test_inputs_are_left_alone() -> None:
    inputs = _mamba1(0, 20, (2, 3, 4), 1.0, start=True)
    before = [value.clone() for value in inputs]
    selective_scan(*inputs, chunk=4)
    selective_scan(*inputs, chunk=20)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))


@pytest.mark.parametrize("kind", _KINDS)
def test_fast_takes_few_steps_where_the_recurrence_takes_one_per_token(kind) -> None:
    """What runs is counted, not timed: a busy machine decides nothing."""
    fast, reference, make = kind
    inputs = make(0, 1024, (1, 16, 16), 0.1, start=False)
    assert _operators(fast, inputs) < 0.2 * _operators(reference, inputs)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _operators(scan: Scan, inputs: list[Tensor]) -> int:
    with _Counter() as counter:
        scan(*inputs)
    return counter.calls
