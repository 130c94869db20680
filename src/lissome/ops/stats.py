"""How sure a number is: bootstrap intervals, ratios of medians, McNemar's exact test, rank correlations.

Compression changes a model a little, while windows and questions differ a lot; so two models are always compared on
the *same* windows or questions, and what is resampled are the pairs (Efron & Tibshirani 1993, chapters 13 and 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 4000
"""Bootstrap draws: the ends of a 95 % interval then move by about 2 % of its width between seeds."""

_CELLS = 1 << 22  # resampled values held at a time (32 MB of float64)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its spread.

    Attributes:
        value: The estimate.
        se: Its standard error; NaN when there is one sample only.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Samples behind it.
    """

    value: float
    se: float
    low: float
    high: float
    n: int


def mean_se(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and its standard error (NaN for fewer than two values).

    Raises:
        ValueError: When there is no value.
    """
    data = _samples(values)
    spread = float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 else math.nan
    return float(data.mean()), spread


def paired_bootstrap(differences: ArrayLike, *, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Return the mean of paired differences with a 95 % percentile bootstrap interval.

    Args:
        differences: One number per pair (model minus baseline), float[n].
        seed: Seed of the resampling.
        draws: Bootstrap samples.

    Raises:
        ValueError: When there is no pair.
    """
    data = _samples(differences)
    value, se = mean_se(data)
    means = np.concatenate([data[index].mean(axis=1) for index in _resamples(len(data), seed, draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value=value, se=se, low=float(low), high=float(high), n=len(data))


def ratio_of_medians(
    values: ArrayLike, baseline: ArrayLike, *, paired: bool = True, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Return median(values) / median(baseline) with a 95 % percentile bootstrap interval.

    Meant for interleaved timings: in one round both are measured once, so the rounds are what is resampled.

    Args:
        values: Measurements of the model, float[n].
        baseline: Measurements of the baseline, float[m]; `n == m` when paired.
        paired: Resample rounds together; else each series for itself.
        seed: Seed of the resampling.
        draws: Bootstrap samples.

    Raises:
        ValueError: When a series is empty, the median of the baseline is 0, or paired series differ in length.
    """
    top, bottom = _samples(values), _samples(baseline)
    if paired and len(top) != len(bottom):
        raise ValueError(f"paired series must have equal lengths, got {len(top)} and {len(bottom)}.")
    if np.median(bottom) == 0:
        raise ValueError("the baseline's median is 0; a ratio to it means nothing.")
    below = _bootstrap_medians(bottom, seed if paired else seed + 1, draws)
    drawn = _bootstrap_medians(top, seed, draws) / np.where(below == 0, np.nan, below)
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    spread = float(np.nanstd(drawn, ddof=1)) if len(top) > 1 else math.nan
    value = float(np.median(top) / np.median(bottom))
    return Interval(value=value, se=spread, low=float(low), high=float(high), n=len(top))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value of McNemar's test (1947).

    Args:
        only_first: Questions that only the first model answers correctly.
        only_second: Questions that only the second model answers correctly.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if fewer < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}.")
    # Python's integers make this exact for any count; the sum passes 1/2 when the counts are (nearly) equal.
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation, equal values sharing their mean rank; NaN when a series is constant.

    Raises:
        ValueError: When the series are empty or differ in length.
    """
    a, b = (_mean_ranks(one) for one in _pairs(first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread else math.nan


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's tau-b: pairs in the same order minus pairs in another, ties left out; NaN as in `spearman`.

    Raises:
        ValueError: When the series are empty or differ in length.
    """
    a, b = (np.sign(one[:, None] - one[None, :]) for one in _pairs(first, second))
    spread = math.sqrt(float(np.abs(a).sum()) * float(np.abs(b).sum()))
    return float((a * b).sum()) / spread if spread else math.nan


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _samples(first), _samples(second)
    if len(a) != len(b):
        raise ValueError(f"paired series must have equal lengths, got {len(a)} and {len(b)}.")
    return a, b


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[places.reshape(-1)]


def _samples(values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(data):
        raise ValueError("no sample was given; at least one is needed.")
    return data


def _bootstrap_medians(data: NDArray[np.float64], seed: int, draws: int) -> NDArray[np.float64]:
    return np.concatenate([np.median(data[index], axis=1) for index in _resamples(len(data), seed, draws)])


def _resamples(size: int, seed: int, draws: int) -> Iterator[NDArray[np.int64]]:
    """Yield blocks of resampled indices, int[draws_i, size]; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // size)
    for start in range(0, draws, step):
        yield rng.integers(0, size, (min(step, draws - start), size))
