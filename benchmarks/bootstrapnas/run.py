"""Claim: one entry point without annotations gives half the network at nearly its accuracy, and many sizes at once.

A small ResNet and a network of depthwise convolutions on CIFAR-10, and MiniLM on the languages of short texts, each
trained on its task first, become super-networks through `lissome.pipeline`, as on the command line. Beside them, in the
same run: the given network trained as many steps more, and the network cut to half of its multiply-accumulates by
torch-pruning and then tuned as many steps; the given network teaches every arm. A step of the super-network is three
passes, the sandwich; beside it stands one with one random path at each step, as published, and as many passes. Every
arm has the best of several learning rates, found on examples to choose by. EfficientNet-Lite0 with its weights of
ImageNet becomes a super-network on CIFAR-10 too, at 96 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Cell, Cells, Scale, Subject
from benchmarks._frame import Inequality, Store
from benchmarks._sweep import Sweep
from benchmarks.bootstrapnas.nets import CLOSELY, HALF, NETS, Net, narrow, subject, sweeps, tuned
from benchmarks.bootstrapnas.switching import STEPS, SWITCHED, SWITCHES, switching
from lissome import pipeline
from lissome.cost.counted import Counter
from lissome.engine.ranking import ranking, saliency
from lissome.models.binding import extract, reorder
from lissome.models.model import Model

SHARES = (HALF, 0.9)
WIDTHS = (0.75, 0.5)
ORDERS = ("l1", "first_order", "random", "none")
MARGIN, BESIDE = 1.0, 0.5
"""Points that half of a network may lose against the given one, and against pruning and tuning."""
FULLY = 0.97
"""Share of its multiply-accumulates that a network which is cut to a budget must use."""
ALONE = (CLOSELY, "zoo-depthwise")
"""Networks of which what was found is tuned alone, too."""
Rates = Mapping[str, Callable[[], float]]
"""The best learning rate of each arm, found when it is asked for."""
SIZES = 5
"""Points of one front that are more than 5 % of multiply-accumulates apart."""
SWITCH = 0.01
"""Share of a training step that switching may take."""
TRIALS = 300
QUALITY = "loss"
"""What is searched for, beside few multiply-accumulates."""
TRANSFER: Mapping[str, Any] = {
    "steps": 600, "tune_steps": 1200, "lr": 5e-4, "tune_lr": 1e-3, "batch": 32, "optimizer": "adamw", "examples": 128,
    "stages": "kernel+width", "paths": "sandwich", "distil": 0.7, "widths": (1.0, 0.88, 0.76, 0.64), "streams": (1.0,),
    "sides": "both",
}  # fmt: skip
PHOTOGRAPHS = (8000, 2000)
"""Images of CIFAR-10 to learn from, search and choose by, and its own test images, for the transfer."""
TRANSFERRED = 0.75
_BROKEN = 10.0  # points that statistics of its own give the smallest sub-network before training, at least
_PIXELS = 96  # of EfficientNet-Lite0's images: a fifth of the multiply-accumulates of 224


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run(
        "bootstrapnas", quick, store, cells=cells, judge=judged,
        needs=(_tasks.languages, _tasks.photographs, _tasks.addresses),
    )  # fmt: skip


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured, network by network: first what rates are chosen by."""
    for net in NETS:
        yield from _of_net(net, scale, store)
    for net, batch in SWITCHED.items():
        facts = {"net": net, "batch": batch, "switches": SWITCHES, "steps": STEPS[net]}
        yield Cell(f"switching-{net}", facts, lambda _, net=net: switching(net, scale, store))
    facts = {
        "pixels": _PIXELS,
        "trials": TRIALS,
        "quality": QUALITY,
        "settings": TRANSFER,
        "images": PHOTOGRAPHS,
        "share": TRANSFERRED,
    }
    yield Cell("transfer", facts, partial(transfer, scale))


def _of_net(net: str, scale: Scale, store: Store) -> Iterator[Cell]:
    how, it, tried = NETS[net], partial(subject, net, scale, store), sweeps(net, scale, store)
    for sweep in tried.values():
        yield from sweep.cells()
    facts = {"net": net, "first": dict(how.first)}
    yield Cell(f"given-{net}", facts, lambda _: whole(it()))
    yield Cell(f"before-{net}", {**facts, "widths": WIDTHS, "orders": ORDERS}, lambda _: before(it()))
    own = {
        "super": {"settings": how.settings, "shares": SHARES, "trials": TRIALS, "quality": QUALITY},
        "longer": {"tune": how.tune}, "pruned": {"tune": how.tune, "share": HALF},
    }  # fmt: skip
    made: dict[str, Cell] = {}
    for seed in scale.seeds:
        for arm, compute in ARMS.items():
            cell = Cell(
                f"{arm}-{net}-{seed}",
                {**facts, **own[arm], "steps": how.steps, "seed": seed, "sweep": tried[arm].described},
                lambda folder, arm=arm, compute=compute, seed=seed: compute(
                    it(), how, _rate(tried[arm], store, scale), folder, scale, seed
                ),
            )
            made.setdefault(arm, cell)
            yield cell
            if arm == "super":
                yield _elastic.latency_of(cell, HALF, it, scale, store)
    rates = {arm: partial(_rate, sweep, store, scale) for arm, sweep in tried.items()}
    if net in ALONE:
        yield _alone(net, it, made, rates, scale, store)
    if net == CLOSELY:
        yield from _others(it, made, rates, scale)


def _rate(sweep: Sweep, store: Store, scale: Scale) -> float:
    return float(sweep.best(store, scale, "lr"))


def _as_pruned(net: str, it: Subject, start: Model, rates: Rates, scale: Scale) -> dict[str, Any]:
    """Tune a network as torch-pruning's is tuned, with the first seed."""
    how = NETS[net]
    return _tuned(it, start, {**how.tune, "lr": rates["pruned"](), "steps": how.steps}, scale, scale.seeds[0])


def _alone(
    net: str, it: Callable[[], Subject], made: Mapping[str, Cell], rates: Rates, scale: Scale, store: Store
) -> Cell:
    """What was found with the first seed, tuned alone as torch-pruning's network is."""

    def compute(_: Path) -> dict[str, Any]:
        subnet = _elastic.measure(made["super"], scale, store)["cut"][f"{HALF:g}"]["subnet"]
        return _as_pruned(net, it(), _found(it(), subnet), rates, scale)

    facts = {**made["pruned"].settings, "cut": "found", "search": made["super"].settings}
    return Cell(f"found-{net}-{scale.seeds[0]}", facts, compute)


def _others(it: Callable[[], Subject], made: Mapping[str, Cell], rates: Rates, scale: Scale) -> Iterator[Cell]:
    """Other ways to half of one network, with the first seed: one random path at each step; one width for all."""
    how, seed = NETS[CLOSELY], scale.seeds[0]
    single = replace(how, steps=_elastic.PASSES * how.steps, settings={**how.settings, "paths": "random"})
    facts = made["super"].settings
    yield Cell(
        f"random-{CLOSELY}-{seed}",
        {**facts, "settings": single.settings, "steps": single.steps},
        lambda folder: _super(it(), single, rates["super"](), folder, scale, seed),
    )

    yield Cell(
        f"uniform-{CLOSELY}-{seed}",
        {**made["pruned"].settings, "cut": "uniform"},
        lambda _: _as_pruned(CLOSELY, it(), _uniform(it()), rates, scale),
    )


def whole(it: Subject) -> dict[str, Any]:
    """The network as it is given."""
    counts = Counter(_elastic.original(it)).count()
    test = _elastic.packed(_elastic.original(it), _elastic.objective(it))
    return {"test": test, "macs": counts.macs, "params": counts.params}


def before(it: Subject) -> dict[str, Any]:
    """Before any training: the smallest with and without statistics of its own, and widths by each order."""
    judge, model = _elastic.objective(it), _elastic.original(it)
    found: dict[str, Any] = {"orders": {}}
    for order in ORDERS:
        work = model.derived(extract(model, model.space().full).module)
        if order != "none":
            scores = saliency(work, order, batches=judge.batches(256), task=judge.task(work), seed=0)
            reorder(work, ranking(work, scores))
        for share in WIDTHS:
            subnet, space = _elastic.uniform(work, share, multiple=4)
            small = extract(work, subnet, space=space)
            if order == "l1" and share == min(WIDTHS):
                found["plain"] = _elastic.packed(small, judge)
            found["orders"][f"{order}-{share:g}"] = _elastic.packed(_elastic.adapted(small, judge), judge)
    found["own"] = found["orders"][f"l1-{min(WIDTHS):g}"]
    return found


def _super(it: Subject, how: Net, rate: float, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    settings = {**how.settings, "lr": rate, "steps": scale.of(how.steps)}
    place = _elastic.supernet(
        it, folder, method="bootstrapnas", settings=settings, trials=scale.of(TRIALS, 12), seed=seed, quality=QUALITY
    )
    found = _elastic.measured(it, place, SHARES, folder / "cut")
    return {**found, "rate": rate}


def _longer(it: Subject, how: Net, rate: float, _: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """The control: the given network, trained as many steps more."""
    return _tuned(it, _elastic.original(it), {**how.tune, "lr": rate, "steps": how.steps}, scale, seed)


def _pruned(it: Subject, how: Net, rate: float, _: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """The network cut by torch-pruning, tuned as many steps."""
    return _tuned(it, narrow(it), {**how.tune, "lr": rate, "steps": how.steps}, scale, seed)


ARMS: dict[str, Callable[[Subject, Net, float, Path, Scale, int], dict[str, Any]]] = {
    "super": _super,
    "longer": _longer,
    "pruned": _pruned,
}


def _tuned(it: Subject, start: Model, settings: Mapping[str, Any], scale: Scale, seed: int) -> dict[str, Any]:
    model = tuned(it, start, scale, settings, seed)
    macs = Counter(model).count().macs / Counter(_elastic.original(it)).count().macs
    return {"test": _elastic.packed(model, _elastic.objective(it)), "macs": macs, "rate": settings["lr"]}


def _sorted(it: Subject) -> Model:
    """A copy with its filters sorted as BootstrapNAS sorts them."""
    given = _elastic.original(it)
    work = given.derived(extract(given, given.space().full).module)
    reorder(work, ranking(work, saliency(work, "l1"), sides="both"))
    return work


def _uniform(it: Subject) -> Model:
    """The network with the largest share of all its widths that leaves half of the multiply-accumulates."""
    work, macs = _sorted(it), HALF * Counter(_elastic.original(it)).count().macs
    for percent in range(99, 0, -1):
        subnet, space = _elastic.uniform(work, percent / 100, multiple=1)
        if Counter(work).figures(subnet)["macs"] <= macs:
            return _elastic.adapted(extract(work, subnet, space=space), _elastic.objective(it))
    raise ValueError(f"no share of all widths stays within {macs:.3g} multiply-accumulates")


def _found(it: Subject, subnet: Mapping[str, int]) -> Model:
    """What a search found, with the weights of the given network."""
    work = _sorted(it)
    small = extract(work, {**work.anatomy.space(finest=True).full, **subnet})
    return _elastic.adapted(small, _elastic.objective(it))


def transfer(scale: Scale, folder: Path) -> dict[str, Any]:
    """EfficientNet-Lite0 with its weights of ImageNet, transferred to CIFAR-10: its front, and half of it."""
    model: Any = pipeline.load("efficientnet-lite0")
    model.module.config.image_size = _PIXELS
    if not (folder / "model").exists():
        model.derived(model.module).save(folder / "model")
    it = Subject(
        "efficientnet-lite0", folder / "model", _tasks.few_photographs(*map(scale.of, PHOTOGRAPHS, (400, 200)))
    )
    settings = {**TRANSFER, "steps": scale.of(TRANSFER["steps"]), "tune_steps": scale.of(TRANSFER["tune_steps"])}
    place = _elastic.supernet(
        it, folder, method="bootstrapnas", settings=settings, trials=scale.of(TRIALS, 12), seed=0, quality=QUALITY
    )
    return _elastic.measured(it, place, (TRANSFERRED,), folder / "cut")


def judged(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn all cells into inequalities."""
    told = [one for net in NETS for one in judge(net, found, seeds)]
    sizes = _elastic.apart(found["transfer"]["front"])
    told.append(Inequality.of("efficientnet-lite0, transferred: sizes of one front", sizes, ">=", SIZES))
    return told + [_switching(net, found[f"switching-{net}"]) for net in SWITCHED]


def _switching(net: str, found: Mapping[str, Any]) -> Inequality:
    detail = f"({1e3 * found['switch']:.2f} ms of {1e3 * found['step']:.0f} ms, {found['branches']} branches)"
    name = f"{net}: switching to a sub-network and back, share of a training step"
    return Inequality.of(name, found["switch"] / found["step"], "<=", SWITCH, detail)


def judge(net: str, found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells of a network into inequalities."""
    made, test = [found[f"super-{net}-{seed}"] for seed in seeds], found[f"given-{net}"]["test"]
    half = [one["cut"][f"{HALF:g}"] for one in made]
    tests = [one["test"] for one in half]
    beside = [found[f"pruned-{net}-{seed}"] for seed in seeds]
    cut, used = [one["test"] for one in beside], min(one["macs"] for one in beside) / HALF
    most, sizes = max(one["macs"] for one in half), min(_elastic.apart(one["front"]) for one in made)
    slow = max(found[f"latency-super-{net}-{seed}"]["latency"][2] for seed in seeds)
    told = [
        Inequality.of(f"{net}: multiply-accumulates of what was found, most", most, "<=", HALF),
        _elastic.not_worse(f"{net}: found at half against given, points", tests, [test] * len(seeds), MARGIN),
        _elastic.not_worse(f"{net}: found at half against torch-pruning and tuned, points", tests, cut, BESIDE),
        Inequality.of(f"{net}: share of half that torch-pruning's network uses, least", used, ">=", FULLY),
        Inequality.of(f"{net}: sizes of one front, fewest", sizes, ">=", SIZES),
        Inequality.of(f"{net}: latency of what was found, upper end", slow, "<", 1.0),
    ]
    first, order = found[f"before-{net}"], str(NETS[net].settings["order"])
    for share in WIDTHS:
        sorted_, plain = (_elastic.points([first["orders"][f"{each}-{share:g}"]]) for each in (order, "none"))
        name = f"{net}: untrained at {share:.0%} of widths, {order} over the given order"
        told.append(Inequality.of(name, sorted_, ">=", plain))
    if net != "minilm":
        own, without = (_elastic.points([first[name]]) for name in ("own", "plain"))
        told.append(Inequality.of(f"{net}: what statistics of its own give, points", own - without, ">=", _BROKEN))
    return told + (_as_accurate(net, found, seeds) if net == CLOSELY else [])


def _as_accurate(net: str, found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """At least as accurate as the given network, with fewer multiply-accumulates: nothing may be lost."""
    wide = [found[f"super-{net}-{seed}"]["cut"][f"{max(SHARES):g}"] for seed in seeds]
    test = found[f"given-{net}"]["test"]
    name = f"{net}: at most {max(SHARES):.0%} of the multiply-accumulates against given, points"
    told = _elastic.not_worse(name, [one["test"] for one in wide], [test] * len(seeds), 0.0)
    control = _elastic.points([found[f"longer-{net}-{seed}"]["test"] for seed in seeds])
    detail = f"{told.detail} (accuracy {_elastic.points([one['test'] for one in wide]):.2f}; given: "
    detail += f"{_elastic.points([test]):.2f}, trained as many steps more: {control:.2f})"
    most = max(one["macs"] for one in wide)
    return [
        Inequality.of(told.name, told.left, ">=", told.right, detail),
        Inequality.of(f"{net}: its multiply-accumulates, most", most, "<", 1.0),
    ]
