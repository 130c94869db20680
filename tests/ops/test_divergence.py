"""The divergence from a few tokens and a bucket: never more than the whole one, equal to it with all tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div, log_softmax

from lissome.ops.divergence import opinion, rows_divergence


def _case(seed: int, rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = 3 * torch.randn(vocabulary, 5, generator=generator)
    first = torch.randn(rows, 5, generator=generator)
    return weight, first, first + 0.5 * torch.randn(rows, 5, generator=generator)


def _whole(weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    one, two = (log_softmax(states @ weight.T, -1) for states in (first, second))
    return kl_div(two, one, reduction="none", log_target=True).sum(-1)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 70), vocabulary=st.integers(3, 90), top=st.integers(1, 99),
    chunk=st.integers(1, 50),
)  # fmt: skip
def test_it_is_between_zero_and_the_whole_divergence(
    seed: int, rows: int, vocabulary: int, top: int, chunk: int
) -> None:
    weight, first, second = _case(seed, rows, vocabulary)
    head = lambda states: states @ weight.T  # noqa: E731
    found = rows_divergence(second, opinion(first, head, top=top, chunk=chunk), head, chunk=chunk)
    whole = _whole(weight, first, second)
    assert found.shape == (rows,)
    assert bool((found >= 0).all())
    assert bool((found <= whole + 1e-4 * (1 + whole)).all())
    if top >= vocabulary:
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)


def test_more_tokens_never_see_less() -> None:
    weight, first, second = _case(0, 20, 50)
    head = lambda states: states @ weight.T  # noqa: E731
    sums = [float(rows_divergence(second, opinion(first, head, top=top), head).sum()) for top in (1, 4, 16, 50)]
    assert sums == sorted(sums)
    assert sums[0] < sums[-1]


def test_the_original_is_at_distance_zero() -> None:
    weight, first, _ = _case(1, 9, 40)
    found = rows_divergence(first, opinion(first, lambda states: states @ weight.T, top=8), lambda s: s @ weight.T)
    assert float(found.abs().max()) == pytest.approx(0, abs=1e-5)
