"""Codes, planes and scales of nested weights; their references."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ConfigError
from lissome.ops.nested import (
    Layout,
    Spacing,
    from_blocks,
    from_planes,
    from_scales,
    layout_named,
    quantise,
    to_planes,
    to_scales,
)

LAYOUTS = st.builds(Layout, st.sampled_from([(3, 1), (2, 1, 1), (4, 2, 2), (8,), (5, 1)]), st.sampled_from([32, 64]))
SIZES = st.integers(1, 100)


def drawn(seed: int, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return np.where(rng.random((rows, 1)) < 0.1, np.float32(0), weight)


@given(layout=LAYOUTS, rows=SIZES, columns=SIZES, seed=st.integers(0, 9))
def test_planes_and_scales_give_codes_back(layout: Layout, rows: int, columns: int, seed: int) -> None:
    codes = quantise(drawn(seed, rows, columns), layout, rounds=1)
    segments = to_planes(codes.codes, layout)
    for count, precision in enumerate(layout.precisions, 1):
        found = from_planes(segments[:count], (rows, columns), layout)
        assert np.array_equal(found, codes.codes >> (layout.bits - precision))
        scale, least = from_scales(to_scales(codes.scales[precision], codes.leasts[precision]), rows)
        assert np.array_equal(scale, codes.scales[precision])
        assert np.array_equal(least, codes.leasts[precision])


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 9))
def test_a_bit_of_a_plane_lies_where_the_kernels_look(rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (rows, -(-columns // 32) * 32), np.uint8)
    (high, low), blocks = to_planes(codes, Layout((3, 1))), codes.shape[1] // 32
    for row, column in np.random.default_rng(seed).integers(0, (rows, columns), (20, 2)):
        o, k, block = row % 16, column % 32, row // 16 * blocks + column // 32
        byte, bit = 16 * (o // 4) + 4 * (k // 8) + 2 * (o // 2 % 2) + k // 4 % 2, 4 * (o % 2) + k % 4
        bits = [high[(block * 3 + plane) * 64 + byte] >> bit & 1 for plane in range(3)] + [
            low[block * 64 + byte] >> bit & 1
        ]
        assert int("".join(map(str, bits)), 2) == codes[row, column]


def error(weight: np.ndarray, found: np.ndarray, counts: np.ndarray | float = 1.0) -> float:
    return float((np.square(weight - found) * counts).sum())


def test_scales_are_refitted_at_every_precision() -> None:
    weight, layout = drawn(0, 64, 256), Layout((2, 1, 1))
    codes = quantise(weight, layout)
    errors = [error(weight, codes.weight(precision)) for precision in layout.precisions]
    assert errors == sorted(errors, reverse=True)
    for precision, found in zip(layout.precisions, errors, strict=True):
        for scale, shift in [(1.02, 0), (0.98, 0), (1, 0.02), (1, -0.02)]:
            assert found < error(weight, codes.weight(precision) * scale + shift)
    # dropping bits without a refit keeps the floor of each pair: half a step too low
    step = codes.scales[4].astype(np.float32)[:, :, None]
    floor = (codes.codes >> 1 << 1).reshape(64, -1, 32) * step + codes.leasts[4].astype(np.float32)[:, :, None]
    assert errors[1] < 0.6 * error(weight, floor.reshape(64, 256))


def test_importance_moves_errors_to_where_they_count_less() -> None:
    weight, layout = drawn(1, 64, 256), Layout((3, 1))
    counts = np.random.default_rng(2).random((64, 256)).astype(np.float32) ** 8
    weighted, plain = quantise(weight, layout, counts), quantise(weight, layout)
    for precision in layout.precisions:
        found = error(weight, weighted.weight(precision), counts)
        assert found < 0.9 * error(weight, plain.weight(precision), counts)
    even = quantise(weight, layout, np.zeros_like(counts))
    assert np.array_equal(even.codes, plain.codes)


def test_what_lies_on_a_grid_stays() -> None:
    rng = np.random.default_rng(3)
    scale, least = rng.random((8, 4)).astype(np.float16), -rng.random((8, 4)).astype(np.float16)
    codes = rng.integers(0, 16, (8, 128), np.uint8)
    found = from_blocks(codes, scale, least, Layout((3, 1)))
    exact = codes.reshape(8, 4, 32) * scale[:, :, None].astype(np.float32) + least[:, :, None].astype(np.float32)
    assert np.array_equal(found.weight(4), exact.reshape(8, 128))
    assert error(found.weight(3), exact.reshape(8, 128)) > 0


def test_constant_and_tiny_groups() -> None:
    weight = np.zeros((3, 64), np.float32)
    weight[1], weight[2] = 0.5, 1e-9
    found = quantise(weight, Layout()).weight(4)
    assert np.array_equal(found[0], weight[0])
    assert np.array_equal(found[1], weight[1])
    assert np.abs(found[2]).max() < 1e-7


@pytest.mark.parametrize("planes", [(2,), (3, 1), (2, 1, 1), (4, 2)])
def test_levels_by_kmeans_lose_less_than_even_codes(planes: tuple[int, ...]) -> None:
    weight = drawn(4, 64, 256)
    even, fitted = (quantise(weight, Layout(planes, levels=levels)) for levels in get_args(Spacing))
    for precision in fitted.layout.precisions:
        assert error(weight, fitted.weight(precision)) < 0.97 * error(weight, even.weight(precision))
        levels = fitted.levels[precision]
        assert levels.dtype == np.uint8
        assert len(levels) == 1 << precision
        assert (np.diff(levels.astype(int)) >= 0).all()
    assert not even.levels


def test_importance_moves_levels() -> None:
    weight, layout = drawn(5, 64, 256), Layout((2, 1), levels="kmeans")
    counts = np.where(weight > 0, 1, 1e-4).astype(np.float32)
    weighted, plain = quantise(weight, layout, counts), quantise(weight, layout)
    assert (weighted.levels[3][4:].astype(int) > plain.levels[3][4:]).any()
    assert error(weight, weighted.weight(3), counts) < 0.8 * error(weight, plain.weight(3), counts)


def test_levels_of_constant_weights() -> None:
    weight = np.full((3, 70), 0.25, np.float32)
    assert np.array_equal(quantise(weight, Layout(levels="kmeans")).weight(3), weight)


def test_layouts_have_names() -> None:
    for text in ("3+1", "4+2+2/64", "3+1/kmeans", "2+1+1/64/kmeans"):
        assert str(layout_named(text)) == text
    assert layout_named("3+1/kmeans") == Layout((3, 1), 32, "kmeans")
    assert layout_named("4+2/64/kmeans") == Layout((4, 2), 64, "kmeans")
    for text, message in [("4+2+2/kmeans", "at most 6 bits, got 8"), ("3+1/lut", "is no layout"), ("/kmeans", "is no")]:
        with pytest.raises(ConfigError, match=message):
            layout_named(text)


@pytest.mark.parametrize("planes", [(), (1, 3), (3, 0), (4, 4, 1), (1,), (3.0, 1)])
def test_layouts_that_cannot_be(planes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="planes are counts of bits"):
        Layout(planes)
    with pytest.raises(ConfigError, match="32 or 64"):
        Layout((3, 1), 128)
