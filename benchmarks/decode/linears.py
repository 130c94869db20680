"""Fewer bits in linear layers alone: the same nested layers at 4 and at 3 bits, out of cache, in turns."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._turns import Clock, in_turns
from lissome.ops.kernels import native
from lissome.ops.nested import Layout, quantise, to_planes, to_scales

SIZE, LAYERS = 4096, 12
"""4-bit layers of 126 MB together, read after so much else that no cache holds them."""


def race(*, rounds: int, threads: int, size: int = SIZE, layers: int = LAYERS) -> dict[str, Any]:
    """Time a row of inputs through all layers at every precision.

    Returns:
        ``seconds`` and ``bandwidth`` (bytes per second) by bits and round, ``bytes`` by bits.
    """
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
    seconds: dict[str, list[float]] = {str(bits): [] for bits in layout.precisions}

    def turn(name: str, now: Clock) -> None:
        start = now()
        for weight in weights:
            weight.linear(x, y, int(name), "int8", threads=threads)
        seconds[name].append(now() - start)

    sizes = {
        str(bits): layers * (sum(one.nbytes for one in planes[: at + 1]) + scales[bits].nbytes)
        for at, bits in enumerate(layout.precisions)
    }
    bandwidth = in_turns(sizes, turn, rounds=rounds, threads=threads, cold=True)
    return {
        "seconds": {name: times[1:] for name, times in seconds.items()},
        "bytes": sizes,
        "bandwidth": bandwidth,
    }


def _copied(compiled: Any, array: Any) -> Any:
    kept = compiled.block(array.nbytes)
    kept[:] = array.reshape(-1).view(np.uint8)
    return kept.view(array.dtype)
