"""The roofline of a machine: no run can be faster than its arithmetic and its memory traffic allow.

``t >= max(operations / peak, bytes / bandwidth)``, per phase of a request (Williams, Waterman & Patterson 2009). It
explains why a prefill gains from fewer multiply-accumulates and a decode step from fewer bytes of weights.
"""

# M side of a square matrix, D columns of a tall one

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lissome.cost.clock import Clock, fixed_threads
from lissome.cost.measured import Request, Timing
from lissome.ops.kernels import native

_TRIES, _MOST, _SECONDS = 5, 100, 0.5  # at least 5 tries of each piece of work, then more for half a second
_SIDE = {"cpu": 512, "cuda": 8192}
_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}  # as much as a small model; large caches of servers may hold it


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a machine can do at best.

    Attributes:
        flops: Floating-point operations per second of a large matrix product (2 per multiply-accumulate).
        bandwidth: Bytes per second that can be read from memory.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a request asks of the machine.

    Attributes:
        prefill_macs: Multiply-accumulates of the prompt.
        step_macs: Multiply-accumulates of one decode step.
        weight_bytes: Bytes of weights that a forward reads.
        cache_bytes: Bytes of keys and values that a decode step reads.
    """

    prefill_macs: float
    step_macs: float
    weight_bytes: float
    cache_bytes: float


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Least seconds of a prefill and of one decode step, and what sets each: ``"compute"`` or ``"memory"``."""

    prefill: float
    step: float
    prefill_by: str
    step_by: str

    def latency(self, request: Request) -> float:
        """Least seconds of a request."""
        return self.prefill + request.steps * self.step

    def shares(self, timing: Timing, request: Request) -> dict[str, float]:
        """Share of the machine's best that was reached, 0..1, by budget term."""
        return {
            "latency": self.latency(request) / timing.metric("latency").value,
            "prefill": self.prefill * timing.metric("prefill").value / (request.batch * request.prompt),
            "decode": self.step * timing.metric("decode").value / request.batch,
        }


def bound(work: Work, peaks: Peaks) -> Bound:
    """Return the least times of a request's two phases."""
    prefill = {"compute": 2 * work.prefill_macs / peaks.flops, "memory": work.weight_bytes / peaks.bandwidth}
    step = {
        "compute": 2 * work.step_macs / peaks.flops,
        "memory": (work.weight_bytes + work.cache_bytes) / peaks.bandwidth,
    }
    prefill_by, step_by = max(prefill, key=prefill.__getitem__), max(step, key=step.__getitem__)
    return Bound(prefill=prefill[prefill_by], step=step[step_by], prefill_by=prefill_by, step_by=step_by)


def measure_peaks(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, threads: int | None = None
) -> Peaks:
    """Calibrate this machine in under three seconds; the best of several tries counts, since a bound is wanted.

    Args:
        device: A CPU or a CUDA GPU.
        dtype: Type of the numbers.
        threads: CPU threads (default: as many as torch uses now).
    """
    place = torch.device(device)
    with fixed_threads(threads), torch.inference_mode():
        return Peaks(flops=_best_flops(place, dtype), bandwidth=_best_bandwidth(place, dtype))


def _best_flops(device: torch.device, dtype: torch.dtype) -> float:
    side = _SIDE[device.type]
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2.0 * side**3 / _best(device, lambda: torch.mm(left, right))


def _best_bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second: a tall matrix times a vector, as decoding does, copying, or reading alone: the fastest."""
    columns = 1024
    matrix = torch.ones(_BYTES[device.type] // dtype.itemsize // columns, columns, dtype=dtype, device=device)
    vector, target = torch.ones(columns, dtype=dtype, device=device), torch.empty_like(matrix)
    size = matrix.numel() * dtype.itemsize
    reading = _best(device, lambda: torch.mv(matrix, vector))
    copying = _best(device, lambda: target.copy_(matrix))
    return max(size / reading, 2 * size / copying, _best_by_kernel(device))


def _best_by_kernel(device: torch.device) -> float:
    """What compiled kernels reach on the huge pages that their weights lie in; 0 where there are none."""
    compiled = native.module() if device.type == "cpu" else None
    if compiled is None:
        return 0.0
    block, threads = compiled.block(_BYTES["cpu"]), torch.get_num_threads()
    return _BYTES["cpu"] / _best(device, lambda: compiled.checksum(block, threads))


def _best(device: torch.device, work: Callable[[], object]) -> float:
    clock, best, begin, tries = Clock(device), float("inf"), time.perf_counter(), 0
    while tries < _TRIES or (tries < _MOST and time.perf_counter() - begin < _SECONDS):
        clock.settle()
        start = clock.mark()
        work()
        end = clock.mark()
        clock.settle()
        best, tries = min(best, clock.seconds(start, end)), tries + 1
    return best
