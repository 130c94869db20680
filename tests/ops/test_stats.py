"""Intervals that cover, tests that agree with scipy, and results that repeat."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kendalltau, spearmanr

from lissome.ops.stats import kendall, mcnemar_exact, mean_se, paired_bootstrap, ratio_of_medians, spearman

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)
TIMES = st.lists(st.floats(0.1, 100), min_size=1, max_size=20)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.integers(0, 1000))
def test_bootstrap_holds_the_mean_and_repeats(values: list[float], seed: int) -> None:
    result = paired_bootstrap(values, seed=seed, draws=500)
    assert result.low - 1e-9 <= result.high
    assert min(values) - 1e-9 <= result.low
    assert result.high <= max(values) + 1e-9
    assert result.value == pytest.approx(np.mean(values), abs=1e-9)
    assert result == paired_bootstrap(values, seed=seed, draws=500) or math.isnan(result.se)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        result = paired_bootstrap(rng.normal(1.0, 2.0, 40), seed=trial, draws=400)
        hits += result.low <= 1.0 <= result.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 10, 50)
    model, baseline = difficulty + 0.1 + rng.normal(0, 0.01, 50), difficulty
    paired = paired_bootstrap(model - baseline)
    assert paired.low > 0.09
    assert mean_se(model)[1] > 1  # unpaired, the same difference would drown


@settings(deadline=None, max_examples=40)
@given(TIMES, st.floats(0.1, 10))
def test_ratio_of_a_scaled_series_is_the_scale(times: list[float], scale: float) -> None:
    result = ratio_of_medians([scale * time for time in times], times, draws=200)
    assert result.value == pytest.approx(scale)
    assert result.low == pytest.approx(scale)
    assert result.high == pytest.approx(scale)


def test_ratio_of_unpaired_series_may_differ_in_length() -> None:
    result = ratio_of_medians([2.0, 2.2, 1.8], [1.0, 1.1, 0.9, 1.0, 1.05], paired=False, draws=300)
    assert result.low <= result.value <= result.high
    with pytest.raises(ValueError, match="equal lengths"):
        ratio_of_medians([1.0, 2.0], [1.0])


def test_ratio_to_a_zero_median_is_refused() -> None:
    with pytest.raises(ValueError, match="median is 0"):
        ratio_of_medians([1.0], [0.0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    expected = 1.0 if first + second == 0 else binomtest(first, first + second).pvalue
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(first, second) == mcnemar_exact(second, first)


def test_mcnemar_of_many_questions_stays_finite() -> None:
    assert 0 < mcnemar_exact(1100, 1300) < 0.001


def test_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        paired_bootstrap([])
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_one_sample_has_no_standard_error() -> None:
    assert math.isnan(mean_se([3.0])[1])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=25))
def test_rank_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(spearman(first, second)) and math.isnan(kendall(first, second))
        return
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert kendall(first, second) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)


def test_rank_correlations_need_pairs() -> None:
    assert spearman([1, 2, 9], [2, 3, 4]) == kendall([1, 2, 9], [2, 3, 4]) == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        kendall([1.0], [1.0, 2.0])
