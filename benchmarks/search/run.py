"""Claim: search finds more than draws do at equal evaluations, its figures are cheap, and the winner is faster.

The Space is that of SmolLM2 as it is, 150 axes, searched for perplexity and parameters through `lissome.pipeline`, as
`lissome search` does. All samplers get the same trials, the same text, and start from the same Subnets. What they leave
behind is the volume between their front and one corner that is the same for all: the perplexity of guessing, and the
parameters of the original. Perplexity counts by its logarithm, because half of a Space is worse than guessing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks._frame import Inequality, Store
from lissome import pipeline
from lissome.core.events import EventStream
from lissome.core.files import cache_dir
from lissome.cost.measured import compare
from lissome.cost.oracle import SubnetCost
from lissome.cost.predicted import Agreement, held_out, time_subnets, totals
from lissome.cost.table import cached_table
from lissome.engine.search import Found
from lissome.engine.search.moves import draw
from lissome.engine.search.pareto import hypervolume
from lissome.models.binding import extract
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.pipeline.searching import FOUND

MODEL = "smollm2-135m"
SAMPLERS = ("nsga2", "tpe", "climb", "ensemble", "random")
JUDGED = ("nsga2", "ensemble")
"""The default, and the autotuner; the others are shown beside them."""
TRIALS = 100
MARKS = (25, 50, 100)
"""Trials at which the volume is read off."""
SEEDS = {False: 5, True: 2}

RATE = 10_000
"""Counted figures of distinct Subnets, not counted before, a second."""
_COUNTED = 20_000
_TIMED = 32
_BUDGET, _WINNER_TRIALS = "latency<=85%", 80


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    seeds = range(SEEDS[quick])
    cells = {
        name: _cell(store, name, sampler, seed)
        for seed in seeds  # the seed is the outer loop: an interrupted run has all samplers of the first ones
        for sampler in SAMPLERS
        if store.wants(name := f"{sampler}-{seed}")
    }
    others = {"rates": _rates, "latency": _latency, "winner": _winner}
    rest = {
        name: store.cell(name, {"model": MODEL, **_SETTINGS[name]}, compute)
        for name, compute in others.items()
        if store.wants(name)
    }
    if store.pattern is not None:
        return []
    result = {"volumes": volumes(cells), **rest}
    found = judge(result)
    store.publish("search", {**result, "inequalities": [vars(one) for one in found]})
    return found


_SETTINGS: dict[str, dict[str, Any]] = {
    "rates": {"subnets": _COUNTED},
    "latency": {"subnets": _TIMED},
    "winner": {"budget": _BUDGET, "trials": _WINNER_TRIALS},
}


def _cell(store: Store, name: str, sampler: str, seed: int) -> dict[str, Any]:
    settings = {"model": MODEL, "sampler": sampler, "seed": seed, "trials": TRIALS}
    return store.cell(name, settings, lambda: _searched(store.scratch(name, settings), sampler, seed))


def _searched(folder: Path, sampler: str, seed: int) -> dict[str, Any]:
    """Search once; the figures of all Subnets in the order of their proposals."""
    report = pipeline.search(MODEL, out=folder, objectives=("ppl", "params"), trials=TRIALS, sampler=sampler, seed=seed)
    found = Found.load(folder / FOUND)
    points = [[point.figures["ppl"], point.figures["params"]] for point in found.points]
    vocabulary = pipeline.load(MODEL).anatomy.vocabulary
    return {
        "points": points,
        "corner": [float(vocabulary), report.original["params"]],
        "splits": dict(found.splits),
        "per_trial": statistics.median(point.seconds for point in found.points),
    }


def volumes(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Volume by sampler and trials, one for each seed, as a share of the whole square."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, cell in cells.items():
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


def _winner() -> dict[str, Any]:
    """Time what a search under a bound on latency chose, cut out, in turns with the original."""
    folder = cache_dir() / "benchmarks" / "search" / "winner"
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


def judge(result: Mapping[str, Any]) -> list[Inequality]:
    """Turn the results into inequalities."""
    last, found = str(TRIALS), []
    drawn = result["volumes"]["random"][last]
    for sampler in JUDGED:
        mine = result["volumes"][sampler][last]
        wins = sum(a > b for a, b in zip(mine, drawn, strict=True))
        detail = f"(better with {wins} of {len(drawn)} seeds)"
        name = f"{sampler}: volume over that of draws, mean of seeds, {TRIALS} trials"
        found.append(Inequality.of(name, statistics.mean(mine) / statistics.mean(drawn), ">=", 1.0, detail))
    for name, rate in result["rates"]["rates"].items():
        found.append(Inequality.of(f"counted a second, {name}", rate, ">=", RATE))
    _, low, high = result["winner"]["ratio"]
    found.append(
        Inequality.of("latency of the winner ÷ the original's, upper end", high, "<", 1.0, f"({low:.3f}–{high:.3f})")
    )
    for way in ("table", "regression"):
        rank = result["latency"][way]["spearman"]
        found.append(Inequality.of(f"rank correlation of latency by {way}", rank, ">=", 0.8, f"n={_TIMED}"))
    return found
