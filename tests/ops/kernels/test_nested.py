"""Kernels of nested weights: equal to numpy bit for bit, whatever the instruction set, rows and threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.ops.kernels import native
from lissome.ops.nested import Layout, NestedCodes, Spacing, quantise, to_planes, to_scales

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

LEVELS = [level.name for level in native.choice().levels if level.usable]
INHERITED = ("avx2", "avx512bf16")  # levels without kernels of their own
PLANES = [(3, 1), (2, 1, 1), (4, 2, 2), (8,), (5, 1), (2,)]
LAYOUTS = [Layout(planes) for planes in PLANES] + [
    Layout(planes, levels="kmeans") for planes in [(3, 1), (2, 1, 1), (4, 2), (5,), (2,)]
]
F32 = np.float32


@pytest.fixture(params=[name for name in LEVELS if name not in INHERITED])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


def held(codes: NestedCodes, precisions: tuple[int, ...] | None = None) -> Any:
    layout = codes.layout
    kept = precisions or layout.precisions
    scales = {bits: (bits, to_scales(codes.scales[bits], codes.leasts[bits])) for bits in kept}
    segments = to_planes(codes.codes, layout)[: len(kept)]
    levels = {bits: codes.levels[bits] for bits in kept if codes.levels}
    return native.required().Nested(len(codes.codes), codes.inputs, layout.group, segments, scales, levels)


def multiply(weight: Any, x: np.ndarray, outputs: int, precision: int, mode: str, **more: Any) -> np.ndarray:
    y = np.empty((len(x), outputs), F32)
    weight.linear(x, y, precision, mode, **more)
    return y


def encoded_ref(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations per group as the kernels quantise them: int[M, J, G], scales and sums [M, J]."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % group))).reshape(len(x), -1, group)
    largest = np.abs(groups).max(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = F32(127) / largest
        whole = np.where(np.isfinite(inverse)[..., None], np.rint(groups * inverse[..., None]), 0).astype(np.int32)
    scales = np.where(np.isfinite(inverse), largest / F32(127), F32(0))
    return whole, scales, scales * whole.sum(2).astype(F32)


def linear_ref(codes: NestedCodes, x: np.ndarray, precision: int) -> np.ndarray:
    """Integer sums per group, then floats in the order of groups, every operation rounded once."""
    group = codes.layout.group
    q = codes.codes >> (codes.layout.bits - precision)
    q = (codes.levels[precision][q] if codes.levels else q).reshape(len(codes.codes), -1, group).astype(np.int32)
    whole, scales, sums = encoded_ref(x, group)
    scale, least = codes.scales[precision].astype(F32), codes.leasts[precision].astype(F32)
    y = np.zeros((len(x), len(q)), F32)
    for j in range(q.shape[1]):
        dots = (whole[:, j] @ q[:, j].T).astype(F32)
        y = y + (dots * (scale[None, :, j] * scales[:, j, None]) + least[None, :, j] * sums[:, j, None])
    return y


@given(
    layout=st.sampled_from(LAYOUTS), group=st.sampled_from([32, 64]), rows=st.integers(1, 70),
    columns=st.integers(1, 200), count=st.sampled_from([1, 2, 7, 8, 9, 16, 17, 41]), seed=st.integers(0, 99),
)  # fmt: skip
def test_equal_to_numpy_bit_for_bit(
    level: str, layout: Layout, group: int, rows: int, columns: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = quantise(rng.standard_normal((rows, columns)).astype(F32), replace(layout, group=group), rounds=0)
    x = rng.standard_normal((count, columns)).astype(F32) * F32(10.0) ** rng.integers(-3, 4, (count, 1)).astype(F32)
    x[rng.random(count) < 0.1] = 0
    weight = held(codes)
    for precision in codes.layout.precisions:
        y = multiply(weight, x, rows, precision, "int8", threads=2)
        assert np.array_equal(y, linear_ref(codes, x, precision))
        for row in range(count):
            assert np.array_equal(multiply(weight, x[row : row + 1], rows, precision, "int8", threads=1)[0], y[row])
        exact = x.astype(np.float64) @ codes.weight(precision).astype(np.float64).T
        reals, alone = multiply(weight, x, rows, precision, "f32"), multiply(weight, x[:1], rows, precision, "f32")
        most = np.abs(x).sum(1, keepdims=True) * np.abs(codes.weight(precision)).max() * 4
        assert (np.abs(reals - exact) <= 2.0**-22 * columns**0.5 * most + 1e-30).all()
        assert np.array_equal(alone[0], reals[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["int8", "f32"])
def test_a_precision_is_a_model_of_its_own(layout: Layout, mode: str) -> None:
    rng = np.random.default_rng(0)
    codes = quantise(rng.standard_normal((50, 100)).astype(F32), layout, rounds=1)
    x = rng.standard_normal((3, 100)).astype(F32)
    for count in range(1, len(layout.planes) + 1):
        precisions = codes.layout.precisions[:count]
        last = precisions[-1]
        few, all_planes = held(codes, precisions), held(codes)
        assert np.array_equal(multiply(few, x, 50, last, mode), multiply(all_planes, x, 50, last, mode))
        alone = NestedCodes(
            codes.codes >> (codes.layout.bits - last), {last: codes.scales[last]}, {last: codes.leasts[last]}, 100,
            replace(layout, planes=(last,)), {last: codes.levels[last]} if codes.levels else {},
        )  # fmt: skip
        assert np.array_equal(multiply(held(alone), x, 50, last, mode), multiply(all_planes, x, 50, last, mode))


@pytest.mark.parametrize("levels", ["even", "kmeans"])
def test_rows_are_the_weights(levels: Spacing) -> None:
    rng = np.random.default_rng(1)
    codes = quantise(rng.standard_normal((37, 70)).astype(F32), Layout((3, 1), 64, levels))
    for precision in (3, 4):
        out = np.empty((20, 70), F32)
        held(codes).rows(out, precision, 17)
        assert np.array_equal(out, codes.weight(precision)[17:])


def test_not_finite_activations_are_not_finite_results(level: str) -> None:
    codes = quantise(np.ones((5, 64), F32), Layout())
    for value in (np.nan, np.inf):
        x = np.ones((2, 64), F32)
        x[0, 40] = value
        for mode in ("int8", "f32"):
            y = multiply(held(codes), x, 5, 4, mode)
            assert not np.isfinite(y[0]).any()
            assert np.isfinite(y[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 1 << 50}, "1 to 2\\^40 numbers"),
        ({"outputs": 0}, "1 to 2\\^40 numbers"),
        ({"outputs": 33}, "whole planes"),
        ({"inputs": -1}, "1 to 2\\^40 numbers"),
        ({"group": 16}, "groups have 32 or 64"),
        ({"segments": []}, "planes and scales"),
        ({"scales": {}}, "planes and scales"),
        ({"scales": {9: (4, np.zeros(128, np.uint16))}}, "at most as many planes"),
        ({"scales": {4: (5, np.zeros(128, np.uint16))}}, "at most as many planes"),
        ({"scales": {4: (4, np.zeros(127, np.uint16))}}, "got 127"),
        ({"scales": {4: (4, np.zeros(256, np.uint16)[::2])}}, "contiguous"),
        ({"segments": [np.zeros(511, np.uint8)]}, "whole planes"),
        ({"levels": {4: np.zeros(15, np.uint8)}}, "a level for every code, got 15"),
        ({"levels": {4: np.zeros(0, np.uint8)}}, "a level for every code, got 0"),
        ({"levels": {3: np.zeros(8, np.uint8)}}, "a level for every code"),
        ({"levels": {-1: np.zeros(8, np.uint8)}}, "a level for every code"),
        ({"levels": {4: np.arange(16, dtype=np.uint8)[::-1].copy()}}, "ascend"),
        ({"levels": {4: np.zeros(16, np.float32)}}, "levels"),
        (
            {
                "segments": [np.zeros(1792, np.uint8)],
                "scales": {4: (7, np.zeros(128, np.uint16))},
                "levels": {4: np.zeros(128, np.uint8)},
            },
            "at most 6 planes",
        ),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "outputs": 32, "inputs": 64, "group": 32, "segments": [np.zeros(1024, np.uint8)],
        "scales": {4: (4, np.zeros(128, np.uint16))},
    }  # fmt: skip
    native.required().Nested(**good)
    with pytest.raises(ValueError, match=message):
        native.required().Nested(**(good | change))
