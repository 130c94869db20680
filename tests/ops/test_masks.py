"""Masks equal their plain references and have the zeros that were asked for; SparseGPT makes up for its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.errors import ConfigError, NumericsError
from lissome.ops.masks import (
    Pattern,
    lowest_zeroed,
    magnitude,
    magnitude_ref,
    sparsegpt,
    sparsegpt_ref,
    wanda,
    wanda_ref,
    zeros,
    zeros_of,
)

SHARES = st.sampled_from([0.0, 0.29, 0.4, 0.5, 0.7, 0.99])


def drawn(seed: int, rows: int, columns: int, *, coarse: bool = False) -> tuple[Tensor, Tensor]:
    """A weight and inputs [T, C]; coarse ones have ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(rows, columns, generator=generator), torch.randn(17, columns, generator=generator)
    return (weight.mul(2).round(), inputs.round()) if coarse else (weight, inputs)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 13), share=SHARES, coarse=st.booleans()
)
def test_wanda_equals_its_reference(seed: int, rows: int, columns: int, share: float, coarse: bool) -> None:
    weight, inputs = drawn(seed, rows, columns, coarse=coarse)
    norms = inputs.double().square().sum(0).sqrt()
    mask = wanda(weight, norms, share)
    assert torch.equal(mask, wanda_ref(weight.double(), norms, share))
    assert ((~mask).sum(1) == zeros(columns, share)).all(), "every row loses the same number"
    assert int((~mask).sum()) == zeros_of((rows, columns), share)
    assert torch.equal(wanda(weight.T.contiguous().T, norms, share), mask), "the memory layout does not matter"


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 13), share=SHARES)
def test_magnitude_equals_its_reference(seed: int, rows: int, columns: int, share: float) -> None:
    weight, _ = drawn(seed, rows, columns)
    for per in ("row", "layer"):
        mask = magnitude(weight, share, per)
        assert torch.equal(mask, magnitude_ref(weight, share, per))
        assert int((~mask).sum()) == zeros_of((rows, columns), share, per)


def test_wanda_with_equal_norms_is_magnitude() -> None:
    weight, _ = drawn(0, 6, 20)
    assert torch.equal(wanda(weight, torch.ones(20), 0.5), magnitude(weight, 0.5))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), columns=st.sampled_from([1, 7, 40, 150]), share=SHARES)
def test_sparsegpt_equals_its_reference(seed: int, rows: int, columns: int, share: float) -> None:
    weight, inputs = drawn(seed, rows, columns)
    inputs[:, columns // 2] = 0  # an input that is never fed
    hessian = inputs.double().T @ inputs.double()
    (fast, mask), (plain, expected) = sparsegpt(weight, hessian, share), sparsegpt_ref(weight, hessian, share)
    assert torch.equal(mask, expected)
    assert (fast[~mask] == 0).all()
    assert int((~mask).sum()) == zeros_of((rows, columns), share, "block")
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_sparsegpt_errs_less_than_magnitude_on_correlated_inputs(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 48, generator=generator)
    inputs = torch.randn(400, 12, generator=generator) @ mixing + 0.3 * torch.randn(400, 48, generator=generator)
    weight = torch.randn(32, 48, generator=generator)

    def error(changed: Tensor) -> float:
        return float((inputs @ (changed - weight).T).square().sum())

    changed, _ = sparsegpt(weight, inputs.T @ inputs, share)
    masked = weight * magnitude(weight, share)
    by_inputs = weight * wanda(weight, inputs.norm(dim=0), share)
    assert error(changed) < 0.7 * error(masked)
    assert error(changed) < error(by_inputs)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    groups=st.integers(1, 70),
    pair=st.sampled_from([(2, 4), (1, 3)]),
)
def test_patterns_keep_so_many_of_each_group(seed: int, rows: int, groups: int, pair: tuple[int, int]) -> None:
    pattern = Pattern(*pair)
    weight, inputs = drawn(seed, rows, groups * pattern.of)
    norms = inputs.norm(dim=0)
    found = (
        wanda(weight, norms, pattern),
        magnitude(weight, pattern, "layer"),
        sparsegpt(weight, inputs.T @ inputs, pattern)[1],
    )
    for mask in found:
        assert (mask.view(rows, groups, pattern.of).sum(-1) == pattern.kept).all()
        assert int((~mask).sum()) == zeros_of(tuple(weight.shape), pattern)
    scores = (weight.abs() * norms).view(rows, groups, pattern.of)
    lowest = scores.masked_fill(~found[0].view_as(scores), torch.inf).amin(-1)
    dropped = scores.masked_fill(found[0].view_as(scores), -torch.inf).amax(-1)
    assert (lowest >= dropped).all()


@pytest.mark.parametrize("text", ["", "4", "2:", "4:4", "0:4", "a:b", "-1:2", "2:4:8"])
def test_patterns_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="2:4"):
        Pattern.parse(text)


def test_refusals() -> None:
    weight, inputs = drawn(0, 2, 6)
    with pytest.raises(ConfigError, match="multiple of 4"):
        lowest_zeroed(weight, Pattern.parse("2:4"))
    hessian = inputs.T @ inputs
    hessian[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        sparsegpt(weight, hessian, 0.5)
    assert str(Pattern.parse("2:4")) == "2:4" and Pattern.parse("2:4").sparsity == 0.5
