"""Claim: sub-networks of a segmenter, a third to two thirds smaller as whole models, do as well as it did untuned.

MiniSAM was trained here by ``tools/train_minisam.py`` and knows digits on photographs: it is no Segment Anything. On
two domains that it has not seen it becomes a super-network; beside it stand MiniSAM as it is, which is what the paper
compares with, and MiniSAM trained as a whole on the same examples for as many steps, which the paper leaves out.
Figures are the mean IoU of the mask that the model itself expects to be best, on scenes that had no part in training,
search or choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _elastic
from benchmarks._elastic import Cell, Cells, Scale
from benchmarks._frame import Inequality, Store
from lissome import pipeline
from lissome.data.masks import read_masks
from lissome.engine.ranking import ranking, saliency
from lissome.engine.search import Found
from lissome.engine.search.pareto import hypervolume
from lissome.engine.segments import Segments, segment_splits
from lissome.engine.train import train
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.ops.stats import paired_bootstrap
from lissome.pipeline.supernets import FOUND
from tools.train_minisam import given, scenes

DOMAINS = ("noisy", "striped")
SHARES = (0.7, 0.5, 0.4)
"""Shares of all parameters, the decoder's among them."""
WIDTHS = (0.75, 0.5, 0.25)
ORDERS = ("wanda", "l1", "random", "reversed")
SAMPLERS = ("ensemble", "nsga2", "random")
SCENES, TESTS = 500, 750
"""Scenes of a domain to learn from, to search and to choose by; and those that judge: about 2,000 masks."""
STEPS, RATE, TRIALS = 1000, 2e-4, 120
_SETTINGS = {"lr": RATE, "batch": 8, "weight_decay": 1e-4, "widths": "1,0.75,0.5,0.332,0.25", "removable": 0.75,
             "min_width": 32, "multiple": 4, "examples": 64}  # fmt: skip


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("supersam", quick, store, cells=cells, judge=judge)


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured, seed by seed."""
    facts, at = {"steps": STEPS, "scenes": [SCENES, TESTS], "settings": _SETTINGS}, partial(home, scale, store)
    yield Cell("given", facts, lambda _: _given(at()))
    for seed in scale.seeds:
        yield Cell(f"orders-{seed}", {**facts, "seed": seed}, lambda _, seed=seed: orders(at(), seed))
        for domain in DOMAINS:
            known = {**facts, "seed": seed, "domain": domain}
            yield Cell(
                f"full-{domain}-{seed}",
                known,
                lambda _, domain=domain, seed=seed: _full(at(), domain, scale, seed),
            )
            yield Cell(
                f"super-{domain}-{seed}",
                {**known, "trials": TRIALS},
                lambda folder, domain=domain, seed=seed: _made(at(), folder, domain, scale, seed),
            )


@dataclass(frozen=True)
class Home:
    """Where MiniSAM is, and the folder with the scenes of all domains."""

    model: Path
    scenes: Path


def home(scale: Scale, store: Store) -> Home:
    """Return MiniSAM and scenes; they are made the first time."""
    place = store.scratch("home", {"part": scale.part, "scenes": [SCENES, TESTS]})
    for seed, domain in enumerate(("photographs", *DOMAINS), start=1):
        file = place / f"{domain}.npz"
        if not file.exists():
            scenes(file, domain=domain, count=scale.of(SCENES, 24), tests=scale.of(TESTS, 6), seed=seed)
    return Home(given(place / "minisam", part=scale.part), place)


def _judge(model: Model, place: Home, domain: str) -> Segments:
    return Segments(segment_splits(model, read_masks(place.scenes / f"{domain}.npz")))


def _test(model: Model, place: Home, domain: str) -> list[float]:
    """IoU of every held-out mask, to four digits."""
    found = _judge(model, place, domain).each(model, "test")["miou"]
    return [round(float(value), 4) for value in found]


def _given(place: Home) -> dict[str, Any]:
    """MiniSAM as it is, in all domains."""
    model = pipeline.load(place.model)
    return {domain: _test(model, place, domain) for domain in ("photographs", *DOMAINS)}


def orders(place: Home, seed: int) -> dict[str, Any]:
    """MLP widths without training, by what sorted their units."""
    given = pipeline.load(place.model)
    judge, found = _judge(given, place, "photographs"), dict[str, Any]()
    names = [axis.name for axis in given.space().axes]
    widths = [name for name in names if name.startswith("vision_encoder.") and name.endswith(".width")]
    for order in ORDERS:
        work = given.derived(extract(given, given.space().full).module)
        score = "wanda" if order == "reversed" else order
        scores = saliency(work, score, batches=judge.batches(64), task=judge.task(work), seed=seed)
        sorted_ = ranking(work, scores, sides="both", axes=widths)
        reorder(work, {name: value.flip(-1) if order == "reversed" else value for name, value in sorted_.items()})
        for share in WIDTHS:
            sizes = {name: int(share * work.anatomy.space(finest=True).by_name[name].full) for name in widths}
            found[f"{order}-{share:g}"] = _test(extract(work, sizes), place, "photographs")
    return found


def _full(place: Home, domain: str, scale: Scale, seed: int) -> dict[str, Any]:
    """The whole model, trained on the domain: the baseline that the paper leaves out."""
    model = pipeline.load(place.model)
    judge = _judge(model, place, domain)
    train(judge.task(model), judge.training(steps=scale.of(STEPS), lr=RATE, batch=8, max_seconds=None), seed=seed)
    return {"test": _test(model, place, domain)}


def _made(place: Home, folder: Path, domain: str, scale: Scale, seed: int) -> dict[str, Any]:
    """The super-network of a domain, searched by several samplers, and models cut out of it."""
    settings = tuple(f"{name}={value}" for name, value in {**_SETTINGS, "steps": scale.of(STEPS)}.items())
    data = str(place.scenes / f"{domain}.npz")
    pipeline.supernet(str(place.model), method="supersam", data=data, settings=settings, seed=seed, out=folder / "S")
    volumes, cut = {}, dict[str, Any]()
    for sampler in reversed(SAMPLERS):  # the autotuner last: what it finds is what models are cut out of
        pipeline.search(
            str(folder / "S"), out=folder / sampler, trials=scale.of(TRIALS, 12), sampler=sampler, seed=seed,
            objectives=("miou", "params"),
        )  # fmt: skip
        volumes[sampler] = volume(Found.load(folder / "S" / FOUND))
    for share in SHARES:
        place_of = folder / f"cut-{share:g}"
        report = pipeline.extract_for(folder / "S", budget=f"params<={share:.0%}", out=place_of)
        small = pipeline.load(place_of)
        cut[f"{share:g}"] = {
            "params": report.figures["params"] / report.original["params"], "test": _test(small, place, domain),
        }  # fmt: skip
    return {"cut": cut, "volumes": volumes}


def volume(found: Found) -> float:
    """Share of the plane from no error and no parameters to the whole model without a mask that points leave behind."""
    values = [
        (1 - point.figures["miou"], point.figures["params"] / found.original["params"])
        for point in found.points
        if "miou" in point.figures
    ]
    return hypervolume(values, (1.0, 1.0))


def not_below(name: str, mine: Sequence[Sequence[float]], other: Sequence[float], detail: str = "") -> Inequality:
    """Compare IoUs on the same masks: the lower end of the 95 % interval of the mean difference, over seeds."""
    difference = np.mean(np.array(mine), axis=0) - np.array(other)
    found = paired_bootstrap(difference)
    told = f"({found.value:+.4f}, 95 % {found.low:+.4f} to {found.high:+.4f}, n={found.n}{detail})"
    return Inequality.of(name, found.low, ">=", 0.0, told)


def judge(found_of: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    found = []
    means = {
        order: [
            float(np.mean([found_of[f"orders-{seed}"][f"{order}-{share:g}"] for seed in seeds])) for share in WIDTHS
        ]
        for order in ORDERS
    }
    for place, share in enumerate(WIDTHS):
        for first, second, relation in (("wanda", "l1", ">="), ("l1", "random", ">"), ("random", "reversed", ">")):
            name = f"untrained at {share:.0%} of MLP widths: {first} against {second}, mean IoU"
            found.append(Inequality.of(name, means[first][place], relation, means[second][place]))  # type: ignore[arg-type]
    for domain in DOMAINS:
        made = [found_of[f"super-{domain}-{seed}"] for seed in seeds]
        full = float(np.mean([found_of[f"full-{domain}-{seed}"]["test"] for seed in seeds]))
        for share in SHARES:
            mine = [one["cut"][f"{share:g}"] for one in made]
            gap = full - float(np.mean([one["test"] for one in mine]))
            name = f"{domain}: {share:.0%} of all parameters against MiniSAM untuned, IoU"
            detail = f"; {gap:.4f} below the whole model trained as long"
            found += [
                not_below(name, [one["test"] for one in mine], found_of["given"][domain], detail),
                Inequality.of(f"{domain}: parameters at {share:.0%}", max(one["params"] for one in mine), "<=", share),
            ]
        tuner, drawn = (float(np.mean([one["volumes"][sampler] for one in made])) for sampler in ("ensemble", "random"))
        found.append(Inequality.of(f"{domain}: volume by the autotuner over that of draws", tuner / drawn, ">=", 1.0))
    return found
