"""The learning loss and its eager gradient equal the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lissome.ops.distil import Teacher, learning_loss, learning_loss_reference


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor, nn.Linear, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head, other = nn.Linear(6, 17).requires_grad_(False), nn.Linear(9, 17).requires_grad_(False)
    hidden, states = torch.randn(count, 6, generator=generator), torch.randn(count, 9, generator=generator)
    return hidden.requires_grad_(), torch.randint(17, (count,), generator=generator), head, states, other


@pytest.mark.parametrize("count", [1, 7, 8])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_reference(count: int, share: float) -> None:
    hidden, targets, head, states, other = rows(count)
    weights = torch.linspace(-1, 2, count)
    opinion = torch.log_softmax(other(states), -1)
    expected = learning_loss_reference(hidden, targets, head, opinion, share)
    (gradient,) = torch.autograd.grad(expected @ weights, hidden)
    found = learning_loss(hidden, targets, head, teacher=Teacher(states, other, share), chunk=4)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found @ weights, hidden)[0], gradient, atol=1e-6)


def test_without_teacher_it_is_the_text() -> None:
    hidden, targets, head, states, other = rows(9)
    plain = learning_loss(hidden, targets, head, chunk=4)
    assert torch.allclose(plain, nn.functional.cross_entropy(head(hidden), targets, reduction="none"), atol=1e-6)
    assert torch.allclose(learning_loss(hidden, targets, head, teacher=Teacher(states, other, 0.0)), plain, atol=1e-6)


def test_the_best_student_is_the_teacher() -> None:
    hidden, targets, head, _, _ = rows(5)
    same = learning_loss(hidden, targets, head, teacher=Teacher(hidden.detach(), head, 1.0))
    assert torch.allclose(same, torch.zeros(5), atol=1e-6)
    assert float(torch.autograd.grad(same.sum(), hidden)[0].abs().max()) < 1e-6
