"""Claim: weights with zeros are multiplied faster than dense ones, close to what their bytes allow.

24 layers of 2048 x 2048, after so much else was read that no weight is in a cache; one row of inputs, as in decoding.
Baselines in the same rounds: our own dense kernels with the same order of weights, which isolate what zeros do, and
PyTorch's linear layers in fp32, bf16 and int8. Where it does not pay is measured too: in the cache, with few zeros.
Attention likewise: after 4,096 tokens, keys and values of earlier blocks without their smallest numbers beside our own
whole ones, all of them integers, with the perplexity of texts of that length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks._frame import Inequality, Store
from benchmarks._markdown import of_bandwidth
from benchmarks._turns import reached
from benchmarks.decode.files import Files
from benchmarks.multipruner.texts import long_windows
from benchmarks.sparamx import attention
from benchmarks.sparamx.measuring import all_arms, race
from benchmarks.sparamx.names import DENSE, DENSE_CACHE, SHARES, SPARSE_CACHES, TORCH, sparse
from lissome.ops.kernels import native
from lissome.ops.stats import Interval, ratio_of_medians

SIZE, LAYERS = 2048, 24
SMALL = ((512, 2), (1024, 4))
"""Sizes and numbers of layers that stay in a cache."""

FASTER = {("bf16", 0.5): 1.5, ("bf16", 0.8): 2.5, ("int8", 0.5): 1.3, ("int8", 0.8): 2.0}
"""How many times as fast as the own dense kernel."""
OVER_TORCH = 2.0
NOISE = 1.1
"""No arm may be faster than its bytes allow by more than this: the bandwidth would have been measured wrongly."""

_ROUNDS = {False: 31, True: 15}
_WINDOWS = {False: 4, True: 2}
"""Texts of 4,096 tokens for perplexity."""


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    if native.module() is None:
        print(f"sparamx is skipped: {native.choice().why}")
        return []
    counts = (1,) if quick else (1, 2)
    names = {f"linears-{threads}": (SIZE, LAYERS, threads, 1) for threads in counts}
    names |= {f"cached-{size}": (size, layers, 1, 50) for size, layers in SMALL}
    cells = {name: _cell(store, name, _ROUNDS[quick], *case) for name, case in names.items() if store.wants(name)}
    cells |= store.measured(_attention(quick, store, counts))
    if store.pattern is not None:
        return []
    result, found = judge(cells)
    more, others = attention.judge(cells)
    found += others
    store.publish("kernels", {**result, **more, "inequalities": [vars(one) for one in found]})
    return found


def _attention(quick: bool, store: Store, counts: Sequence[int]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the cells of attention and how to get them."""
    files = Files(attention.MODEL, store.scratch("files", {"model": attention.MODEL}))
    caches = [DENSE_CACHE, *SPARSE_CACHES]
    known = {"model": attention.MODEL, "bits": attention.BITS, "tokens": attention.TOKENS, "caches": caches}

    def windows() -> Tensor:
        return long_windows(files.model, attention.TOKENS, _WINDOWS[quick])

    for threads in counts:
        more = {"threads": threads, "rounds": _ROUNDS[quick]}

        def timed(more: dict[str, int] = more) -> dict[str, Any]:
            return store.cell(
                f"attention-{more['threads']}",
                known | more,
                lambda: attention.race(files.nested, windows()[0].tolist(), **more),
            )

        yield f"attention-{threads}", timed

    def scored() -> dict[str, Any]:
        rows = windows()
        settings = {**known, "text": [*rows.shape, int(rows.sum())]}
        return store.cell("attention-ppl", settings, lambda: attention.quality(files.nested, rows, max(counts)))

    yield "attention-ppl", scored


def _cell(store: Store, name: str, rounds: int, size: int, layers: int, *how: int) -> dict[str, Any]:
    threads, repeat = how
    settings = {"size": size, "layers": layers, "rounds": rounds, "threads": threads}
    return store.cell(
        name, settings, lambda: race(all_arms(size, layers), rounds=rounds, threads=threads, repeat=repeat)
    )


def judge(cells: Mapping[str, Any]) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn cells into the stored result and the inequalities."""
    cells = {name: one for name, one in cells.items() if "seconds" in one}
    tables = {name: rows(one) for name, one in cells.items()}
    found = []
    for name, cell in cells.items():
        kind, _, threads = name.partition("-")
        if kind == "linears":
            where = f"{threads} thread{'s' if threads != '1' else ''}"
            found += [replace(one, name=f"{where}: {one.name}") for one in _judged(cell, tables[name])]
    facts = {"size": SIZE, "layers": LAYERS, "kernels": cells["linears-1"]["kernels"]}
    return {**facts, "tables": tables}, found


def _judged(cell: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> Iterator[Inequality]:
    for (kind, share), limit in FASTER.items():
        yield _faster(cell, kind, share, limit)
    for kind in ("bf16", "int8"):
        times = [float(np.median(cell["seconds"][sparse(kind, share)])) for share in SHARES]
        slower = sum(later > earlier for earlier, later in pairwise(times))
        yield Inequality.of(f"{kind}: more zeros, yet slower, of {len(times) - 1} steps", slower, "==", 0)
    yield _over_torch(cell)
    shares = {name: row["share"] for name, row in table.items() if not name.startswith("torch")}
    most = max(shares, key=lambda name: shares[name])
    yield Inequality.of(f"share of the bandwidth, at most ({most})", shares[most], "<=", NOISE)


def rows(cell: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Milliseconds, megabytes, share of the bandwidth and speed beside the own dense kernel, by arm."""
    found = {}
    for name, times in cell["seconds"].items():
        size = cell["bytes"][name]
        kind = name.split(" sparse")[0]
        row: dict[str, Any] = {
            "ms": 1e3 * float(np.median(times)),
            "mb": size / 1e6,
            **reached(size, times, cell["bandwidth"][name]),
        }
        if kind in DENSE:
            row["faster"] = _times_faster(cell, DENSE[kind], name).__dict__
        found[name] = row
    return found


def _faster(cell: Mapping[str, Any], kind: str, share: float, limit: float) -> Inequality:
    name = sparse(kind, share)
    ratio = _times_faster(cell, DENSE[kind], name)
    return Inequality.of(f"{name}: times as fast as own dense", ratio.value, ">=", limit, _spread(cell, ratio, name))


def _over_torch(cell: Mapping[str, Any]) -> Inequality:
    """The faster sparse form at 50 % against the fastest that PyTorch has here, whatever its type."""
    seconds = {name: float(np.median(times)) for name, times in cell["seconds"].items()}
    best = min(TORCH, key=lambda name: seconds[name])
    mine = min((sparse(kind, 0.5) for kind in ("bf16", "int8")), key=lambda name: seconds[name])
    ratio = _times_faster(cell, best, mine)
    name = f"{mine}: times as fast as PyTorch's best ({best})"
    return Inequality.of(name, ratio.value, ">=", OVER_TORCH, _spread(cell, ratio, mine))


def _times_faster(cell: Mapping[str, Any], slow: str, fast: str) -> Interval:
    return ratio_of_medians(cell["seconds"][slow], cell["seconds"][fast])


def _spread(cell: Mapping[str, Any], ratio: Interval, name: str) -> str:
    best = reached(cell["bytes"][name], cell["seconds"][name], cell["bandwidth"][name])
    return f"(95 % {ratio.low:.2f}–{ratio.high:.2f}, n={ratio.n}; at {of_bandwidth(best)})"
