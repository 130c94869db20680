"""Claim: search finds more than draws do at equal evaluations, its figures are cheap, and the winner is faster.

A language model of bytes that ships with lissome is searched as it is for perplexity and parameters through
`lissome.pipeline`, as `lissome search` does. All samplers get the same trials, the same text, and start from the same
Subnets. What they leave behind is the volume between their front and one corner that is the same for all: the
perplexity of guessing, and the parameters of the original. Perplexity counts by its logarithm, because half of a Space
is worse than guessing. What figures cost, and how latency is predicted and won, is measured on SmolLM2, 150 axes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import _elastic
from benchmarks._elastic import Cell, Cells, Scale
from benchmarks._frame import Inequality, Store
from lissome import pipeline
from lissome.core.events import EventStream
from lissome.cost.measured import compare
from lissome.cost.oracle import SubnetCost
from lissome.cost.passes import pass_table
from lissome.cost.predicted import Agreement, Regression, held_out, time_subnets, totals
from lissome.cost.table import cached_table
from lissome.engine.search import Found
from lissome.engine.search.moves import draw
from lissome.engine.search.pareto import hypervolume
from lissome.models.binding import extract
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.pipeline.searching import FOUND

SEARCHED, MODEL = "zoo-llama", "smollm2-135m"
"""Whose volume is compared; and whose figures are counted and timed."""
SAMPLERS = ("nsga2", "tpe", "climb", "ensemble", "random")
JUDGED = ("nsga2", "ensemble")
"""The default, and the autotuner; the others are shown beside them."""
TRIALS = 200
MARKS = (50, 100, 200)
"""Trials at which the volume is read off."""
SEEDS = 5

RATE = 10_000
"""Counted figures of distinct Subnets, not counted before, a second."""
_COUNTED = 20_000
_TIMED = 32
PASSES = ("minilm", "efficientnet-lite0")
"""Models that read an input once, whose latency is predicted too."""
FEW = 10
"""Sub-networks timed with all threads, that correct what is known of one thread."""
_BUDGET, _WINNER_TRIALS = "latency<=85%", 80


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("search", quick, store, cells=cells, judge=judge)


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured; the seed is the outer loop: an interrupted run has all samplers of the first ones."""
    del store
    for seed in range(SEEDS if scale == _elastic.FULL else 2):
        for sampler in SAMPLERS:
            facts = {"model": SEARCHED, "sampler": sampler, "seed": seed, "trials": TRIALS}
            yield Cell(f"{sampler}-{seed}", facts, partial(_searched, sampler, seed))
    yield Cell("rates", {"model": MODEL, "subnets": _COUNTED}, lambda _: _rates())
    yield Cell("latency", {"model": MODEL, "subnets": _TIMED}, lambda _: _latency())
    for name in PASSES:
        facts = {"model": name, "subnets": _TIMED, "few": FEW}
        yield Cell(f"latency-{name}", facts, lambda _, name=name: _passes(name))
    yield Cell("winner", {"model": MODEL, "budget": _BUDGET, "trials": _WINNER_TRIALS}, _winner)


def _searched(sampler: str, seed: int, folder: Path) -> dict[str, Any]:
    """Search once; the figures of all Subnets in the order of their proposals."""
    report = pipeline.search(
        SEARCHED, out=folder, objectives=("ppl", "params"), trials=TRIALS, sampler=sampler, seed=seed
    )
    found = Found.load(folder / FOUND)
    points = [[point.figures["ppl"], point.figures["params"]] for point in found.points]
    vocabulary = pipeline.load(SEARCHED).anatomy.vocabulary
    return {
        "points": points,
        "corner": [float(vocabulary), report.original["params"]],
        "splits": dict(found.splits),
        "per_trial": statistics.median(point.seconds for point in found.points),
    }


def volumes(found_of: Cells) -> dict[str, dict[str, list[float]]]:
    """Volume by sampler and trials, one for each seed, as a share of the whole square."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, cell in found_of.items():
        if "points" not in cell:
            continue
        by_trials = found.setdefault(name.rpartition("-")[0], {})
        for mark in MARKS:
            by_trials.setdefault(str(mark), []).append(volume(cell["points"][:mark], cell["corner"]))
    return found


def volume(points: Sequence[Sequence[float]], corner: Sequence[float]) -> float:
    """Share of the square from perplexity 1 and no parameters to the corner that points leave behind them."""
    values = [(math.log(max(1.0, ppl)) / math.log(corner[0]), params / corner[1]) for ppl, params in points]
    return hypervolume(values, (1.0, 1.0))


def _rates() -> dict[str, Any]:
    """Subnets counted a second, in seconds of processor time: rows at once, Subnets at once, one after the other."""
    model = pipeline.load(MODEL)
    space, rng = model.space(), Random(0)
    subnets = list({tuple(one.values()): one for one in (draw(space, rng) for _ in range(_COUNTED))}.values())
    rows = Codes(space).encode(subnets)
    ways = {
        "rows": lambda cost: cost.columns(space, rows),
        "Subnets": lambda cost: cost.columns(space, Codes(space).encode(subnets)),
        "one by one": lambda cost: [cost.figures(one) for one in subnets],
    }
    found = {}
    for name, count in ways.items():
        cost = SubnetCost(model)  # anew each time: nothing is known before
        start = time.process_time()
        count(cost)
        found[name] = len(subnets) / (time.process_time() - start)
    return {"rates": found, "distinct": len(subnets), "axes": len(space.axes)}


def _latency() -> dict[str, Any]:
    """How well two ways to predict latency rank sub-networks that they never saw."""
    model = pipeline.load(MODEL)
    space, rng = model.space(), Random("latency")
    subnets = [draw(space, rng) for _ in range(_TIMED)]
    timed = time_subnets(model, space, subnets, rounds=3)
    cost = SubnetCost(model, table=cached_table(model, events=EventStream()))
    return {
        "table": vars(Agreement.of([cost.figures(one)["latency"] for one in subnets], timed.seconds)),
        "regression": vars(held_out(totals(model), subnets, timed.seconds)),
        "spread": [min(timed.seconds) / timed.original, max(timed.seconds) / timed.original],
    }


def _passes(name: str) -> dict[str, Any]:
    """As `_latency`, of a model that reads an input once; and what few timed sub-networks tell by themselves or more.

    One thread stands for another device, of which as many sub-networks are known as are judged here.
    """
    model = pipeline.load(name)
    space, rng, features = model.space(), Random("latency"), totals(model)
    subnets = [draw(space, rng) for _ in range(_TIMED)]
    timed = time_subnets(model, space, subnets, rounds=3)
    other = time_subnets(model, space, subnets, rounds=3, threads=1)
    cost = SubnetCost(model, table=pass_table(model))
    known = Regression(features, subnets, other.seconds)
    few, rest, took, truth = subnets[:FEW], subnets[FEW:], timed.seconds[:FEW], timed.seconds[FEW:]
    return {
        "table": vars(Agreement.of([cost.figures(one)["latency"] for one in subnets], timed.seconds)),
        "regression": vars(held_out(features, subnets, timed.seconds)),
        "few": vars(Agreement.of(Regression(features, few, took)(rest), truth)),
        "corrected": vars(Agreement.of(Regression(features, few, took, prior=known)(rest), truth)),
        "one thread": vars(Agreement.of(known(rest), truth)),
        "spread": [min(timed.seconds) / timed.original, max(timed.seconds) / timed.original],
    }


def _winner(folder: Path) -> dict[str, Any]:
    """Time what a search under a bound on latency chose, cut out, in turns with the original."""
    pipeline.search(MODEL, out=folder, budget=(_BUDGET,), objectives=("ppl",), trials=_WINNER_TRIALS)
    found = Found.load(folder / FOUND)
    if found.chosen is None:
        raise RuntimeError(f"no Subnet of {_WINNER_TRIALS} holds {_BUDGET}")
    model: Model = pipeline.load(MODEL)
    space: Space = model.space()
    chosen: Subnet = found.subnet(found.chosen)
    ratio = compare(model, extract(model, chosen, space=space)).ratios["latency"]
    return {
        "ratio": [ratio.value, ratio.low, ratio.high],
        "predicted": found.points[found.chosen].figures["latency"] / found.original["latency"],
        "ppl": [found.points[place].test.get("ppl") for place in (found.chosen, _full(found))],
    }


def _full(found: Found) -> int:
    return next(place for place in range(len(found.points)) if found.subnet(place) == found.space.full)


def judge(found_of: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    del seeds  # there are more of them here
    last, by, found = str(TRIALS), volumes(found_of), list[Inequality]()
    drawn = by["random"][last]
    for sampler in JUDGED:
        mine = by[sampler][last]
        wins = sum(a > b for a, b in zip(mine, drawn, strict=True))
        detail = f"(better with {wins} of {len(drawn)} seeds)"
        name = f"{sampler}: volume over that of draws, mean of seeds, {TRIALS} trials"
        found.append(Inequality.of(name, statistics.mean(mine) / statistics.mean(drawn), ">=", 1.0, detail))
    for name, rate in found_of["rates"]["rates"].items():
        found.append(Inequality.of(f"counted a second, {name}", rate, ">=", RATE))
    _, low, high = found_of["winner"]["ratio"]
    found.append(
        Inequality.of("latency of the winner ÷ the original's, upper end", high, "<", 1.0, f"({low:.3f}–{high:.3f})")
    )
    for name in (MODEL, *PASSES):
        cell = found_of["latency" if name == MODEL else f"latency-{name}"]
        for way in ("table", "regression"):
            rank, detail = cell[way]["spearman"], f"n={_TIMED}"
            found.append(Inequality.of(f"{name}: rank correlation of latency by {way}", rank, ">=", 0.8, detail))
    return found
