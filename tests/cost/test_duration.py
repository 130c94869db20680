"""Predicted times grow with the work; the machine is measured once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lissome.core.method import ModelCard
from lissome.cost.duration import (
    Speeds,
    forward_seconds,
    measuring_seconds,
    search_seconds,
    speeds_here,
    training_seconds,
)
from lissome.cost.roofline import Peaks

CARD = ModelCard(
    name="m", family="decoder", architecture="llama", tags=frozenset(), reachable={}, hidden=576, layers=30,
    vocabulary=49152, windows=(4, 256), figures={"block_params": 106e6, "params": 135e6, "disk": 538e6},
)  # fmt: skip
SLOW = Speeds(fast=Peaks(flops=4e11, bandwidth=2e10), exact=Peaks(flops=1e11, bandwidth=2e10))
TWICE = Speeds(fast=Peaks(flops=8e11, bandwidth=4e10), exact=Peaks(flops=2e11, bandwidth=4e10))


def _search(speeds: Speeds = SLOW, card: ModelCard = CARD, kept: float = 0.8, scored: float = 1.0) -> float:
    return search_seconds(card, speeds, kept=kept, ordering=8192, scored=scored, looked=0.25, kinds=3)


def test_a_forward_costs_its_operations() -> None:
    peaks = Peaks(flops=1e12, bandwidth=1.0)
    whole = forward_seconds(CARD, 1000, peaks)
    assert whole == pytest.approx(2e3 * (106e6 + 576 * 49152) / 0.45e12)
    assert forward_seconds(CARD, 1000, peaks, depth=0.5, head=False) == pytest.approx(1e3 * 106e6 / 0.45e12)


def test_more_work_takes_longer_and_a_faster_machine_does_not() -> None:
    assert _search() < _search(kept=0.7) < _search(kept=0.7, scored=3.0)
    assert _search() < _search(card=replace(CARD, windows=(8, 256)))
    for seconds in (
        _search,
        lambda speeds: training_seconds(CARD, speeds, tokens=32768, kept=0.8),
        lambda speeds: measuring_seconds(CARD, speeds, tokens=10240, kept=0.8),
    ):
        assert seconds(TWICE) == pytest.approx(seconds(SLOW) / 2)


def test_this_machine_is_measured_once() -> None:
    assert speeds_here() is speeds_here()
    assert min(speeds_here().fast.flops, speeds_here().exact.flops) > 1e8
