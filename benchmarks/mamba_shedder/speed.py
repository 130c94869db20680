"""Time of cut models beside the original: prefill by length, decode net of the head, and the scan's share."""

# T prompt tokens

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.mamba_shedder.removing import candidates, without
from lissome.cost.clock import fixed_threads
from lissome.cost.counted import Counter
from lissome.cost.measured import Lap, Request, race
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.ops.stats import ratio_of_medians

LENGTHS = (256, 512, 1024, 2048)
"""Prompt tokens."""
NEW = 49
"""New tokens of a request: 48 decode steps."""
ROUNDS = 9
THREADS = 1
"""One: on two threads a narrow model is as slow, and noisier."""


def timed(model: Model, removed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Time cut models in turns with the original.

    Args:
        model: The original, whose scans run in chunks.
        removed: Axes that each variant lacks, by its name.

    Returns:
        ``rows``, by variant: ``prefill`` by length and ``decode``, each speed ÷ the original's with its interval;
        ``seconds`` of both; bytes ``held`` for the next token. Also ``outside``, the seconds of a decode step beside
        the blocks, and ``scan_share`` by length.
    """
    space = model.space()
    cuts = {name: extract(model, without(model, axes), space=space) for name, axes in removed.items()}
    alone = extract(model, without(model, candidates(model, "blocks")[1:]), space=space)
    models = {"original": model, **cuts, "one block": alone}
    rows: dict[str, Any] = {name: {"prefill": {}, "seconds": {}} for name in models}
    steps: dict[str, list[float]] = {name: [] for name in models}
    for length in LENGTHS:
        request = Request(prompt=length, new=NEW)
        laps = dict(zip(models, race(list(models.values()), request, rounds=ROUNDS, threads=THREADS), strict=True))
        for name, found in laps.items():
            rows[name]["prefill"][str(length)] = _speed(laps["original"], found, "prefill")
            rows[name]["seconds"][str(length)] = float(np.median([lap.prefill for lap in found]))
            steps[name] += [lap.step for lap in found]
    for name, one in models.items():
        rows[name]["decode"] = _interval(steps["original"], steps[name])
        rows[name]["seconds"]["step"] = float(np.median(steps[name]))
        rows[name]["held"] = Counter(one).count().cache_bytes
        rows[name]["blocks"] = len(one.anatomy.blocks)
    whole, single, count = (
        rows["original"]["seconds"]["step"], rows["one block"]["seconds"]["step"], rows["original"]["blocks"]
    )  # fmt: skip
    outside = (count * single - whole) / (count - 1)
    return {"rows": rows, "outside": outside, "scan_share": {str(n): scan_share(model, n) for n in LENGTHS}}


def net_speedup(cell: Mapping[str, Any], name: str) -> float:
    """Decode speed-up of a variant when what stands beside the blocks takes no time."""
    rows, outside = cell["rows"], cell["outside"]
    before, after = (rows[one]["seconds"]["step"] - outside for one in ("original", name))
    return float(before / after)


def _speed(base: Sequence[Lap], other: Sequence[Lap], phase: str) -> dict[str, float]:
    return _interval([getattr(lap, phase) for lap in base], [getattr(lap, phase) for lap in other])


def _interval(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Speed of `other` ÷ speed of `base`, from times taken in turns."""
    found = ratio_of_medians([1 / took for took in other], [1 / took for took in base])
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def scan_share(model: Model, tokens: int, *, repeats: int = 5) -> float:
    """Share of a prefill that its scans take: the most that removing all of them can save."""
    ids = torch.randint(model.anatomy.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    shares = []
    with torch.inference_mode(), fixed_threads(THREADS), _clocked(model) as inside:
        for _ in range(repeats + 1):
            inside.clear()
            start = time.perf_counter()
            model.module(ids, use_cache=True, logits_to_keep=1)
            shares.append(sum(inside) / (time.perf_counter() - start))
    return float(np.median(shares[1:]))


@contextlib.contextmanager
def _clocked(model: Model) -> Iterator[list[float]]:
    """Note the seconds of every scan inside the block."""
    seconds: list[float] = []
    mixers: list[Any] = [module for module in model.module.modules() if hasattr(module, "scanned")]

    def clock(scanned: Any) -> Any:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = scanned(*arguments)
            seconds.append(time.perf_counter() - start)
            return result

        return run

    for mixer in mixers:
        mixer.scanned = clock(mixer.scanned)
    try:
        yield seconds
    finally:
        for mixer in mixers:
            del mixer.scanned
