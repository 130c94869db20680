"""What noise promises: (ε, δ) of Gaussian noise added several times.

T releases of a sum to which one participant adds at most C in L2, each with noise of z·C, are together one release with
noise z·C/√T. Its δ for an ε is exact (Balle & Wang 2018, arXiv 1805.06530, theorem 8), with μ = √T/z:

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ)
"""

from __future__ import annotations

import math

from lissome.core.errors import ConfigError

_MOST = 1e12  # an ε beyond which nothing is promised, and rounding decides


def epsilon(noise: float, releases: int, delta: float) -> float:
    """Return the smallest ε that holds with probability 1 − δ.

    Args:
        noise: z, standard deviation of the noise over the most that one participant adds.
        releases: T.
        delta: δ, above 0 and below 1.

    Raises:
        ConfigError: When a number is out of range.
    """
    if not (noise > 0 and releases >= 0 and 0 < delta < 1):
        raise ConfigError(
            f"privacy needs noise above 0 and delta in (0, 1), got {noise} and {delta} for {releases} releases."
        )
    if not releases:
        return 0.0
    mu = math.sqrt(releases) / noise
    low, high = 0.0, 1.0
    if delta_of(low, mu) <= delta:
        return 0.0
    while delta_of(high, mu) > delta:
        low, high = high, 2 * high
        if high > _MOST:
            return math.inf
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > delta else (low, middle)
    return high


def delta_of(epsilon: float, mu: float) -> float:
    """Return δ of a Gaussian mechanism whose sensitivity is μ standard deviations of its noise."""
    return _phi(mu / 2 - epsilon / mu) - math.exp(epsilon + _log_phi(-mu / 2 - epsilon / mu))


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """Log Φ(x); far out by its expansion, where Φ itself is 0."""
    if x > -30:
        return math.log(_phi(x))
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / (x * x))
