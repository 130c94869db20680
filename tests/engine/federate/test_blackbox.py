"""What clients say of candidates: the mean of all, in which nobody speaks louder than the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissome.engine.federate.blackbox import agreed


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000))
def test_of_clients_that_are_alike_it_is_the_weighted_mean(clients: int, candidates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = 2 + torch.rand(clients, candidates, generator=generator).double()
    losses[:, 0], losses[:, 1] = 2.0, 3.0  # all have the same spread
    weights = 1 + torch.rand(clients, generator=generator).double()
    torch.testing.assert_close(agreed(losses, weights), weights @ losses / weights.sum())


@pytest.mark.parametrize("loud", [1e3, 1e6, -1e6])
def test_one_liar_among_several_does_not_decide(loud: float) -> None:
    honest = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.1, 1.9, 3.2, 4.1], [0.9, 2.2, 3.1, 3.8]]).double()
    lie = torch.full((1, 4), 5.0).double()
    lie[0, 0] += loud  # of the best candidate
    lie[0, 3] -= loud
    said = agreed(torch.cat([honest, lie]), torch.ones(4).double())
    plain = torch.cat([honest, lie]).mean(0)
    assert (plain.argmin() != 0) == (loud > 0)
    assert (said - honest.mean(0)).abs().max() < (plain - honest.mean(0)).abs().max() / 50
    assert said[1:3].argmin() == 0
