"""From cells to tables and inequalities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._frame import Inequality
from benchmarks._markdown import of_bandwidth
from benchmarks._numbers import file_name, perplexity
from benchmarks._turns import reached
from benchmarks.decode.names import BITS, LLAMA, MODELS, OPENVINO, SOURCE, TORCH, llama, nested
from lissome.ops.stats import Interval, ratio_of_medians

SAME_FILE, BEST_TYPE = 2.0, 1.3
PREFILL_TORCH, PREFILL_LLAMA = 1.0, 1.3
SECOND_MODEL = 1.5
FEWER_BITS = {"linears": 1.15, "end to end": 1.08}
PPL = 1.01
EQUAL, MARGIN = 0.95, 1e-3
PRUNED_TORCH, PRUNED_OWN = 1.42, 1.3
NOISE = 1.1
"""No arm may read faster than the memory by more than this: the bandwidth would have been measured wrongly."""

Cells = Mapping[str, Any]
OWN, FEWER = (nested(bits) for bits in BITS)
_DENSE = ("wanda: torch fp32", "wanda: torch bf16")


def judge(cells: Cells, models: Sequence[str], threads: Sequence[int]) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn cells into the stored result and the inequalities."""
    quality = {model: perplexities(cells, model) for model in models}
    found = list(_quality(cells, models, quality))
    for count in threads:
        for model in models:
            found += _speed(cells, model, count, quality[model])
        found.append(_linears(cells[f"linears-{count}"], count))
        found += _pruned(cells[f"{models[0]}-wanda-{count}"], count)
    result: dict[str, Any] = {
        "models": list(models),
        "threads": list(threads),
        "ppl": {model: {arm: vars(one) for arm, one in rows.items()} for model, rows in quality.items()},
        "tables": {name: timed(cell) for name, cell in cells.items() if "bandwidth" in cell and "arms" in cell},
        "linears": {name: _bits(cell) for name, cell in cells.items() if name.startswith("linears")},
        "modes": {model: _closeness(cells[f"{model}-modes"]) for model in models},
        "greedy": {model: cells[f"{model}-greedy"] for model in models},
    }
    found.append(_honest(result["tables"]))
    return result, found


def perplexities(cells: Cells, model: str) -> dict[str, Interval]:
    """Perplexity by arm with its 95 % interval over windows."""
    start = f"{model}-ppl-"
    losses = {name.removeprefix(start): cell["nll"] for name, cell in cells.items() if name.startswith(start)}
    named = {file_name(arm): arm for arm in (*map(nested, BITS), *map(llama, LLAMA), *TORCH, *OPENVINO)}
    found = {named.get(name, name): perplexity(values) for name, values in losses.items()}
    pruned = cells.get(f"{model}-wanda-ppl", {}).get("nll", {})
    return found | {arm: perplexity(values) for arm, values in pruned.items()}


def timed(cell: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tokens per second, megabytes a token and share of the bandwidth, by arm."""
    rows = {}
    for arm, one in cell["arms"].items():
        speed = ratio_of_medians(np.ones(len(one["step"])), one["step"])
        rows[arm] = {
            "decode": vars(speed),
            "prefill": cell["prompt"] / float(np.median(one["prefill"])),
            "mb": one["weights"] / 1e6,
            **reached(one["bytes"], one["step"], cell["bandwidth"][arm]),
            "note": one["note"],
        }
    return {"rows": rows, "kernels": cell["kernels"]}


def _quality(
    cells: Cells, models: Sequence[str], quality: Mapping[str, Mapping[str, Interval]]
) -> Iterator[Inequality]:
    for model in models:
        if model == MODELS[0]:
            same = llama(SOURCE[model])
            ratio = quality[model][OWN].value / quality[model][same].value
            yield Inequality.of(f"{model}, {OWN}: perplexity ÷ that of {same}", ratio, "<=", PPL)
            arms = cells[f"{model}-short-1"]["arms"]
            mine, theirs = (arms[arm]["weights"] / 1e6 for arm in (OWN, same))
            yield Inequality.of(f"{model}, {OWN}: MB of weights a token, against {same}", mine, "<=", theirs)
        modes = _closeness(cells[f"{model}-modes"])
        detail = f"(KL {modes['kl']:.4f} nats, same likeliest token {modes['agreement']:.1%})"
        yield Inequality.of(
            f"{model}: perplexity of integer activations ÷ that of fp32", modes["ratio"], "<=", PPL, detail
        )
        greedy = cells[f"{model}-greedy"]
        share = greedy["equal"] / greedy["prompts"]
        yield Inequality.of(
            f"{model}: greedy texts equal to those of transformers", share, ">=", EQUAL, f"(n={greedy['prompts']})"
        )
        widest = max(greedy["margins"], default=0.0)
        yield Inequality.of(f"{model}: margin of the two likeliest tokens where they part", widest, "<", MARGIN)


def _speed(cells: Cells, model: str, threads: int, ppl: Mapping[str, Interval]) -> Iterator[Inequality]:
    short, same = cells[f"{model}-short-{threads}"], llama(SOURCE[model])
    where = f"{model}, {threads} thread{'s' if threads > 1 else ''}"
    limit = SAME_FILE if model == MODELS[0] else SECOND_MODEL
    yield _faster(short, "step", OWN, same, limit, f"{where}: decode, {OWN} ÷ {same}, the same file")
    if model != MODELS[0]:
        return
    types = [llama(kind) for kind in LLAMA]
    good = [arm for arm in types if ppl[arm].value <= ppl[OWN].value]
    if good:
        best = min(good, key=lambda arm: _median(short, arm, "step"))
        name = f"{where}: decode, {OWN} ÷ {best}, the fastest of equal or better perplexity"
        yield _faster(short, "step", OWN, best, BEST_TYPE, name)
    long = cells[f"{model}-long-{threads}"]
    yield _faster(long, "prefill", OWN, "torch fp32", PREFILL_TORCH, f"{where}: prompt of 512, {OWN} ÷ torch fp32")
    best = min(types, key=lambda arm: _median(long, arm, "prefill"))
    name = f"{where}: prompt of 512, {OWN} ÷ {best}, the fastest of llama.cpp"
    yield _faster(long, "prefill", OWN, best, PREFILL_LLAMA, name)
    name = f"{where}: decode, {FEWER} ÷ {OWN}"
    yield _faster(short, "step", FEWER, OWN, FEWER_BITS["end to end"], name)


def _linears(cell: Mapping[str, Any], threads: int) -> Inequality:
    ratio = ratio_of_medians(cell["seconds"][str(BITS[0])], cell["seconds"][str(BITS[1])])
    name = f"linear layers, threads: {threads}: {BITS[1]} bits ÷ {BITS[0]} bits"
    return Inequality.of(name, ratio.value, ">=", FEWER_BITS["linears"], _spread(ratio))


def _pruned(cell: Mapping[str, Any], threads: int) -> Iterator[Inequality]:
    mine, own = "wanda: engine sparse bf16", "wanda: engine dense bf16"
    best = min(_DENSE, key=lambda arm: _median(cell, arm, "step"))
    where = f"half of the weights pruned, threads: {threads}"
    name = f"{where}: decode, sparse bf16 ÷ dense PyTorch ({best.split()[-1]})"
    yield _faster(cell, "step", mine, best, PRUNED_TORCH, name)
    yield _faster(cell, "step", mine, own, PRUNED_OWN, f"{where}: decode, sparse bf16 ÷ our own dense bf16")


def _honest(tables: Mapping[str, Any]) -> Inequality:
    shares = {(name, arm): row["share"] for name, one in tables.items() for arm, row in one["rows"].items()}
    name, arm = max(shares, key=lambda pair: shares[pair])
    return Inequality.of(f"share of the bandwidth, at most ({name}, {arm})", shares[name, arm], "<=", NOISE)


def _faster(cell: Mapping[str, Any], kind: str, mine: str, other: str, limit: float, name: str) -> Inequality:
    ratio = ratio_of_medians(cell["arms"][other][kind], cell["arms"][mine][kind])
    detail, one = _spread(ratio), cell["arms"][mine]
    if kind == "step":
        detail += f" at {of_bandwidth(reached(one['bytes'], one['step'], cell['bandwidth'][mine]))}"
    return Inequality.of(name, ratio.value, ">=", limit, detail)


def _bits(cell: Mapping[str, Any]) -> dict[str, Any]:
    rows = {}
    for bits, times in cell["seconds"].items():
        size = cell["bytes"][bits]
        ratio = ratio_of_medians(cell["seconds"][str(BITS[0])], times)
        rows[bits] = {"ms": 1e3 * float(np.median(times)), "mb": size / 1e6, "faster": vars(ratio)}
        rows[bits] |= reached(size, times, cell["bandwidth"][bits])
    return {"rows": rows}


def _closeness(cell: Mapping[str, Any]) -> dict[str, float]:
    ratio = math.exp(float(np.mean(np.asarray(cell["arm"]) - np.asarray(cell["other"]))))
    return {"ratio": ratio, "kl": cell["kl"], "agreement": cell["agreement"]}


def _median(cell: Mapping[str, Any], arm: str, kind: str) -> float:
    return float(np.median(cell["arms"][arm][kind]))


def _spread(ratio: Interval) -> str:
    return f"(95 % {ratio.low:.2f}–{ratio.high:.2f}, n={ratio.n})"
