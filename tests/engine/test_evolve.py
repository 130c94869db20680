"""The evolution strategy: it finds minima of functions with unlike scales, and repeats itself."""

from __future__ import annotations

import pytest
import torch

from lissome.engine.evolve import Evolution


def minimised(size: int, scales: torch.Tensor, rounds: int, interrupted: int | None = None) -> tuple[float, Evolution]:
    made = Evolution(size)
    for number in range(rounds):
        if number == interrupted:
            state, made = made.state(), Evolution(size)
            made.restore(state)
        drawn = made.ask(torch.Generator().manual_seed(number))
        made.tell(drawn, ((drawn - 1.5) * scales).square().sum(1))
    return float(((made.mean - 1.5) * scales).square().sum()), made


@pytest.mark.parametrize("size", [1, 3, 20])
def test_it_finds_the_minimum_of_an_ellipsoid(size: int) -> None:
    scales = torch.logspace(0, 2, size, dtype=torch.float64)
    first, _ = minimised(size, scales, 1)
    last, made = minimised(size, scales, 400)
    assert last < 1e-6 * first
    assert torch.allclose(made.mean, torch.full((size,), 1.5, dtype=torch.float64), atol=1e-2)


def test_what_is_continued_is_the_same() -> None:
    scales = torch.ones(4, dtype=torch.float64)
    straight, one = minimised(4, scales, 20)
    broken, other = minimised(4, scales, 20, interrupted=7)
    assert straight == broken
    assert torch.equal(one.mean, other.mean)
    assert one.candidates == 8, "4 + 3·ln 4"
