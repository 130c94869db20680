"""What claims on perplexity do with numbers alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lissome.ops.stats import Interval, paired_bootstrap


def exponential(found: Interval) -> Interval:
    """From logarithms to what they are of; the standard error by the delta method."""
    value, low, high = (math.exp(one) for one in (found.value, found.low, found.high))
    return Interval(value=value, se=value * found.se, low=low, high=high, n=found.n)


def perplexity(losses: ArrayLike) -> Interval:
    """Perplexity of windows of one length, from the mean loss of each, float[N] nats, with its interval."""
    return exponential(paired_bootstrap(np.asarray(losses)))


def file_name(arm: str) -> str:
    """An arm as part of the name of a cell or a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in arm)
