"""Networks of the claim on BootstrapNAS, how each arm trains them, and what is tried of every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Scale, Subject
from benchmarks._frame import Store
from benchmarks._pruning import pruned
from benchmarks._sweep import Sweep
from lissome import pipeline
from lissome.core.manifest import read_curve
from lissome.cost.counted import Counter
from lissome.models.model import Model
from tools.train_convnets import given

HALF = 0.5

Changes = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Net:
    """How a network is trained.

    Attributes:
        steps: Of the super-network, and of the arms beside it.
        settings: Of BootstrapNAS.
        tune: Settings of the arms beside it.
        tried: Steps of a run in which settings are tried.
        rates: Learning rates that are tried of every arm, beside the one in its settings.
        first: Of its first training; that of a network of images is in ``tools/train_convnets.py``.
    """

    steps: int
    settings: Mapping[str, Any]
    tune: Mapping[str, Any]
    tried: int
    rates: tuple[float, ...]
    first: Mapping[str, Any] = field(default_factory=dict)


_TAUGHT = {"distil": 0.7, "temperature": 2.0}
_SGD = {"lr": 0.05, "batch": 128, "optimizer": "sgd", "weight_decay": 1e-4, **_TAUGHT}
_IMAGES = {
    **_SGD, "min_width": 8, "multiple": 1, "examples": 2000, "stages": ("width",), "paths": "sandwich",
    "widths": (1.0, 0.83, 0.66, 0.48), "streams": (1.0,), "order": "l1", "sides": "both",
}  # fmt: skip
NETS: dict[str, Net] = {
    "zoo-resnet": Net(6000, _IMAGES, _SGD, tried=150, rates=(0.01, 0.02, 0.1)),
    "zoo-depthwise": Net(
        3000, {**_IMAGES, "streams": None, "widths": (1.0, 0.9, 0.79, 0.68)}, _SGD, tried=120, rates=(0.01, 0.02, 0.1)
    ),
    "minilm": Net(
        1200,
        {
            "lr": 1e-4, "stages": ("width",), "widths": (1.0, 0.75, 0.5, 0.34), "paths": "sandwich",
            "order": "first_order", **_TAUGHT,
        },
        {"lr": 1e-4, **_TAUGHT}, tried=150, rates=(2e-4, 4e-4), first={"steps": 1500, "lr": 2e-4},
    ),
}  # fmt: skip
CLOSELY = "zoo-resnet"
"""The network of which more than rates are tried."""
ELASTIC_CHANGES: Changes = (
    {"stages": ("width2", "width")},
    {"stages": ("width2", "width3", "width:2")},
    {"paths": "random"},
    {"paths": "random", "steps": _elastic.PASSES * NETS[CLOSELY].tried},
    {"order": "l2"},
    {"order": "first_order"},
    {"order": "none"},
    {"sides": "makes"},
    {"streams": None, "widths": (1.0, 0.9, 0.8, 0.7)},
    {"distil": 0.0},
    {"distil": 0.9},
)
DEPTHWISE_CHANGES: Changes = (
    {"streams": (1.0,), "widths": (1.0, 0.83, 0.66, 0.48)},
    {"stages": ("width2", "width")},
    {"paths": "random"},
    {"order": "l2"},
    {"order": "first_order"},
    {"order": "none"},
    {"distil": 0.0},
    {"distil": 0.9},
)  # fmt: skip
PRUNED_CHANGES: Changes = (
    {"weight_decay": 0.0}, {"weight_decay": 5e-4}, {"weight_decay": 1e-3}, {"batch": 64}, {"batch": 256},
    {"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 8.0}, {"distil": 0.0}, {"distil": 0.9}, {"distil": 1.0},
)  # fmt: skip


def subject(net: str, scale: Scale, store: Store) -> Subject:
    """Return a network that was trained on its task; it is trained the first time."""
    folder = store.scratch(f"given-{net}", {"net": net, "first": dict(NETS[net].first), "part": scale.part})
    if net == "minilm":
        first = NETS[net].first
        return _elastic.encoder(folder, _tasks.languages(), steps=scale.of(first["steps"]), lr=first["lr"])
    return Subject(net, given(net, folder, part=scale.part), _tasks.photographs())


def sweeps(net: str, scale: Scale, store: Store) -> dict[str, Sweep]:
    """What is tried of every arm of a network."""
    how, it = NETS[net], partial(subject, net, scale, store)
    rates: Changes = tuple({"lr": rate} for rate in how.rates)
    more = {
        CLOSELY: {"super": ELASTIC_CHANGES, "pruned": PRUNED_CHANGES}, "zoo-depthwise": {"super": DEPTHWISE_CHANGES},
    }.get(net, {})  # fmt: skip
    facts = {"net": net, "first": dict(how.first)}

    def elastic(settings: Mapping[str, Any], folder: Path) -> float:
        """Mean accuracy of the middle network and the smallest."""
        pipeline.supernet(
            str(it().folder), method="bootstrapnas", data=str(it().data), seed=0, out=folder / "S",
            settings=_elastic.assignments({**settings, "steps": scale.of(settings["steps"])}),
        )  # fmt: skip
        found = [one.quality["accuracy"] for one in read_curve(folder / "S") if one.change in {"middle", "smallest"}]
        return sum(found) / len(found)

    def longer(settings: Mapping[str, Any], _: Path) -> float:
        return _elastic.chosen_by(tuned(it(), _elastic.original(it()), scale, settings, 0), it())

    def cut(settings: Mapping[str, Any], _: Path) -> float:
        return _elastic.chosen_by(tuned(it(), narrow(it()), scale, settings, 0), it())

    ways = {"super": (how.settings, elastic), "longer": (how.tune, longer), "pruned": (how.tune, cut)}
    return {
        arm: Sweep(f"{arm}-{net}", facts, {**usual, "steps": how.tried}, (*rates, *more.get(arm, ())), compute)
        for arm, (usual, compute) in ways.items()
    }


def tuned(it: Subject, model: Model, scale: Scale, settings: Mapping[str, Any], seed: int) -> Model:
    """A copy of a model, trained as a whole on the task of a subject; the given network teaches it, as in every arm."""
    plain = {name: value for name, value in settings.items() if name not in _TAUGHT}
    lesson = _elastic.Lesson(_elastic.original(it), settings["distil"], settings["temperature"])
    return _elastic.tuned(
        model, _elastic.objective(it), seed=seed, lesson=lesson, **{**plain, "steps": scale.of(settings["steps"])}
    )


def narrow(it: Subject) -> Model:
    """The network cut by torch-pruning to half of its multiply-accumulates."""
    return pruned(it, HALF * Counter(_elastic.original(it)).count().macs, multiple=1)
