"""The chunked losses give what a few lines with all logits give."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.ops.losses import compare, compare_reference, rows_nll, rows_nll_reference, token_nll

SHAPES = st.tuples(st.integers(1, 23), st.integers(1, 9), st.integers(2, 40), st.integers(1, 30), st.integers(0, 10**6))


def problem(tokens: int, width: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw) * 3
    weight = torch.randn(vocabulary, width, generator=draw)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=draw)


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_rows_nll_equals_its_reference(shape: tuple[int, int, int, int, int]) -> None:
    tokens, width, vocabulary, rows, seed = shape
    hidden, weight, targets = problem(tokens, width, vocabulary, seed)
    fast = rows_nll(hidden, targets, lambda h: h @ weight.T, chunk=rows)
    torch.testing.assert_close(fast, rows_nll_reference(hidden, targets, lambda h: h @ weight.T), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_compare_equals_its_reference(shape: tuple[int, int, int, int, int]) -> None:
    tokens, width, vocabulary, rows, seed = shape
    hidden, weight, targets = problem(tokens, width, vocabulary, seed)
    other, other_weight, _ = problem(tokens, width + 1, vocabulary, seed + 1)
    arguments = (hidden, other, targets, lambda h: h @ weight.T, lambda h: h @ other_weight.T)
    for fast, slow in zip(compare(*arguments, chunk=rows), compare_reference(*arguments), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_a_model_does_not_differ_from_itself() -> None:
    hidden, weight, targets = problem(17, 8, 31, 0)
    same = compare(hidden, hidden.clone(), targets, lambda h: h @ weight.T, lambda h: h @ weight.T, chunk=5)
    assert same.kl.abs().max() == 0
    assert same.agrees.all()
    assert torch.equal(same.nll, same.other_nll)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_divergence_is_never_negative(seed: int) -> None:
    hidden, weight, targets = problem(9, 5, 13, seed)
    other, _, _ = problem(9, 5, 13, seed + 1)
    kl = compare(hidden, other, targets, lambda h: h @ weight.T, lambda h: h @ weight.T).kl
    assert kl.min() > -1e-5


def test_gradient_equals_the_reference_gradient() -> None:
    hidden, weight, targets = problem(11, 6, 19, 3)
    gradients = []
    for loss in (rows_nll_reference, lambda h, t, f: rows_nll(h, t, f, chunk=4)):
        leaf, matrix = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss(leaf, targets, lambda h, m=matrix: h @ m.T).mean().backward()
        gradients.append((leaf.grad, matrix.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_only_a_block_of_logits_exists_at_a_time() -> None:
    hidden, weight, targets = problem(100, 4, 50, 0)
    largest = 0

    def head(rows: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(rows))
        return rows @ weight.T

    rows_nll(hidden, targets, head, chunk=7)
    compare(hidden, hidden, targets, head, head, chunk=7)
    assert largest == 7


def test_low_precision_hidden_states_are_summed_in_fp32() -> None:
    hidden, weight, targets = problem(8, 4, 50, 0)
    result = rows_nll(hidden.bfloat16(), targets, lambda h: h @ weight.bfloat16().T)
    assert result.dtype == torch.float32


def test_token_nll_predicts_the_next_token() -> None:
    hidden, weight, ids = problem(12, 6, 19, 5)
    expected = rows_nll_reference(hidden[:-1], ids[1:], lambda h: h @ weight.T)
    torch.testing.assert_close(token_nll(hidden, ids, lambda h: h @ weight.T, chunk=5), expected)
