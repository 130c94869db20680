"""The kernel for GPUs, in Triton's interpreter where there is none: the plain product at every precision."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lissome.core.errors import ConfigError, MissingExtraError
from lissome.ops.kernels.bitplane import MOST_ROWS, BitPlanes
from lissome.ops.nested import Layout, quantise

CASES = [((3, 1), 32, (40, 96)), ((4, 2, 2), 64, (17, 130)), ((2, 1), 32, (1, 5)), ((2, 1, 1, 4), 32, (33, 257))]


def made(planes: tuple[int, ...], group: int, shape: tuple[int, int], device: str = "cpu") -> tuple[BitPlanes, object]:
    rng = np.random.default_rng(sum(shape))
    codes = quantise(rng.standard_normal(shape).astype(np.float32), Layout(planes, group))
    return BitPlanes.of(codes, device), codes


@pytest.mark.parametrize(("planes", "group", "shape"), CASES)
def test_planes_hold_the_codes(planes: tuple[int, ...], group: int, shape: tuple[int, int]) -> None:
    bits, codes = made(planes, group, shape)
    assert bits.precisions == codes.layout.precisions
    for precision in bits.precisions:
        assert np.array_equal(bits.weight(precision).numpy(), codes.weight(precision))
        x = torch.randn(MOST_ROWS + 1, shape[1])
        assert torch.equal(bits.linear(x, precision), x @ torch.from_numpy(codes.weight(precision)).T)
    reads = [bits.nbytes(precision) for precision in bits.precisions]
    assert reads == sorted(reads)


def test_refusals() -> None:
    bits, _ = made((3, 1), 32, (8, 40))
    with pytest.raises(ConfigError, match="read at 3, 4 bits, not at 2"):
        bits.linear(torch.ones(1, 40), 2)
    with pytest.raises(ConfigError, match=r"shape \[M, 40\]"):
        bits.linear(torch.ones(1, 41), 3)
    assert bits.linear(torch.ones(0, 40), 3).shape == (0, 8)
    with pytest.raises(ConfigError, match="multiplies even codes"):
        BitPlanes.of(quantise(np.ones((8, 40), np.float32), Layout(levels="kmeans")), "cpu")
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(MissingExtraError, match=r"lissome\[gpu\]"):
            bits.linear(torch.ones(1, 40), 3)


def check(device: str) -> None:
    """Every case, precision and number of rows against the product in float64."""
    for planes, group, shape in CASES:
        bits, codes = made(planes, group, shape, device)
        for precision in bits.precisions:
            for rows, dtype in ((1, torch.float32), (3, torch.float16), (2, torch.bfloat16)):
                x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
                found = bits.linear(x.to(device), precision).cpu()
                assert found.dtype == dtype
                wanted = x.double() @ torch.from_numpy(codes.weight(precision)).double().T
                rounding = torch.finfo(dtype).eps + shape[1] * 2**-24
                assert (found.double() - wanted).abs().max() <= 4 * rounding * (1 + wanted.abs().max())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra gpu)")
def test_the_kernel_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    root = Path(__file__).parents[3]
    script = "import tests.ops.kernels.test_bitplane as t; t.check('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *sys.path])
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=root)


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    check("cuda")
