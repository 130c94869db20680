"""Fronts and volumes against definitions written out, on random points."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.engine.search.pareto import dominates, front, hypervolume, ranks, reference_of

POINTS = st.integers(1, 3).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(0, 9).map(float)] * size), min_size=1, max_size=25)
)


@given(POINTS)
def test_a_front_has_no_dominated_point_and_leaves_none_out(values: list[tuple[float, ...]]) -> None:
    best = front(values)
    for index, value in enumerate(values):
        beaten = any(dominates(other, value) for other in values)
        assert (index in best) != beaten


@given(POINTS)
def test_each_rank_is_the_front_of_what_is_left(values: list[tuple[float, ...]]) -> None:
    found = ranks(values)
    for rank in range(max(found) + 1):
        left = [index for index, each in enumerate(found) if each >= rank]
        assert [left[place] for place in front([values[index] for index in left])] == [
            index for index in left if found[index] == rank
        ]


@given(POINTS)
def test_hypervolume_never_falls_and_does_not_know_dominated_points(values: list[tuple[float, ...]]) -> None:
    edge = (9.5,) * len(values[0])
    volumes = [hypervolume(values[:count], edge) for count in range(len(values) + 1)]
    assert volumes[0] == 0
    assert volumes == sorted(volumes)
    assert hypervolume([values[index] for index in front(values)], edge) == pytest.approx(volumes[-1])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_hypervolume_counts_the_cells_behind_the_points(cells: list[tuple[int, int]]) -> None:
    covered = {(x, y) for x in range(10) for y in range(10) if any(a <= x and b <= y for a, b in cells)}
    assert hypervolume([(float(a), float(b)) for a, b in cells], (10.0, 10.0)) == pytest.approx(len(covered))


def test_what_lies_beyond_the_reference_or_is_infinite_adds_nothing() -> None:
    assert hypervolume([(1.0, 1.0), (math.inf, 0.0), (3.0, 0.0)], (2.0, 2.0)) == 1.0
    assert hypervolume([], (1.0,)) == 0.0
    assert reference_of([(0.0, 5.0), (10.0, 5.0)]) == pytest.approx((11.0, 5.5))
    assert front([(math.inf, 1.0), (0.0, 2.0)]) == [0, 1]
