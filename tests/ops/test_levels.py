"""Levels by k-means: the best that there are, and each precision's clusters are halves of those before."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lissome.ops.levels import Histogram, clusters, means, split


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(100, size, replace=False)).astype(float), rng.random(size) ** 3 + 1e-3


def error(places: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> float:
    found = 0.0
    for first, last in pairwise(edges):
        if last > first:
            mean = np.average(places[first:last], weights=counts[first:last])
            found += float((np.square(places[first:last] - mean) * counts[first:last]).sum())
    return found


@given(seed=st.integers(0, 999), size=st.integers(1, 10), count=st.integers(1, 5))
def test_no_other_clusters_are_better(seed: int, size: int, count: int) -> None:
    places, counts = drawn(seed, size)
    edges = clusters(places, counts, count)
    assert len(edges) == count + 1
    assert (edges[0], edges[-1]) == (0, size)
    assert (np.diff(edges) >= 0).all()
    every = [np.array([0, *inner, size]) for inner in combinations(range(1, size), min(count, size) - 1)]
    assert error(places, counts, edges) <= min(error(places, counts, one) for one in every) + 1e-9


@given(seed=st.integers(0, 999), size=st.integers(1, 20), count=st.integers(1, 4))
def test_every_cluster_is_split_where_it_is_best(seed: int, size: int, count: int) -> None:
    places, counts = drawn(seed, size)
    before = clusters(places, counts, count)
    after = split(places, counts, before)
    assert np.array_equal(after[::2], before)
    for (first, last), middle in zip(pairwise(before), after[1::2], strict=True):
        assert first <= middle <= last
        inside = places[first:last], counts[first:last]
        halves = error(*inside, np.array([0, middle - first, last - first]))
        others = [error(*inside, np.array([0, at, last - first])) for at in range(1, last - first)]
        assert halves <= min(others, default=0.0) + 1e-9


def test_an_empty_cluster_has_the_level_of_the_one_before_it() -> None:
    places, counts = np.array([1.0, 5.0]), np.ones(2)
    assert means(places, counts, clusters(places, counts, 4)).tolist() == [1, 5, 5, 5]
    assert means(places, counts, split(places, counts, clusters(places, counts, 2))).tolist() == [1, 1, 5, 5]


def test_pieces_make_the_histogram_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    groups, counts = rng.standard_normal((12, 3, 32), np.float32), rng.random((12, 3, 32), np.float32)
    whole, pieces = Histogram(), Histogram()
    whole.add(groups, counts)
    for first in range(0, 12, 5):
        pieces.add(groups[first : first + 5], counts[first : first + 5])
    found, again = whole.levels((3, 1)), pieces.levels((3, 1))
    assert found.keys() == {3, 4}
    assert all(np.array_equal(found[bits], again[bits]) for bits in found)


def test_levels_lie_where_weights_do() -> None:
    groups = np.array([[[0, 0.1, 0.1, 0.1, 0.9, 0.9, 1, 1]]], np.float32)
    histogram = Histogram()
    histogram.add(groups, np.where(groups == 0, 0, 1).astype(np.float32))
    assert histogram.levels((2,))[2].tolist() == [26, 230, 255, 255]  # 25.5 and 229.5, to even
