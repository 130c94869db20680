"""Claim: the plain mean is Flower's own FedAvg, at its cost; neither many clients nor unreliable ones are a problem.

MiniLM, its embeddings frozen. Against Flower: the same app on the same grid, four clients, three rounds of eight plain
steps, three seeds of data and head; every final number within 1e-6, CPU time within 10 %. Memory: one round of 10 and
of 100 clients, every other one with half of the blocks' parameters, in a process of its own. Unreliable clients: twelve
languages, ten clients, Dirichlet 0.3; 30 % of the orders are never answered, two clients need ten times as long as the
others and more than a round lasts, against the same federation in which all answer in time. What one round sends is
counted for every kind of exchange. Differential privacy: a head learned by 32 clients, with noise of several strengths;
the ε that it promises, accuracy, and how well losses tell what was learned from.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._arms import Cell, by_arm, final, paired_told, told_of
from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES, SEEDS, Job, judged
from benchmarks._frame import Inequality, Store

FEW, MANY, QUICK_ROUNDS = 10, 100, 2
EXACT, OVERHEAD, GROWTH, MEMORY, BEHIND = 1e-6, 1.10, 1.2, 12 << 30, 0.02
TOLD = 0.02
"""By how much more losses may tell with noise than without: the upper end of the interval must stay below."""


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.fedavg import memory, private, rough, sizes, stock

    facts = {
        "clients": stock.CLIENTS, "rounds": stock.ROUNDS, "training": stock.CONFIG.to_mapping(), "model": "minilm",
    }  # fmt: skip
    rounds = QUICK_ROUNDS if quick else rough.ROUNDS
    known = {"rounds": rounds, "step": rough.STEP, "alpha": ALPHA, "clients": CLIENTS, "deadline": rough.DEADLINE}
    noisy = {"rounds": QUICK_ROUNDS if quick else private.ROUNDS, "step": private.STEP, "dealt": private.DEALT}
    jobs: dict[str, Job] = {}
    for count in (FEW, MANY):
        settings = {"clients": count, "budget": memory.BUDGET, "texts": memory.TEXTS}
        jobs[f"memory-{count}"] = (settings, partial(_memory, count))
    jobs["sizes"] = ({"exchanges": list(sizes.EXCHANGES.values())}, lambda _folder: sizes.counted())
    for seed in SEEDS[:1] if quick else SEEDS:
        jobs[f"stock-{seed}"] = ({**facts, "seed": seed}, partial(_compared, seed))
        for arm in rough.DEVICES:
            settings = {**known, "devices": rough.DEVICES[arm], "loop": rough.LOOPS[arm], "seed": seed}
            jobs[f"{arm}-{seed}"] = (settings, partial(rough.arm, arm, seed, rounds))
        for noise in private.QUICK_NOISE if quick else private.NOISE:
            settings = {**noisy, "noise": noise, "seed": seed}
            jobs[f"private-{noise:g}-{seed}"] = (settings, partial(private.arm, noise, seed, noisy["rounds"]))
    return judged(store, {**facts, "rough": known, "private": noisy}, jobs, judge)


def _compared(seed: int, _folder: Path) -> Cell:
    from benchmarks.fedavg import stock

    return stock.compared(seed)


def judge(cells: Mapping[str, Cell]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of = by_arm(cells)
    pairs, calm, rough = of["stock"], final(of["calm"]), final(of["rough"])
    longest = max(max(cell["seconds"]) for cell in of["rough"])
    deadline = of["rough"][0]["deadline"]
    ratios = [cell["cpu_seconds"]["ours"] / cell["cpu_seconds"]["flower"] for cell in pairs]
    few, many = cells[f"memory-{FEW}"], cells[f"memory-{MANY}"]
    difference, change = max(cell["difference"] for cell in pairs), min(cell["change"] for cell in pairs)
    seeds = f"{len(pairs)} seeds"
    return [
        Inequality.of("largest difference to Flower's FedAvg after three rounds", difference, "<=", EXACT, seeds),
        Inequality.of("largest change that training made", change, ">=", 1000 * EXACT, seeds),
        Inequality.of("CPU time ÷ that of Flower's FedAvg, median", statistics.median(ratios), "<=", OVERHEAD, seeds),
        Inequality.of("30 % drop-out and stragglers ≥ all in time − 2 points", rough, ">=", calm - BEHIND, seeds),
        Inequality.of("seconds of its longest round", longest, "<=", deadline, seeds),
        *hidden(of, seeds),
        Inequality.of(f"clients of {MANY} that answered", many["answered"], "==", MANY),
        Inequality.of(f"peak memory with {MANY} clients, bytes", many["peak"], "<=", MEMORY),
        Inequality.of(f"peak memory with {MANY} clients ÷ with {FEW}", many["peak"] / few["peak"], "<=", GROWTH),
    ]


def hidden(of: Mapping[str, Sequence[Cell]], seeds: str) -> list[Inequality]:
    """Judge what noise costs and hides: the weakest that was added, and the strongest."""
    arms = sorted((arm for arm in of if arm.startswith("private-")), key=lambda arm: float(arm.rpartition("-")[2]))
    plain, weak, strong = of[arms[0]], of[arms[1]], of[arms[-1]]
    promised, (more, half) = weak[0]["epsilon"], paired_told(strong, plain)
    most = most_told(float(arms[-1].rpartition("-")[2]), len(strong[0]["spent"]) - 1)
    return [
        Inequality.of(f"accuracy with ε = {promised:.3g} > of guessing", final(weak), ">", 1 / len(LANGUAGES), seeds),
        Inequality.of("accuracy with the strongest noise ≤ with the weakest", final(strong), "<=", final(weak), seeds),
        Inequality.of(
            "told by losses ≤ what the strongest noise lets anybody tell", told_of(strong), "<=", most, seeds
        ),
        Inequality.of(
            "told by losses, with noise − without, upper end of 95 %",
            more + half,
            "<=",
            TOLD,
            f"{more:+.3f} ± {half:.3f}, clients of {seeds}",
        ),
    ]


def most_told(noise: float, releases: int) -> float:
    """Return how often an example that was learned from can be told from another at most, ½ is guessing.

    Several releases with Gaussian noise are one whose effect is at most μ = √T/z of its deviations (Dong et al. 2022,
    arXiv 1905.02383); the best test between two normal distributions so far apart has an area of Φ(μ/√2).

    Args:
        noise: z.
        releases: T.
    """
    return statistics.NormalDist().cdf(math.sqrt(releases / 2) / noise)


def _memory(count: int, _folder: Path) -> Cell:
    command = [sys.executable, "-m", "benchmarks.fedavg.memory", str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found
