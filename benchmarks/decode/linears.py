"""Fewer bits in linear layers alone: the same nested layers at 4 and at 3 bits, out of cache, in turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lissome.ops.kernels import native
from lissome.ops.nested import Layout, quantise, to_planes, to_scales

SIZE, LAYERS = 4096, 12
"""4-bit layers of 126 MB together: no cache of this kind of machine holds them."""


def race(*, rounds: int, threads: int, size: int = SIZE, layers: int = LAYERS) -> dict[str, Any]:
    """Time a row of inputs through all layers at every precision.

    Returns:
        ``seconds`` by bits and round, ``bytes`` by bits, ``bandwidth`` by round in bytes per second.
    """
    now = time.process_time if threads == 1 else time.perf_counter
    compiled, layout = native.required(), Layout()
    codes = quantise(np.random.default_rng(0).standard_normal((size, size), np.float32), layout)
    planes = to_planes(codes.codes, layout)
    scales = {bits: to_scales(codes.scales[bits], codes.leasts[bits]) for bits in layout.precisions}
    weights = []
    for _ in range(layers):  # each in memory of its own, as a model's layers are
        segments = [_copied(compiled, one) for one in planes]
        own = {bits: (bits, _copied(compiled, one)) for bits, one in scales.items()}
        weights.append(compiled.Nested(size, size, layout.group, segments, own))
    x, y = np.ones((1, size), np.float32), np.empty((1, size), np.float32)
    block = compiled.block(256 << 20)
    seconds: dict[int, list[float]] = {bits: [] for bits in layout.precisions}
    bandwidth = []
    for turn in range(rounds + 1):
        start = now()
        compiled.checksum(block, threads)
        bandwidth.append(block.nbytes / (now() - start))
        for bits in layout.precisions[:: 1 if turn % 2 else -1]:
            start = now()
            for weight in weights:
                weight.linear(x, y, bits, "int8", threads=threads)
            seconds[bits].append(now() - start)
    sizes = {
        bits: layers * (sum(one.nbytes for one in planes[: at + 1]) + scales[bits].nbytes)
        for at, bits in enumerate(layout.precisions)
    }
    return {
        "seconds": {str(bits): times[1:] for bits, times in seconds.items()},
        "bytes": {str(bits): size for bits, size in sizes.items()},
        "bandwidth": bandwidth[1:],
    }


def _copied(compiled: Any, array: Any) -> Any:
    kept = compiled.block(array.nbytes)
    kept[:] = array.reshape(-1).view(np.uint8)
    return kept.view(array.dtype)
