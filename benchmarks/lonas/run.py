"""Claim: one run that trains adapters at all widths does for a run of LoRA at each, and shrinks the model.

MiniLM with a new head learns the sentences of SST-2 with its weights frozen. LoNAS trains ranks and widths together;
beside it, for each width, the model is pruned to it first and plain adapters are trained on that, with as many steps,
the same rate and the same rank. The ceiling is LoRA on the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import _elastic
from benchmarks._elastic import Subject
from benchmarks._frame import Inequality, Store
from lissome import pipeline
from lissome.core.errors import AssetError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.engine.ranking import ranking, saliency
from lissome.engine.train import train
from lissome.methods.elastic.lonas import LoNAS
from lissome.models.adapters import merge_lora
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

WIDTHS = (1.0, 0.75, 0.5)
HEADS = (1.0, 0.75, 0.5)
CHEAP = 0.75
RANKS = (8, 4, 2)
STEPS, RATE = 1200, 1e-3
MARGIN = 1.0
FEW = 0.05
"""Share of all numbers that have optimizer state, at most."""


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller."""

    seeds: tuple[int, ...]
    trials: int
    part: float

    @property
    def steps(self) -> int:
        """Steps of every arm."""
        return max(4, round(STEPS * self.part))


FULL, QUICK = Scale((0, 1, 2), 150, 1.0), Scale((0,), 12, 0.02)


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    try:
        _elastic.sentences()
    except AssetError as error:
        print(f"lonas is skipped: {error}")
        return []
    scale = QUICK if quick else FULL
    cells = {name: compute() for name, compute in _cells(scale, store) if store.wants(name)}
    if store.pattern is not None:
        return []
    found = judge(cells, scale.seeds)
    store.publish("lonas", {"cells": cells, "seeds": scale.seeds, "inequalities": [vars(one) for one in found]})
    return found


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    facts = {"steps": scale.steps, "trials": scale.trials, "rate": RATE, "ranks": RANKS}

    def cell(name: str, compute: Callable[[Path, Subject], dict[str, Any]], **more: Any) -> dict[str, Any]:
        known = {**facts, **more}
        return store.cell(name, known, lambda: compute(store.scratch(name, known), fresh(store)))

    for seed in scale.seeds:
        yield (
            f"lonas-{seed}",
            lambda seed=seed: cell(f"lonas-{seed}", lambda folder, it: _made(it, folder, scale, seed), seed=seed),
        )
        for share in WIDTHS:
            yield (
                f"lora-{share:g}-{seed}",
                lambda share=share, seed=seed: cell(
                    f"lora-{share:g}-{seed}", lambda _, it: lora(it, share, scale.steps, seed), seed=seed, share=share
                ),
            )


def fresh(store: Store) -> Subject:
    """MiniLM with a new head, which has learnt nothing."""
    return _elastic.encoder(store.scratch("model", {"steps": 0}), steps=0)


def _made(it: Subject, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    settings = {
        "steps": scale.steps, "lr": RATE, "ranks": RANKS, "widths": WIDTHS, "heads": HEADS, "tune_steps": 0,
        "multiple": 1,
    }  # fmt: skip
    place = _elastic.supernet(
        it, folder, method="lonas", settings=settings, trials=scale.trials, seed=seed, sampler="nsga2"
    )
    found = _elastic.measured(it, place, (CHEAP,), folder / "cut")
    details, model = read_manifest(place).lineage[0].details, pipeline.load(place)
    space = Space.from_json(read_manifest(place).space)
    widths = {f"{share:g}": _at(model, space, share, it) for share in WIDTHS}
    return {
        **found, "widths": widths, "trained": details["trained"] / details["of"],
        "latency": _elastic.latency(it, folder / "cut" / f"{CHEAP:g}"),
    }  # fmt: skip


def _at(model: Model, space: Space, share: float, it: Subject) -> str:
    """The Subnet of one share of all widths and of the largest rank."""
    values = {
        axis.name: axis.full if axis.name.endswith(".rank") else max(c for c in axis.choices if c <= share * axis.full)
        for axis in space.axes
    }
    small = extract(model, Subnet(values), space=space)
    merge_lora(small)
    return _elastic.packed(small, _elastic.objective(it))


def lora(it: Subject, share: float, steps: int, seed: int) -> dict[str, Any]:
    """Prune to a width by magnitude, then train plain adapters of the largest rank and the head."""
    judge, given = _elastic.objective(it), _elastic.original(it)
    work = given.derived(extract(given, given.space().full).module)
    reorder(work, ranking(work, saliency(work, "l1")))
    subnet, space = _elastic.uniform(work, share, multiple=1)
    small = extract(work, subnet, space=space)
    LoNAS(LoNAS.Config(ranks=RANKS[:1])).adapt(small, seed=seed)
    task = judge.task(small)
    train(task, judge.training(steps=steps, lr=RATE, batch=None, max_seconds=None), seed=seed)
    with torch.no_grad():
        merge_lora(small)
    macs = Counter(small).count().macs / Counter(given).count().macs
    return {"test": _elastic.packed(small, judge), "macs": macs}


def judge(cells: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    made = [cells[f"lonas-{seed}"] for seed in seeds]
    lora_of = {share: [cells[f"lora-{share:g}-{seed}"]["test"] for seed in seeds] for share in WIDTHS}
    found = [
        _elastic.not_worse(
            f"one run at {share:.0%} of widths against LoRA on a model pruned to it, points",
            [one["widths"][f"{share:g}"] for one in made], lora_of[share], MARGIN,
        )
        for share in WIDTHS
    ]  # fmt: skip
    cut = [one["cut"][f"{CHEAP:g}"] for one in made]
    most, few = max(one["macs"] for one in cut), max(one["trained"] for one in made)
    tests = [one["test"] for one in cut]
    found += [
        Inequality.of("multiply-accumulates of what was found, most", most, "<=", CHEAP),
        _elastic.not_worse("what was found against LoRA on the whole model, points", tests, lora_of[1.0], MARGIN),
        Inequality.of("share of numbers with optimizer state, most", few, "<=", FEW),
        Inequality.of("latency of what was found, upper end", max(one["latency"][2] for one in made), "<", 1.0),
    ]
    return found
