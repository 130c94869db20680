"""Claim: sub-networks of a segmenter, a third to two thirds smaller as whole models, do as well as it did untuned.

MiniSAM was trained here by ``tools/train_minisam.py`` and knows digits on photographs: it is no Segment Anything. On
two domains that it has not seen it becomes a super-network; beside it stand MiniSAM as it is, which is what the paper
compares with, and MiniSAM trained as a whole on the same examples for as many steps, which the paper leaves out. Both
have the best of several learning rates, found on one domain and examples that nothing is judged by. The paper speaks of
models 30 to 70 % smaller: the smallest that is left here, its first layer and its decoder, is judged too. Figures are
the mean IoU of the mask that the model itself expects to be best, on scenes that had no part in training, search or
choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _elastic
from benchmarks._elastic import Cell, Cells, Scale
from benchmarks._frame import Inequality, Store
from benchmarks._sweep import Sweep
from lissome import pipeline
from lissome.cost.counted import Counter
from lissome.data.masks import read_masks
from lissome.engine.ranking import ranking, saliency
from lissome.engine.search import Found
from lissome.engine.search.pareto import hypervolume
from lissome.engine.segments import Segments, segment_splits
from lissome.engine.train import train
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.models.space import Space
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
STEPS, TRIALS = 1000, 120
TRIED, TRIED_TRIALS = 250, 40
"""Steps and trials of a run in which settings are tried."""
_TRAINED = {"lr": 2e-4, "batch": 8, "weight_decay": 1e-4}
_SETTINGS: dict[str, Any] = {
    **_TRAINED, "widths": (1.0, 0.75, 0.5, 0.332, 0.25), "removable": 0.875, "min_width": 32, "multiple": 4,
    "examples": 64, "update": "together",
}  # fmt: skip
CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 1e-4}, {"lr": 4e-4}, {"update": "in_turn"}, {"update": "in_turn", "steps": 3 * TRIED}, {"removable": 0.5},
    {"removable": 0.75}, {"widths": (1.0, 0.75, 0.5)}, {"widths": (1.0, 0.5, 0.25)},
)  # fmt: skip
FULL_CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 1e-4}, {"lr": 4e-4}, {"lr": 5e-5}, {"lr": 8e-4}, {"weight_decay": 0.0}, {"weight_decay": 1e-3}, {"batch": 4},
    {"batch": 16},
)  # fmt: skip


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("supersam", quick, store, cells=cells, judge=judge)


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured: first what rates are chosen by, then seed by seed."""
    facts, at = {"scenes": [SCENES, TESTS]}, partial(home, scale, store)
    tried = sweeps(at, scale)
    for sweep in tried.values():
        yield from sweep.cells()
    yield Cell("given", facts, lambda _: _given(at()))
    long = {**facts, "steps": STEPS}
    for seed in scale.seeds:
        ways = {"widths": WIDTHS, "orders": ORDERS, "seed": seed}
        yield Cell(f"orders-{seed}", {**facts, **ways}, lambda _, seed=seed: orders(at(), seed))
        for domain in DOMAINS:
            known = {**long, "seed": seed, "domain": domain}
            yield Cell(
                f"full-{domain}-{seed}",
                {**known, "sweep": tried["full"].described},
                lambda _, domain=domain, seed=seed: _full(
                    at(), domain, scale, tried["full"].best(store, scale, "lr"), seed
                ),
            )
            yield Cell(
                f"super-{domain}-{seed}",
                {**known, "trials": TRIALS, "shares": SHARES, "samplers": SAMPLERS, "sweep": tried["super"].described},
                lambda folder, domain=domain, seed=seed: _made(
                    at(), folder, domain, scale, tried["super"].best(store, scale, "lr"), seed
                ),
            )


def sweeps(at: Callable[[], Home], scale: Scale) -> dict[str, Sweep]:
    """What is tried on one domain: of super-networks, the volume of a short search; of the whole model, its IoU."""
    facts = {"domain": DOMAINS[0], "scenes": [SCENES, TESTS]}

    def elastic(settings: Mapping[str, Any], folder: Path) -> float:
        supernet(at(), folder, DOMAINS[0], scale, settings, 0)
        pipeline.search(
            str(folder / "S"), out=folder / "search", trials=scale.of(TRIED_TRIALS, 12), sampler=SAMPLERS[0], seed=0,
            objectives=("miou", "params"),
        )  # fmt: skip
        return volume(Found.load(folder / "S" / FOUND))

    def full(settings: Mapping[str, Any], _: Path) -> float:
        model = whole(at(), DOMAINS[0], scale, settings, 0)
        return _judge(model, at(), DOMAINS[0]).figures(model, "selection")["miou"]

    usual, steps = {**_SETTINGS, "steps": TRIED}, {"steps": TRIED}
    return {
        "super": Sweep("super", {**facts, "trials": TRIED_TRIALS}, usual, CHANGES, elastic, figure="volume"),
        "full": Sweep("full", facts, {**_TRAINED, **steps}, FULL_CHANGES, full, figure="miou"),
    }


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


def whole(place: Home, domain: str, scale: Scale, settings: Mapping[str, Any], seed: int) -> Model:
    """The whole model, trained on a domain."""
    model = pipeline.load(place.model)
    judge = _judge(model, place, domain)
    made = judge.training(
        steps=scale.of(settings["steps"]), lr=settings["lr"], batch=settings["batch"], max_seconds=None
    )
    train(judge.task(model), replace(made, weight_decay=settings["weight_decay"]), seed=seed)
    return model


def _full(place: Home, domain: str, scale: Scale, rate: float, seed: int) -> dict[str, Any]:
    """The baseline that the paper leaves out: trained as long, with the same decay of weights."""
    model = whole(place, domain, scale, {**_TRAINED, "lr": rate, "steps": STEPS}, seed)
    return {"test": _test(model, place, domain), "rate": rate}


def supernet(
    place: Home, folder: Path, domain: str, scale: Scale, settings: Mapping[str, Any], seed: int
) -> tuple[Model, Space]:
    """The super-network of a domain, not searched yet."""
    chosen = _elastic.assignments({**settings, "steps": scale.of(settings["steps"])})
    data = str(place.scenes / f"{domain}.npz")
    pipeline.supernet(str(place.model), method="supersam", data=data, settings=chosen, seed=seed, out=folder / "S")
    return _elastic.opened(folder / "S")


def _made(place: Home, folder: Path, domain: str, scale: Scale, rate: float, seed: int) -> dict[str, Any]:
    """The super-network of a domain, searched by several samplers, and models cut out of it; and its smallest."""
    model, space = supernet(place, folder, domain, scale, {**_SETTINGS, "lr": rate, "steps": STEPS}, seed)
    least = Counter(model).figures(space.smallest)["params"] / Counter(model).count().params
    smallest = {"params": least, "test": _test(extract(model, space.smallest, space=space), place, domain)}
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
    return {"cut": cut, "volumes": volumes, "smallest": smallest, "rate": rate}


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
        least = [one["smallest"] for one in made]
        floor = max(one["params"] for one in least)
        gap = full - float(np.mean([one["test"] for one in least]))
        found.append(
            not_below(
                f"{domain}: the smallest that can be reached, {floor:.1%} of all, against MiniSAM untuned, IoU",
                [one["test"] for one in least], found_of["given"][domain],
                f"; {gap:.4f} below the whole model trained as long",
            )
        )  # fmt: skip
        tuner, drawn = (float(np.mean([one["volumes"][sampler] for one in made])) for sampler in ("ensemble", "random"))
        found.append(Inequality.of(f"{domain}: volume by the autotuner over that of draws", tuner / drawn, ">=", 1.0))
    return found
