"""Claim: one entry point without annotations gives half the network at nearly its accuracy, and many sizes at once.

A small ResNet and a network of depthwise convolutions on CIFAR-10, and MiniLM on the sentences of SST-2, each trained
on its task first, become super-networks through `lissome.pipeline`, as on the command line. Beside them, in the same
run: the given network trained as many steps more, and the network pruned by magnitude to half of its
multiply-accumulates and then tuned as many steps. A step is one pass in all three: one random path.
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
from lissome.cost.counted import Counter
from lissome.engine.objective import Classes, objective_of
from lissome.engine.pictures import Pictures
from lissome.engine.ranking import ranking, saliency
from lissome.models.binding import extract, reorder
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.pipeline.job import data_for

HALF = 0.5
SHARES = (HALF, 0.9)
WIDTHS = (0.75, 0.5)
ORDERS = ("l1", "random", "none")
MARGIN, BESIDE = 1.0, 0.5
"""Points that half of a network may lose against the given one, and against pruning and tuning."""
SIZES = 5
"""Points of one front that are more than 5 % of multiply-accumulates apart."""
_BROKEN = 10.0  # points that statistics of its own give the smallest sub-network before training, at least


@dataclass(frozen=True)
class Net:
    """A network and how it is trained.

    Attributes:
        given: Settings of its first training: steps, lr and whatever else the loop takes.
        steps: Of the super-network, and of the arms beside it.
        settings: Of BootstrapNAS.
        tune: Settings of the arms beside it.
    """

    given: Mapping[str, Any]
    steps: int
    settings: Mapping[str, Any]
    tune: Mapping[str, Any]


_SGD = {"optimizer": "sgd", "weight_decay": 5e-4, "batch": 128}
_IMAGES = {"lr": 0.02, "batch": 128, "optimizer": "sgd", "weight_decay": 1e-4, "min_width": 8, "multiple": 4,
           "examples": _elastic.EXAMPLES}  # fmt: skip
NETS: dict[str, Net] = {
    "resnet": Net({"steps": 9000, "lr": 0.1, **_SGD}, 4000, _IMAGES, {"lr": 0.02, **_SGD}),
    "depthwise": Net({"steps": 9000, "lr": 0.1, **_SGD}, 4000, _IMAGES, {"lr": 0.02, **_SGD}),
    "minilm": Net(
        {"steps": 800, "lr": 1e-4}, 800,
        {"lr": 1e-4, "stages": ("depth2+width",), "widths": (1.0, 0.75, 0.5, 0.25)},
        {"lr": 1e-4},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller."""

    seeds: tuple[int, ...]
    trials: int
    part: float


FULL, QUICK = Scale((0, 1, 2), 150, 1.0), Scale((0,), 12, 0.01)


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    try:
        _elastic.sentences(), _elastic.photographs()
    except AssetError as error:
        print(f"bootstrapnas is skipped: {error}")
        return []
    scale, cells = QUICK if quick else FULL, dict[str, dict[str, Any]]()
    for net in NETS:
        for name, compute in _cells(net, scale, store):
            if store.wants(name):
                cells[name] = compute()
    if store.pattern is not None:
        return []
    found = [one for net in NETS for one in judge(net, cells, scale.seeds)]
    store.publish("bootstrapnas", {"cells": cells, "seeds": scale.seeds, "inequalities": [vars(one) for one in found]})
    return found


def _cells(net: str, scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of every cell of a network and how to get it."""
    yield f"given-{net}", lambda: _given(net, scale, store)
    yield f"before-{net}", lambda: _cell(f"before-{net}", net, scale, store, lambda _, it: before(it))
    for seed in scale.seeds:
        yield (
            f"super-{net}-{seed}",
            lambda seed=seed: _cell(
                f"super-{net}-{seed}", net, scale, store, lambda folder, it: _super(net, it, folder, scale, seed), seed
            ),
        )
        yield (
            f"longer-{net}-{seed}",
            lambda seed=seed: _cell(
                f"longer-{net}-{seed}", net, scale, store, lambda _, it: _longer(net, it, scale, seed), seed
            ),
        )
        yield (
            f"pruned-{net}-{seed}",
            lambda seed=seed: _cell(
                f"pruned-{net}-{seed}", net, scale, store, lambda _, it: _pruned(net, it, scale, seed), seed
            ),
        )


def _cell(
    name: str, net: str, scale: Scale, store: Store, compute: Callable[[Path, Subject], dict[str, Any]], seed: int = 0
) -> dict[str, Any]:
    facts = {**vars(NETS[net]), "part": scale.part, "trials": scale.trials, "seed": seed, "net": net}
    return store.cell(name, facts, lambda: compute(store.scratch(name, facts), subject(net, scale, store)))


def subject(net: str, scale: Scale, store: Store) -> Subject:
    """Return a network that was trained on its task; it is trained the first time."""
    facts = {"net": net, "given": dict(NETS[net].given), "part": scale.part}
    folder = store.scratch(f"given-{net}", facts) / "model"
    data = _elastic.sentences() if net == "minilm" else _elastic.photographs()
    if not folder.exists():
        model, splits = data_for(_fresh(net), data, seed=0, searched=True)
        settings = dict(NETS[net].given)
        steps = _steps(settings.pop("steps"), scale)
        _elastic.tuned(model, _judge(splits), steps=steps, seed=0, **settings).save(folder)
    return Subject(net, folder, data)


def _fresh(net: str) -> Model:
    if net == "minilm":
        return pipeline.load("minilm")
    kind = {"kind": "residual"} if net == "resnet" else {"kind": "inverted", "expand": 4}
    blocks, wide = (3, 16) if net == "resnet" else (2, 12)
    stages = [{**kind, "channels": wide * 2**at, "blocks": blocks, "stride": 1 + (at > 0)} for at in range(3)]
    config = ConvNetConfig(image_size=32, stem=(16, 1), stages=stages, num_labels=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_model(ConvNetForImageClassification(config), name=net)


def _judge(splits: Any) -> Classes | Pictures:
    found = objective_of(splits)
    assert isinstance(found, Classes | Pictures)
    return found


def _steps(count: int, scale: Scale) -> int:
    return max(4, round(count * scale.part))


def _given(net: str, scale: Scale, store: Store) -> dict[str, Any]:
    facts = {**vars(NETS[net]), "part": scale.part, "net": net}

    def compute() -> dict[str, Any]:
        it = subject(net, scale, store)
        counts = Counter(_elastic.original(it)).count()
        return {
            "test": _elastic.packed(_elastic.original(it), _elastic.objective(it)), "macs": counts.macs,
            "params": counts.params,
        }  # fmt: skip

    return store.cell(f"given-{net}", facts, compute)


def before(it: Subject) -> dict[str, Any]:
    """Before any training: the smallest with and without statistics of its own, and widths by each order."""
    judge, model = _elastic.objective(it), _elastic.original(it)
    found: dict[str, Any] = {"orders": {}}
    for order in ORDERS:
        work = model.derived(extract(model, model.space().full).module)
        if order != "none":
            reorder(work, ranking(work, saliency(work, order, seed=0)))
        for share in WIDTHS:
            subnet, space = _elastic.uniform(work, share, multiple=4)
            small = extract(work, subnet, space=space)
            key = f"{order}-{share:g}"
            if order == "l1" and share == min(WIDTHS):
                found["plain"] = _elastic.packed(small, judge)
            found["orders"][key] = _elastic.packed(_elastic.adapted(small, judge), judge)
    found["own"] = found["orders"][f"l1-{min(WIDTHS):g}"]
    return found


def _super(net: str, it: Subject, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    settings = {**NETS[net].settings, "steps": _steps(NETS[net].steps, scale)}
    place = _elastic.supernet(
        it, folder, method="bootstrapnas", settings=settings, trials=scale.trials, seed=seed, sampler="nsga2"
    )
    found = _elastic.measured(it, place, SHARES, folder / "cut")
    return {**found, "latency": _elastic.latency(it, folder / "cut" / f"{HALF:g}")}


def _longer(net: str, it: Subject, scale: Scale, seed: int) -> dict[str, Any]:
    """The control: the given network, trained as many steps more."""
    judge, steps = _elastic.objective(it), _steps(NETS[net].steps, scale)
    model = _elastic.tuned(_elastic.original(it), judge, steps=steps, seed=seed, **NETS[net].tune)
    return {"test": _elastic.packed(model, judge)}


def _pruned(net: str, it: Subject, scale: Scale, seed: int) -> dict[str, Any]:
    """The network without its weakest filters, tuned as many steps."""
    judge, whole = _elastic.objective(it), Counter(_elastic.original(it)).count().macs
    small = _elastic.pruned(it, HALF * whole, multiple=4)
    tuned = _elastic.tuned(small, judge, steps=_steps(NETS[net].steps, scale), seed=seed, **NETS[net].tune)
    return {"test": _elastic.packed(tuned, judge), "macs": Counter(tuned).count().macs / whole}


def judge(net: str, cells: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]) -> list[Inequality]:
    """Turn the cells of a network into inequalities."""
    made, given = [cells[f"super-{net}-{seed}"] for seed in seeds], cells[f"given-{net}"]["test"]
    half = [one["cut"][f"{HALF:g}"] for one in made]
    tests = [one["test"] for one in half]
    pruned = [cells[f"pruned-{net}-{seed}"]["test"] for seed in seeds]
    most = max(one["macs"] for one in half)
    found = [
        Inequality.of(f"{net}: multiply-accumulates of what was found, most", most, "<=", HALF),
        _elastic.not_worse(f"{net}: found at half against given, points", tests, [given] * len(seeds), MARGIN),
        _elastic.not_worse(f"{net}: found at half against pruned and tuned, points", tests, pruned, BESIDE),
        Inequality.of(
            f"{net}: sizes of one front, fewest", min(_elastic.apart(one["front"]) for one in made), ">=", SIZES
        ),
        Inequality.of(
            f"{net}: latency of what was found, upper end", max(one["latency"][2] for one in made), "<", 1.0
        ),
    ]  # fmt: skip
    first = cells[f"before-{net}"]
    for share in WIDTHS:
        l1, plain = (_elastic.points([first["orders"][f"{order}-{share:g}"]]) for order in ("l1", "none"))
        found.append(
            Inequality.of(f"{net}: untrained at {share:.0%} of widths, L1 over the given order", l1, ">=", plain)
        )
    if net != "minilm":
        own, without = (_elastic.points([first[name]]) for name in ("own", "plain"))
        found.append(Inequality.of(f"{net}: what statistics of its own give, points", own - without, ">=", _BROKEN))
    if net == "resnet":
        wide = f"{max(SHARES):g}"
        best = _elastic.points([one["cut"][wide]["test"] for one in made])
        control = _elastic.points([cells[f"longer-{net}-{seed}"]["test"] for seed in seeds])
        detail = f"(given, trained as many steps more: {control:.2f})"
        found.append(
            Inequality.of(f"{net}: at most {wide} against given", best, ">=", _elastic.points([given]), detail)
        )
    return found
