"""Claim: one entry point without annotations gives half the network at nearly its accuracy, and many sizes at once.

A small ResNet and a network of depthwise convolutions on CIFAR-10, and MiniLM on the languages of short texts, each
trained on its task first, become super-networks through `lissome.pipeline`, as on the command line. Beside them, in the
same run: the given network trained as many steps more, and the network cut to half of its multiply-accumulates by
torch-pruning and then tuned as many steps. A step is one pass in all three: one random path. EfficientNet-Lite0 with
its weights of ImageNet becomes a super-network on CIFAR-10 too, at 96 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Cell, Cells, Scale, Subject
from benchmarks._frame import Inequality, Store
from benchmarks._pruning import pruned
from lissome import pipeline
from lissome.cost.counted import Counter
from lissome.engine.ranking import ranking, saliency
from lissome.models.binding import extract, reorder
from tools.train_convnets import given

HALF = 0.5
SHARES = (HALF, 0.9)
WIDTHS = (0.75, 0.5)
ORDERS = ("l1", "random", "none")
MARGIN, BESIDE = 1.0, 0.5
"""Points that half of a network may lose against the given one, and against pruning and tuning."""
SIZES = 5
"""Points of one front that are more than 5 % of multiply-accumulates apart."""
TRIALS = 60
TRANSFER: Mapping[str, Any] = {
    "steps": 200, "tune_steps": 150, "lr": 0.01, "tune_lr": 0.02, "batch": 32, "optimizer": "sgd", "examples": 128,
    "stages": "kernel+width",
}  # fmt: skip
_BROKEN = 10.0  # points that statistics of its own give the smallest sub-network before training, at least
_PIXELS = 96  # of EfficientNet-Lite0's images: a fifth of the multiply-accumulates of 224


@dataclass(frozen=True)
class Net:
    """How a network is trained.

    Attributes:
        steps: Of the super-network, and of the arms beside it.
        settings: Of BootstrapNAS.
        tune: Settings of the arms beside it.
        first: Steps of its first training; of a network of images they are in ``tools/train_convnets.py``.
    """

    steps: int
    settings: Mapping[str, Any]
    tune: Mapping[str, Any]
    first: int = 0


_SGD = {"lr": 0.02, "batch": 128, "optimizer": "sgd", "weight_decay": 1e-4}
_IMAGES = {**_SGD, "min_width": 8, "multiple": 4, "examples": _elastic.EXAMPLES}
NETS: dict[str, Net] = {
    "zoo-resnet": Net(800, _IMAGES, _SGD),
    "zoo-depthwise": Net(600, _IMAGES, _SGD),
    "minilm": Net(
        500, {"lr": 1e-4, "stages": ("depth2+width",), "widths": (1.0, 0.75, 0.5, 0.25)}, {"lr": 1e-4}, first=500
    ),
}


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run(
        "bootstrapnas", quick, store, cells=cells, judge=judged, needs=(_tasks.languages, _tasks.photographs)
    )


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured, network by network."""
    for net, how in NETS.items():
        here, facts = partial(subject, net, scale, store), {**vars(how), "net": net}
        yield Cell(f"given-{net}", facts, lambda _, it=here: whole(it()))
        yield Cell(f"before-{net}", facts, lambda _, it=here: before(it()))
        for seed in scale.seeds:
            for arm, compute in ARMS.items():
                yield Cell(
                    f"{arm}-{net}-{seed}",
                    {**facts, "seed": seed, "trials": TRIALS},
                    lambda folder, it=here, compute=compute, how=how, seed=seed: compute(
                        it(), how, folder, scale, seed
                    ),
                )
    yield Cell("transfer", {"pixels": _PIXELS, "trials": TRIALS, "settings": TRANSFER}, partial(transfer, scale))


def subject(net: str, scale: Scale, store: Store) -> Subject:
    """Return a network that was trained on its task; it is trained the first time."""
    folder = store.scratch(f"given-{net}", {"net": net, "first": NETS[net].first, "part": scale.part})
    if net == "minilm":
        return _elastic.encoder(folder, _tasks.languages(), steps=scale.of(NETS[net].first))
    return Subject(net, given(net, folder, part=scale.part), _tasks.photographs())


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
            reorder(work, ranking(work, saliency(work, order, seed=0)))
        for share in WIDTHS:
            subnet, space = _elastic.uniform(work, share, multiple=4)
            small = extract(work, subnet, space=space)
            if order == "l1" and share == min(WIDTHS):
                found["plain"] = _elastic.packed(small, judge)
            found["orders"][f"{order}-{share:g}"] = _elastic.packed(_elastic.adapted(small, judge), judge)
    found["own"] = found["orders"][f"l1-{min(WIDTHS):g}"]
    return found


def _super(it: Subject, how: Net, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    settings = {**how.settings, "steps": scale.of(how.steps)}
    place = _elastic.supernet(
        it, folder, method="bootstrapnas", settings=settings, trials=scale.of(TRIALS, 12), seed=seed
    )
    found = _elastic.measured(it, place, SHARES, folder / "cut")
    return {**found, "latency": _elastic.latency(it, folder / "cut" / f"{HALF:g}")}


def _longer(it: Subject, how: Net, _: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """The control: the given network, trained as many steps more."""
    judge = _elastic.objective(it)
    model = _elastic.tuned(_elastic.original(it), judge, steps=scale.of(how.steps), seed=seed, **how.tune)
    return {"test": _elastic.packed(model, judge)}


def _pruned(it: Subject, how: Net, _: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """The network cut by torch-pruning, tuned as many steps."""
    judge, macs = _elastic.objective(it), Counter(_elastic.original(it)).count().macs
    small = pruned(it, HALF * macs, multiple=4)
    tuned = _elastic.tuned(small, judge, steps=scale.of(how.steps), seed=seed, **how.tune)
    return {"test": _elastic.packed(tuned, judge), "macs": Counter(tuned).count().macs / macs}


ARMS: dict[str, Callable[[Subject, Net, Path, Scale, int], dict[str, Any]]] = {
    "super": _super,
    "longer": _longer,
    "pruned": _pruned,
}


def transfer(scale: Scale, folder: Path) -> dict[str, Any]:
    """EfficientNet-Lite0 with its weights of ImageNet, transferred to CIFAR-10: its front, and half of it."""
    model: Any = pipeline.load("efficientnet-lite0")
    model.module.config.image_size = _PIXELS
    if not (folder / "model").exists():
        model.derived(model.module).save(folder / "model")
    it = Subject(
        "efficientnet-lite0", folder / "model", _tasks.few_photographs(*map(scale.of, (8000, 2000), (400, 200)))
    )
    settings = {**TRANSFER, "steps": scale.of(TRANSFER["steps"]), "tune_steps": scale.of(TRANSFER["tune_steps"])}
    place = _elastic.supernet(it, folder, method="bootstrapnas", settings=settings, trials=scale.of(TRIALS, 12), seed=0)
    return _elastic.measured(it, place, (0.75,), folder / "cut")


def judged(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn all cells into inequalities."""
    return [one for net in NETS for one in judge(net, found, seeds)]


def judge(net: str, found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells of a network into inequalities."""
    made, test = [found[f"super-{net}-{seed}"] for seed in seeds], found[f"given-{net}"]["test"]
    half = [one["cut"][f"{HALF:g}"] for one in made]
    tests = [one["test"] for one in half]
    cut = [found[f"pruned-{net}-{seed}"]["test"] for seed in seeds]
    most, sizes = max(one["macs"] for one in half), min(_elastic.apart(one["front"]) for one in made)
    slow = max(one["latency"][2] for one in made)
    told = [
        Inequality.of(f"{net}: multiply-accumulates of what was found, most", most, "<=", HALF),
        _elastic.not_worse(f"{net}: found at half against given, points", tests, [test] * len(seeds), MARGIN),
        _elastic.not_worse(f"{net}: found at half against torch-pruning and tuned, points", tests, cut, BESIDE),
        Inequality.of(f"{net}: sizes of one front, fewest", sizes, ">=", SIZES),
        Inequality.of(f"{net}: latency of what was found, upper end", slow, "<", 1.0),
    ]
    first = found[f"before-{net}"]
    for share in WIDTHS:
        l1, plain = (_elastic.points([first["orders"][f"{order}-{share:g}"]]) for order in ("l1", "none"))
        name = f"{net}: untrained at {share:.0%} of widths, L1 over the given order"
        told.append(Inequality.of(name, l1, ">=", plain))
    if net != "minilm":
        own, without = (_elastic.points([first[name]]) for name in ("own", "plain"))
        told.append(Inequality.of(f"{net}: what statistics of its own give, points", own - without, ">=", _BROKEN))
    if net == "zoo-resnet":
        wide = f"{max(SHARES):g}"
        wider = [one["cut"][wide]["test"] for one in made]
        best, apart = _elastic.points(wider), _elastic.not_worse("", wider, [test] * len(seeds), 0.0).detail
        control = _elastic.points([found[f"longer-{net}-{seed}"]["test"] for seed in seeds])
        detail = f"{apart} (given, trained as many steps more: {control:.2f})"
        told.append(Inequality.of(f"{net}: at most {wide} against given", best, ">=", _elastic.points([test]), detail))
    return told
