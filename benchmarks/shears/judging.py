"""From cells to stored results and inequalities."""

# S seeds, N texts or windows

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._frame import Inequality
from benchmarks._numbers import perplexity
from benchmarks.shears.arms import unpacked
from benchmarks.shears.names import ARMS, DECODER, ENCODER, MIDDLE, RANKS, SHARE, SHARES, SWEEP, TEXT_ARMS, shown, swept
from lissome.ops.stats import Interval, paired_bootstrap

POINT = 1.0
"""Points of accuracy within which one result does for another."""
SLOWER = 1.1
_EXACT = 1e-5
_LARGEST = ("difference", "apart")  # of what merging does, where seeds are not summed
_LOST = 0.01  # share of zeros below which they are lost
_BEFORE = (0.5, 0.6)  # shares of zeros at which Wanda and magnitude are judged

Cells = Mapping[str, Mapping[str, Any]]
Judged = tuple[dict[str, Any], list[Inequality]]


def judge_words(cells: Cells, seeds: Sequence[int], _tuned: Mapping[float, Sequence[int]]) -> Judged:
    """Judge the arms on classes of texts; every seed's accuracy counts once."""
    known = [arm for arm in ARMS if f"{ENCODER}-{arm}-{seeds[0]}" in cells]
    rows = {arm: [cells[f"{ENCODER}-{arm}-{seed}"] for seed in seeds] for arm in known}
    right = {
        arm: {cut: np.stack([unpacked(cell["test"][cut]) for cell in found]) for cut in found[0]["test"]}
        for arm, found in rows.items()
    }
    result: dict[str, Any] = {"seeds": list(seeds), "arms": {arm: _row(rows[arm], right[arm]) for arm in known}}
    result["merging"] = {arm: _worst(found) for arm, found in rows.items() if "merging" in found[0]}
    result["speed"] = cells[f"{ENCODER}-speed"]
    result["sweep"] = {name: _sweep(name, cells) for name in SWEEP if name in known}
    found = [_close(f"{ENCODER}: NLS of rank {MIDDLE} against LoRA of rank {RANKS[0]}, same base",
                    right["nls"][str(MIDDLE)], right["lora"][str(RANKS[0])])]  # fmt: skip
    found.append(_in_time(ENCODER, result["speed"]))
    found += _cut(right)
    for rank in RANKS:
        own = right["lora" if rank == RANKS[0] else f"lora-{rank}"][str(rank)]
        label = f"{ENCODER}: one NLS run at rank {rank} against a LoRA run of that rank"
        found.append(_close(label, right["nls"][str(rank)], own))
    return result, found + _exactness(result["merging"])


def _row(cells: Sequence[Mapping[str, Any]], right: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Accuracy of every cut in points, of the mean over seeds and by seed, and how the arm was trained."""
    cuts = {
        cut: {**_interval(paired_bootstrap(100 * one.mean(0))), "per_seed": (100 * one.mean(1)).tolist()}
        for cut, one in right.items()
    }
    losses = np.array([cell["loss"] for cell in cells]).mean(0).tolist()
    facts = {key: cells[0][key] for key in ("rate", "tried", "steps")}
    return {"cuts": cuts, "loss": losses, "seconds": float(np.mean([cell["seconds"] for cell in cells])), **facts}


def _sweep(name: str, cells: Cells) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of every rank by what is set to what, with the seed that was tried; the usual setting comes first."""
    own, found = cells[f"{ENCODER}-{name}-0"], dict[str, dict[str, dict[str, float]]]()
    for knob, value, _ in swept(name):
        cell = cells.get(f"{ENCODER}-{name}-{knob}-{value}")
        if cell is not None:
            usual = shown(own["steps"] if knob == "steps" else getattr(ARMS[name], knob))
            found.setdefault(knob, {usual: _by_cut(own)})[value] = _by_cut(cell)
    return found


def _by_cut(cell: Mapping[str, Any]) -> dict[str, float]:
    return {cut: 100 * float(unpacked(one).mean()) for cut, one in cell["test"].items()}


def _close(label: str, mine: NDArray[np.float64], other: NDArray[np.float64]) -> Inequality:
    """At most a point worse, [S, N] each: the right side of the sentence is a point below the other accuracy."""
    return Inequality.of(
        f"{label}, at most {POINT:g} point below, accuracy",
        100 * float(mine.mean()),
        ">=",
        100 * float(other.mean()) - POINT,
        _difference(mine, other),
    )


def _difference(mine: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    change = paired_bootstrap(100 * (mine - other).mean(0))
    return (
        f"(difference {change.value:+.2f}, 95 % {change.low:+.2f} to {change.high:+.2f}, n={change.n}, "
        f"{len(mine)} seeds)"
    )


def _in_time(model: str, speed: Mapping[str, Any]) -> Inequality:
    row = speed["nls"]
    detail = f"(95 % {row['low']:.3f}–{row['high']:.3f}, n={row['n']} steps each, in turns)"
    return Inequality.of(f"{model}: time of a step, NLS / LoRA", row["value"], "<=", SLOWER, detail)


def _cut(right: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> list[Inequality]:
    """NLS against LoRA that is cut to its leading ranks: over all ranks, and most at the smallest."""
    nls, lora = (np.stack([right[arm][str(rank)] for rank in RANKS]) for arm in ("nls", "lora"))
    gaps = 100 * (nls - lora).mean((1, 2))
    best = np.stack([right["lora"][str(RANKS[0])], *(right["lora"][f"svd {rank}"] for rank in RANKS[1:])])
    detail = f"{_difference(nls.mean(0), lora.mean(0))} (cut by SVD: {100 * best.mean():.2f})"
    label = (
        f"{ENCODER}: mean over ranks {', '.join(map(str, RANKS))}, NLS against LoRA cut to its leading ranks, points"
    )
    smallest = f"{ENCODER}: gap to LoRA cut to its leading ranks, at rank {RANKS[-1]} against the largest at another"
    shown = ", ".join(f"{rank}: {gap:+.2f}" for rank, gap in zip(RANKS, gaps, strict=True))
    return [
        Inequality.of(label, 100 * float(nls.mean()), ">", 100 * float(lora.mean()), detail),
        Inequality.of(smallest, float(gaps[-1]), ">", float(gaps[:-1].max()), f"(by rank {shown})"),
    ]


def _worst(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What merging did, all seeds together."""
    facts = [cell["merging"] for cell in cells]
    return {key: (max if key in _LARGEST else sum)(one[key] for one in facts) for key in facts[0]}


def _exactness(merging: Mapping[str, Mapping[str, Any]]) -> list[Inequality]:
    sparse, whole, plain = merging["masked"], merging["quantised"], merging["lora"]
    return [
        Inequality.of(
            f"{ENCODER}: zeros of adapted layers after a masked merge, against before", sparse["zeros_after"], "==",
            sparse["zeros_before"], f"(of {sparse['numel']:,}; {sparse['revived']} revived)",
        ),
        Inequality.of(
            f"{ENCODER}: difference of logits, masked, merged against not", sparse["difference"], "<=", _EXACT,
            f"(computed as two products: {sparse['apart']:.1e} of the largest logit)",
        ),
        Inequality.of(
            f"{ENCODER}: share of zeros of adapted layers after an ordinary merge",
            plain["zeros_after"] / plain["numel"], "<", _LOST,
            f"(before: {plain['zeros_before'] / plain['numel']:.3f})",
        ),
        Inequality.of(f"{ENCODER}: difference of logits, 4 bits, merged against rounded in the forward",
                      whole["difference"], "==", 0),
        Inequality.of(f"{ENCODER}: adapted layers that are whole numbers after a 4-bit merge, bit for bit",
                      whole["on_grid"], "==", whole["layers"], f"({whole['revived']} zeros revived)"),
    ]  # fmt: skip


def judge_text(cells: Cells, seeds: Sequence[int], tuned: Mapping[float, Sequence[int]]) -> Judged:
    """Judge perplexity before tuning, and the decisive arms after it, where they were run."""
    shares = [share for share in sorted(SHARES) if f"{DECODER}-magnitude-{share:g}-0" in cells]
    dense = np.array(cells[f"{DECODER}-dense"]["nll"])
    result: dict[str, Any] = {"seeds": list(seeds), "dense": _ppl(dense), "before": {}}
    result |= {"tuned": {}, "tuned_seeds": {f"{share:g}": list(own) for share, own in tuned.items()}}
    found = []
    for share in shares:
        wanda = np.array([cells[f"{DECODER}-wanda-{share:g}-{seed}"]["nll"] for seed in seeds]).mean(0)
        magnitude = np.array(cells[f"{DECODER}-magnitude-{share:g}-0"]["nll"])
        result["before"][f"{share:g}"] = {"wanda": _ppl(wanda), "magnitude": _ppl(magnitude)}
        if share in _BEFORE:
            label = f"{DECODER} at {share:.0%} zeros, before tuning: perplexity, Wanda against magnitude per row"
            left, right = math.exp(wanda.mean()), math.exp(magnitude.mean())
            found.append(Inequality.of(label, left, "<", right, _ratio(wanda, magnitude, len(seeds))))
    for key in ("speed", "bytes"):
        result[key] = dict(cells[f"{DECODER}-{key}"])
    found.append(_in_time(DECODER, result["speed"]))
    whole = sum(result["bytes"][key] for key in ("sparse", "adapters"))
    found.append(
        Inequality.of(f"{DECODER}: bytes, half of the block weights zero and adapters of rank {MIDDLE}, against dense",
                      whole, "<", result["bytes"]["dense"])
    )  # fmt: skip
    for share, own in tuned.items():
        result["tuned"][f"{share:g}"], more = _judge_tuned(cells, own, share)
        found += more if share == SHARE else []
    return result, found


def _judge_tuned(cells: Cells, seeds: Sequence[int], share: float) -> Judged:
    """The decisive arms at one share of zeros."""
    rows = {
        arm: [cells[f"{DECODER}-{arm}-{(SHARE if arm == 'dense' else share):g}-{seed}"] for seed in seeds]
        for arm in TEXT_ARMS
    }
    nll, right = (
        {
            arm: {cut: np.array([cell["test"][cut][what] for cell in found]).mean(0) for cut in found[0]["test"]}
            for arm, found in rows.items()
        }
        for what in ("nll", "right")
    )
    lora, mine = nll["lora"], nll["nls"]
    result = {
        arm: {
            "cuts": {
                cut: {**_ppl(one), "right": 100 * float(right[arm][cut].mean()), "per_seed": _per_seed(rows[arm], cut)}
                for cut, one in nll[arm].items()
            },
            **{key: rows[arm][0][key] for key in ("rate", "tried", "steps")},
            "seconds": float(np.mean([cell["seconds"] for cell in rows[arm]])),
        }
        for arm in TEXT_ARMS
    }
    naive, turned = (
        np.mean([lora[str(RANKS[0])], *(lora[f"{how}{rank}"] for rank in RANKS[1:])], axis=0) for how in ("", "svd ")
    )
    over = np.mean([mine[str(rank)] for rank in RANKS], axis=0)
    top = str(RANKS[0])
    label = f"{DECODER} at {share:.0%} zeros: "
    points = _points(right["nls"][str(MIDDLE)], right["lora"][top])
    return result, [
        Inequality.of(
            f"{label}NLS of rank {MIDDLE} against LoRA of rank {top}, at most {POINT:g} point below, % right tokens",
            100 * float(right["nls"][str(MIDDLE)].mean()), ">=", 100 * float(right["lora"][top].mean()) - POINT,
            f"({points}; perplexity {_ratio(mine[str(MIDDLE)], lora[top], len(seeds))})",
        ),
        Inequality.of(
            f"{label}perplexity over ranks, NLS against LoRA cut to its leading ranks", math.exp(over.mean()), "<",
            math.exp(naive.mean()), f"{_ratio(over, naive, len(seeds))} (cut by SVD: {math.exp(turned.mean()):.2f})",
        ),
    ]  # fmt: skip


def _per_seed(cells: Sequence[Mapping[str, Any]], cut: str) -> list[float]:
    return [math.exp(float(np.mean(cell["test"][cut]["nll"]))) for cell in cells]


def _points(mine: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    change = paired_bootstrap(100 * (mine - other))
    return f"difference {change.value:+.2f}, 95 % {change.low:+.2f} to {change.high:+.2f}"


def _ppl(losses: NDArray[np.float64]) -> dict[str, float]:
    """Perplexity of windows float64[N] with its interval."""
    return _interval(perplexity(losses))


def _ratio(mine: NDArray[np.float64], other: NDArray[np.float64], seeds: int) -> str:
    ratio = perplexity(mine - other)
    return f"(ratio {ratio.value:.3f}, 95 % {ratio.low:.3f}–{ratio.high:.3f}, n={ratio.n} windows, {seeds} seeds)"


def _interval(found: Interval) -> dict[str, float]:
    return {key: getattr(found, key) for key in ("value", "low", "high", "n")}
