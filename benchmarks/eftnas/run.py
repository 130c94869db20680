"""Claim: sizes and orders that follow from learnt scores do at least as well as lists made by hand.

MiniLM, fine-tuned on the sentences of SST-2, is the teacher and the start of every arm. Super-networks with sizes by
learnt scores, with the same share of every layer, and with sizes by activations get the same steps, paths, teacher and
evaluations. Beside them single networks are pruned to a budget and distilled alone; and before any training widths are
cut in the order of every score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _elastic
from benchmarks._elastic import Subject
from benchmarks._frame import Inequality, Store
from lissome.core.errors import AssetError
from lissome.cost.counted import Counter
from lissome.engine.ranking import ranking, saliency
from lissome.engine.supermethod import Making
from lissome.methods.elastic.eftnas import EFTNAS
from lissome.models.binding import extract, ranks, reorder

HALF, SMALL = 0.5, 0.2
SHARES = (HALF, SMALL)
"""Shares of the multiply-accumulates at which models are cut out; at the smaller one a model is five times smaller."""
ARMS: dict[str, dict[str, Any]] = {
    "learned": {"scores": "learned", "lists": "scores"},
    "uniform": {"scores": "learned", "lists": "uniform"},
    "wanda": {"scores": "wanda", "lists": "scores"},
}
ORDERS = ("learned", "l1", "l2", "wanda", "first_order", "random", "none")
STEPS, TEACHER = 600, 800
MARGIN, NEAR = 1.0, 0.02
"""Points of accuracy that may be lost; how near the smallest network is to what it shall cost."""


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller."""

    seeds: tuple[int, ...]
    trials: int
    part: float

    def steps(self, count: int) -> int:
        """So many steps, or fewer."""
        return max(4, round(count * self.part))


FULL, QUICK = Scale((0, 1, 2), 150, 1.0), Scale((0,), 12, 0.02)


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    try:
        _elastic.sentences()
    except AssetError as error:
        print(f"eftnas is skipped: {error}")
        return []
    scale = QUICK if quick else FULL
    cells = {name: compute() for name, compute in _cells(scale, store) if store.wants(name)}
    if store.pattern is not None:
        return []
    found = judge(cells, scale.seeds)
    store.publish("eftnas", {"cells": cells, "seeds": scale.seeds, "inequalities": [vars(one) for one in found]})
    return found


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    facts = {"part": scale.part, "trials": scale.trials, "steps": STEPS, "teacher": TEACHER}

    def cell(name: str, compute: Callable[[Path, Subject], dict[str, Any]], **more: Any) -> dict[str, Any]:
        known = {**facts, **more}
        return store.cell(name, known, lambda: compute(store.scratch(name, known), teacher(scale, store)))

    yield "teacher", lambda: cell("teacher", lambda _, it: _whole(it))
    yield "orders", lambda: cell("orders", lambda folder, it: orders(it, folder, scale.steps(200)))
    for seed in scale.seeds:
        for arm, how in ARMS.items():
            yield (
                f"{arm}-{seed}",
                lambda arm=arm, how=how, seed=seed: cell(
                    f"{arm}-{seed}", lambda folder, it: _made(it, folder, arm, scale, seed), seed=seed, arm=how
                ),
            )
        for share in SHARES:
            yield (
                f"alone-{share:g}-{seed}",
                lambda share=share, seed=seed: cell(
                    f"alone-{share:g}-{seed}", lambda _, it: _alone(it, share, scale, seed), seed=seed, share=share
                ),
            )


def teacher(scale: Scale, store: Store) -> Subject:
    """MiniLM, fine-tuned."""
    facts = {"part": scale.part, "teacher": TEACHER}
    return _elastic.encoder(store.scratch("model", facts), steps=scale.steps(TEACHER))


def _whole(it: Subject) -> dict[str, Any]:
    return {"test": _elastic.packed(_elastic.original(it), _elastic.objective(it))}


def _made(it: Subject, folder: Path, arm: str, scale: Scale, seed: int) -> dict[str, Any]:
    settings = {
        **ARMS[arm],
        "steps": scale.steps(STEPS),
        "score_steps": scale.steps(200),
        "smallest": SMALL,
        "lr": 1e-4,
    }
    place = _elastic.supernet(
        it, folder, method="eftnas", settings=settings, trials=scale.trials, seed=seed, sampler="nsga2"
    )
    found = _elastic.measured(it, place, (HALF, SMALL * (1 + NEAR)), folder / "cut")
    return {**found, "volume": _elastic.volume(found["front"]), "latency": _elastic.latency(it, folder / "cut" / "0.5")}


def _alone(it: Subject, share: float, scale: Scale, seed: int) -> dict[str, Any]:
    """One network, pruned to a budget and distilled by itself."""
    judge, given = _elastic.objective(it), _elastic.original(it)
    small = _elastic.pruned(it, share * Counter(given).count().macs, multiple=1)
    model = _elastic.tuned(small, judge, steps=scale.steps(STEPS), seed=seed, teacher=given, lr=1e-4)
    return {"test": _elastic.packed(model, judge)}


def orders(it: Subject, folder: Path, score_steps: int) -> dict[str, Any]:
    """Half of all widths without training, by what sorted them."""
    judge, found = _elastic.objective(it), {}
    for order in ORDERS:
        making = Making(_elastic.original(it), _elastic.context(it, folder, 0), EFTNAS.Config(score_steps=score_steps))
        work = making.model
        if order == "learned":
            _, values = EFTNAS(EFTNAS.Config(score_steps=score_steps)).worth(making)
            reorder(work, dict(zip(values, ranks(list(values.values())), strict=True)))
        elif order != "none":
            scores = saliency(work, order, batches=judge.batches(256), task=judge.task(work), seed=0)
            reorder(work, ranking(work, scores, sides="both"))
        subnet, space = _elastic.uniform(work, HALF, multiple=1)
        found[order] = _elastic.packed(extract(work, subnet, space=space), judge)
    return found


def judge(cells: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    made = {arm: [cells[f"{arm}-{seed}"] for seed in seeds] for arm in ARMS}
    given = [cells["teacher"]["test"]] * len(seeds)
    off = max(abs(one["least"] / SMALL - 1) for one in made["learned"])
    found = [Inequality.of("the smallest network against what it shall cost, furthest", off, "<=", NEAR)]
    mine, hand = (sum(one["volume"] for one in made[arm]) / len(seeds) for arm in ("learned", "uniform"))
    found.append(Inequality.of("volume of the front over that of lists made by hand", mine / hand, ">=", 1.0))
    half = [one["cut"][f"{HALF:g}"] for one in made["learned"]]
    tests = [one["test"] for one in half]
    found += [
        Inequality.of("multiply-accumulates at half, most", max(one["macs"] for one in half), "<=", HALF),
        _elastic.not_worse("at half against the teacher, points", tests, given, MARGIN),
    ]
    for share in SHARES:
        key = f"{share:g}" if share == HALF else f"{SMALL * (1 + NEAR):g}"
        name = f"one run at {share:.0%} against a network distilled alone, points"
        alone = [cells[f"alone-{share:g}-{seed}"]["test"] for seed in seeds]
        found.append(_elastic.not_worse(name, [one["cut"][key]["test"] for one in made["learned"]], alone, MARGIN))
    learned, plain = (_elastic.points([cells["orders"][order]]) for order in ("learned", "none"))
    others = ", ".join(f"{order} {_elastic.points([cells['orders'][order]]):.1f}" for order in ORDERS[1:])
    found.append(
        Inequality.of("half of all widths untrained, learnt order against the given", learned, ">", plain, others)
    )
    slow = max(one["latency"][2] for one in made["learned"])
    found.append(Inequality.of("latency at half, upper end", slow, "<", 1.0))
    return found
