"""What noise promises: against numbers of others, and identities."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import ConfigError
from lissome.ops.privacy import delta_of, epsilon


def test_delta_is_what_an_integral_says() -> None:
    """δ = ∫ max(0, p − e^ε·q) over the two neighbouring normal distributions."""
    for mu, eps in ((1.0, 0.5), (0.5, 1.0), (2.0, 3.0)):
        step, total = 1e-3, 0.0
        for index in range(-12000, 12000):
            x = index * step
            here = math.exp(-((x - mu) ** 2) / 2) - math.exp(eps - x * x / 2)
            total += max(0.0, here) * step / math.sqrt(2 * math.pi)
        assert delta_of(eps, mu) == pytest.approx(total, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 20), st.integers(1, 500), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_epsilon_is_the_smallest_that_holds(noise: float, releases: int, delta: float) -> None:
    found = epsilon(noise, releases, delta)
    mu = math.sqrt(releases) / noise
    if math.isinf(found):
        assert delta_of(1e12, mu) > delta
        return
    assert delta_of(found, mu) <= delta * (1 + 1e-6)
    if found > 1e-6:
        assert delta_of(found * 0.999, mu) > delta
    assert found <= mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)), "Rényi accounting promises no more"
    assert epsilon(noise, 4 * releases, delta) == pytest.approx(epsilon(noise / 2, releases, delta), rel=1e-6)


def test_little_noise_has_a_large_epsilon_and_not_an_endless_one() -> None:
    """A federation writes down what it promises after every round: a number, however bad."""
    for releases in (1, 3, 1000):
        mu = math.sqrt(releases) / 0.01
        assert epsilon(0.01, releases, 1e-5) == pytest.approx(mu * mu / 2 + mu * 4.2649, rel=1e-3)


def test_nothing_released_promises_all() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    for noise, delta in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ConfigError, match="above 0"):
            epsilon(noise, 1, delta)
