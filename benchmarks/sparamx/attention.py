"""Attention over a long text: keys and values of earlier blocks without their smallest numbers, or whole.

All arms are the decoder engine with the same nested weights and integers as keys and values. What attention takes of a
step is the time of a step after a long text less that of one after a short text in the same round: everything else of
the two is the same. No step finds anything in a cache: where the last one holds the weights beside a short text, but
not beside a long one, reading them again would count as attention.
"""

# N windows, T tokens

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._frame import Inequality
from benchmarks._markdown import of_bandwidth
from benchmarks._numbers import perplexity
from benchmarks._turns import Clock, beyond_caches, in_turns, reached
from benchmarks.decode.arms import Own
from benchmarks.decode.measuring import losses
from benchmarks.sparamx.names import DENSE_CACHE, SPARSE_CACHES
from lissome.engine.decode import Decoder
from lissome.engine.decode.cache import cache_named
from lissome.engine.decode.decoder import BLOCK
from lissome.ops.kernels import native
from lissome.ops.stats import Interval, ratio_of_medians

MODEL = "smollm2-135m"
BITS = 4
TOKENS = 4096
"""Positions before the tokens that are timed."""
FASTER, PPL = 1.14, 1.01
_SHORT, _STEPS = BLOCK, 4  # positions before the tokens of the short text; tokens that are timed in a turn


def race(path: Path, ids: Sequence[int], *, rounds: int, threads: int) -> dict[str, Any]:
    """Time steps after a long and after a short text, all arms in turns.

    Args:
        path: Nested weights.
        ids: The long text; its length is a multiple of 64, so that steps after it freeze nothing twice.
        rounds: How often each arm is timed, after one round that is thrown away.
        threads: Threads.

    Returns:
        By arm and round, seconds of the median step: ``long`` and ``short``; ``bytes`` of the long text's keys and
        values; ``bandwidth`` by arm and round, in bytes per second.
    """
    arms = {name: _filled(path, name, ids, threads) for name in (DENSE_CACHE, *SPARSE_CACHES)}
    found: dict[str, dict[str, list[float]]] = {name: {"long": [], "short": []} for name in arms}

    other = native.required().block(beyond_caches())

    def turn(name: str, now: Clock) -> None:
        for sequence, (kind, length) in enumerate((("long", len(ids)), ("short", _SHORT))):
            clear = partial(native.required().checksum, other, threads)
            found[name][kind].append(_step(arms[name], ids, sequence, length, now, clear))

    sizes = {name: len(ids) * arm.cell_bytes for name, arm in arms.items()}
    bandwidth = in_turns(sizes, turn, rounds=rounds, threads=threads, cold=True)
    return {
        "arms": {
            name: {kind: times[1:] for kind, times in found[name].items()} | {"bytes": sizes[name]} for name in arms
        },
        "tokens": len(ids),
        "bandwidth": bandwidth,
        "kernels": native.choice().name,
    }


def _filled(path: Path, name: str, ids: Sequence[int], threads: int) -> Decoder:
    """A decoder whose sequence 0 is the long text, and sequence 1 its beginning."""
    cells = len(ids) + _SHORT + 2 * BLOCK
    decoder = Decoder.open(path, cells=cells, texts=2, threads=threads, **cache_named(name))
    for sequence, length in enumerate((len(ids), _SHORT)):
        for first in range(0, length, 256):
            part = list(ids[first : min(first + 256, length)])
            decoder.forward(part, range(first, first + len(part)), sequence, BITS)
    return decoder


def _step(
    decoder: Decoder, ids: Sequence[int], sequence: int, length: int, now: Clock, clear: Callable[[], Any]
) -> float:
    times = []
    for at in range(length, length + _STEPS):
        clear()
        start = now()
        decoder.forward([ids[at - length]], [at], sequence, BITS)
        times.append(now() - start)
    decoder.seq_rm(sequence, length)
    return float(np.median(times))


def quality(path: Path, windows: Any, threads: int) -> dict[str, Any]:
    """Return the mean loss of the next tokens of every window Int[N, T], by arm, nats."""
    ids, found = np.asarray(windows), {}
    for name in (DENSE_CACHE, *SPARSE_CACHES):
        settings = {"cells": ids.shape[1], "threads": threads, **cache_named(name)}
        found[name] = losses(Own(Decoder.open(path, **settings), BITS), ids)
    return {"nll": found}


def judge(cells: Mapping[str, Any]) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn the cells of attention into what is stored and the inequalities."""
    timed = {name: cell for name, cell in cells.items() if name.startswith("attention-") and "bandwidth" in cell}
    nll = cells["attention-ppl"]["nll"]
    tables = {name: rows(cell, nll) for name, cell in timed.items()}
    return {"attention": tables}, list(_judged(timed, tables, nll))


def _judged(timed: Mapping[str, Any], tables: Mapping[str, Any], nll: Mapping[str, Any]) -> Iterator[Inequality]:
    """Of the sparse caches within the bar of perplexity, the fastest; of none, the one that loses least."""
    ratios = {name: _ppl_ratio(nll, name) for name in SPARSE_CACHES}
    good = [name for name in SPARSE_CACHES if ratios[name].value <= PPL]
    for name, cell in timed.items():
        table = tables[name]["rows"]
        known = good or [min(ratios, key=lambda cache: ratios[cache].value)]
        best = max(known, key=lambda cache: table[cache]["faster"]["value"])
        row, threads = table[best]["faster"], name.split("-")[-1]
        yield Inequality.of(
            f"{best} after {cell['tokens']} tokens, threads {threads}: attention, times as fast as {DENSE_CACHE}",
            row["value"],
            ">=",
            FASTER,
            f"(95 % {row['low']:.2f}–{row['high']:.2f}, n={row['n']}; at {of_bandwidth(table[best])})",
        )
        ratio = ratios[best]
        yield Inequality.of(
            f"{best}: perplexity ÷ that of {DENSE_CACHE}", ratio.value, "<=", PPL,
            f"(95 % {ratio.low:.4f}–{ratio.high:.4f}, n={ratio.n} windows)",
        )  # fmt: skip


def rows(cell: Mapping[str, Any], nll: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows by arm: milliseconds of a step and of its attention, megabytes, speed and perplexity."""
    parts = {name: np.asarray(arm["long"]) - np.asarray(arm["short"]) for name, arm in cell["arms"].items()}
    found = {}
    for name, arm in cell["arms"].items():
        found[name] = {
            "ms": 1e3 * float(np.median(arm["long"])),
            "attention": 1e3 * float(np.median(parts[name])),
            "mb": arm["bytes"] / 1e6,
            **reached(arm["bytes"], parts[name].tolist(), cell["bandwidth"][name]),
            "faster": vars(ratio_of_medians(parts[DENSE_CACHE], parts[name])),
            "step": vars(ratio_of_medians(cell["arms"][DENSE_CACHE]["long"], arm["long"])),
            "ppl": float(np.exp(np.mean(nll[name]))),
        }
    return {"rows": found, "tokens": cell["tokens"], "model": MODEL}


def _ppl_ratio(nll: Mapping[str, Any], name: str) -> Interval:
    return perplexity(np.asarray(nll[name]) - np.asarray(nll[DENSE_CACHE]))
