"""Levels of codes that are not evenly spaced: weighted 1-D k-means, each cluster split in two for every further bit.

After "any-precision" weights (Park et al. 2024, arXiv 2402.10517): clusters of the lowest precision are those with the
least weighted squared error; every further bit splits each cluster in two, again with the least error, so that a code's
highest bits are the cluster it came from. Levels are the clusters' means. Differs from the paper: weights are placed
between the least and the largest of their group, so that one table serves a matrix; clusters are exact on a fixed grid
by dynamic programming, where `flash1dkmeans` iterates from a guess; and levels are whole numbers from 0 to 255, so that
products stay integers.
"""

# N outputs, J groups, G inputs of a group, n places, k clusters

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TOP = 255
"""The highest level."""
MOST_LEVEL_BITS = 6
"""Bits of a code with levels: 64 levels are one register, and of 128 there are hardly more whole numbers to choose."""
_FINER = 4
_PLACES = TOP * _FINER + 1  # a quarter of a level apart

Levels = dict[int, NDArray[np.uint8]]
"""Levels of all codes by precision, uint8[2^precision], ascending."""
Reals = NDArray[np.float64]
Whole = NDArray[np.intp]


class Histogram:
    """Where the weights of a matrix lie within their groups, gathered piece by piece."""

    def __init__(self) -> None:
        self._counts: Reals = np.zeros(_PLACES)

    def add(self, groups: NDArray[np.float32], counts: NDArray[np.float32]) -> None:
        """Add weights and by what their squared errors count, both float32[N, J, G]."""
        low = groups.min(2, keepdims=True)
        span = groups.max(2, keepdims=True) - low
        places = np.divide(groups - low, span, out=np.zeros_like(groups), where=span > 0) * (_PLACES - 1)
        worth = counts * np.square(span.astype(np.float64))  # errors are in spans of a group
        found = np.bincount(np.rint(places).astype(np.intp).reshape(-1), worth.reshape(-1), _PLACES)
        self._counts += found

    def levels(self, planes: tuple[int, ...]) -> Levels:
        """Return levels for the precisions that these segments of bits make; even ones when nothing counts."""
        used = np.flatnonzero(self._counts)
        bits, found = 0, Levels()
        if not len(used):
            for count in planes:
                bits += count
                found[bits] = np.rint(np.linspace(0, TOP, 1 << bits)).astype(np.uint8)
            return found
        places, counts = used / _FINER, self._counts[used]
        edges = clusters(places, counts, 1 << planes[0])
        for index, count in enumerate(planes):
            bits += count
            for _ in range(count if index else 0):
                edges = split(places, counts, edges)
            found[bits] = np.rint(means(places, counts, edges)).astype(np.uint8)
        return found


def clusters(places: Reals, counts: Reals, count: int) -> Whole:
    """Cut ascending places into the clusters with the least weighted sum of squared errors.

    Args:
        places: Distinct and ascending, float64[n].
        counts: By what errors count, positive float64[n].
        count: How many clusters k; those beyond n are empty, and the last.

    Returns:
        Where clusters begin, and n: intp[k + 1].
    """
    wanted, cost = min(count, len(places)), _costs(places, counts)
    best, begins = cost[0], []  # of the clusters so far, by the last place in them
    for _ in range(wanted - 1):
        total = best[:-1, None] + cost[1:]
        at = total.argmin(0)
        begins.append(at + 1)
        best = total[at, np.arange(len(places))]
    edges = [len(places)] * (count - wanted + 1)
    for begin in reversed(begins):
        edges.append(int(begin[edges[-1] - 1]))
    return np.array([*edges, 0][::-1], np.intp)


def _costs(places: Reals, counts: Reals) -> Reals:
    """Squared errors of a cluster from place i to place j, [n, n]; infinite where there is none."""
    centred = places - np.average(places, weights=counts)  # smaller squares, smaller rounding
    sums = [np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in range(3)]
    total, first, second = (one[None, 1:] - one[:-1, None] for one in sums)
    inside = np.triu(np.ones(total.shape, bool))
    mean = np.divide(first, total, out=np.zeros_like(first), where=inside & (total > 0))
    found: Reals = np.where(inside, np.maximum(second - first * mean, 0), np.inf)
    return found


def split(places: Reals, counts: Reals, edges: Whole) -> Whole:
    """Cut every cluster in two with the least error: clusters 2 c and 2 c + 1; of one place the second is empty."""
    found = [0]
    for first, last in pairwise(edges.tolist()):
        found += [_middle(places[first:last], counts[first:last]) + first, last]
    return np.array(found, np.intp)


def _middle(places: Reals, counts: Reals) -> int:
    if len(places) < 2:
        return len(places)
    centred = places - places.mean()
    total, first = np.cumsum(counts), np.cumsum(counts * centred)
    left, right = first[:-1] ** 2 / total[:-1], (first[-1] - first[:-1]) ** 2 / np.cumsum(counts[::-1])[::-1][1:]
    return int((left + right).argmax()) + 1


def means(places: Reals, counts: Reals, edges: Whole) -> Reals:
    """Return clusters' means, float64[k]; an empty one has that of the one before it."""
    found = [
        np.average(places[first:last], weights=counts[first:last]) if last > first else -np.inf
        for first, last in pairwise(edges.tolist())
    ]
    return np.maximum.accumulate(np.array(found, np.float64))
