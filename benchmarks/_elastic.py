"""What claims on super-networks share: data, models that are trained as a whole, super-networks, and what is judged.

Every figure of a claim is of the test split, which neither training nor a search nor the choice has seen: for each
example whether the answer is right, so that two arms are compared on the same examples.
"""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._frame import Inequality
from lissome import pipeline
from lissome.core.budget import Budget
from lissome.core.events import EventStream
from lissome.core.files import cache_dir, write_text
from lissome.core.method import Context
from lissome.cost.counted import Counter
from lissome.cost.measured import compare
from lissome.cost.oracle import SubnetCost
from lissome.data.local import data_file
from lissome.engine.norms import batch_norms, reestimate
from lissome.engine.objective import Classes, objective_of
from lissome.engine.pictures import Pictures
from lissome.engine.ranking import ranking, saliency
from lissome.engine.search import Found
from lissome.engine.search.pareto import hypervolume
from lissome.engine.spaces import Widths, elastic_space
from lissome.engine.train import train
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.stats import paired_bootstrap
from lissome.pipeline.job import data_for
from lissome.pipeline.supernets import FOUND

_SST2 = {
    "text/sst2_train.tsv": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "text/sst2_dev.tsv": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "text/sst2_test.tsv": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
}
_CIFAR = ("vision/cifar10_jpeg.npz", "f1000a02bf4d1af3c8931671a029c1851913df3dbc6c7128ce74fcc6a249ef13")
EXAMPLES = 1500
"""Training examples over which statistics of batch norms are taken."""


def sentences() -> Path:
    """Write SST-2's sentences, all of its parts together, as labelled texts: 1,900 of them are the test split."""
    place = cache_dir() / "benchmarks" / "sst2.jsonl"
    if not place.exists():
        lines = []
        for name, sha256 in _SST2.items():
            with data_file(name, sha256).open(encoding="utf-8", newline="") as file:
                rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                lines += [json.dumps({"text": row[0], "label": row[1]}) for row in rows if len(row) == 2]
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, "\n".join(lines) + "\n")
    return place


def photographs() -> Path:
    """Return CIFAR-10 as JPEG images: not comparable with published accuracy."""
    return data_file(*_CIFAR)


@dataclass(frozen=True)
class Subject:
    """A model that becomes a super-network, and its task.

    Attributes:
        name: What it is called in cells and tables.
        folder: Where it lies, trained on the task.
        data: What it learnt.
    """

    name: str
    folder: Path
    data: Path


@cache
def _data(folder: Path, data: Path) -> tuple[Model, Any]:
    """The model and its splits; read once."""
    model = pipeline.load(folder)
    _, splits = data_for(model, data, seed=0, searched=True)
    return model, splits


def objective(subject: Subject) -> Classes | Pictures:
    """What a subject is judged by."""
    found = objective_of(_data(subject.folder, subject.data)[1])
    assert isinstance(found, Classes | Pictures)
    return found


def original(subject: Subject) -> Model:
    """The model of a subject, never changed."""
    return _data(subject.folder, subject.data)[0]


def tuned(
    model: Model, judge: Classes | Pictures, *, steps: int, seed: int, teacher: Model | None = None, **settings: Any
) -> Model:
    """Return a copy of a model that was trained as a whole; `settings` are of the training loop.

    A teacher is listened to as EFTNAS does: 0.9 of the loss, at temperature 2.
    """
    work = model.derived(copy.deepcopy(model.module).requires_grad_(True))
    made = judge.training(steps=steps, lr=settings.pop("lr"), batch=settings.pop("batch", None), max_seconds=None)
    task = judge.task(work)
    if teacher is not None:
        task = replace(task, loss=judge.lesson(work, teacher, share=0.9, temperature=2.0))
    train(task, replace(made, **settings), seed=seed)
    return work


def encoder(folder: Path, *, steps: int, lr: float = 1e-4, seed: int = 0) -> Subject:
    """Return MiniLM with a head for SST-2, trained as a whole (0 steps: not at all); it is made the first time."""
    place = folder / "model"
    if not place.exists():
        model, splits = data_for(pipeline.load("minilm"), sentences(), seed=seed, searched=True)
        judge = objective_of(splits)
        assert isinstance(judge, Classes)
        (tuned(model, judge, steps=steps, seed=seed, lr=lr) if steps else model).save(place)
    return Subject("minilm", place, sentences())


def context(subject: Subject, folder: Path, seed: int) -> Context:
    """Return what a method is given to work on a subject."""
    model, splits = _data(subject.folder, subject.data)
    return Context(
        budget=Budget(), original={}, seed=seed, events=EventStream(), folder=folder, data=splits.for_methods(),
        cost=SubnetCost(model),
    )  # fmt: skip


def volume(front: Sequence[Mapping[str, float]], *, worst: float = 0.5) -> float:
    """Share of the plane from no error and no multiply-accumulates to a corner that a front leaves behind it.

    Args:
        front: Points with ``macs`` and ``accuracy``.
        worst: Error at the corner: that of guessing between two classes.
    """
    values = [((1 - point["accuracy"]) / worst, point["macs"]) for point in front]
    return hypervolume(values, (1.0, 1.0))


def packed(model: Model, judge: Classes | Pictures) -> str:
    """Whether each test example is right, as a text of 0 and 1."""
    return "".join(map(str, judge.correct(model, "test").int().tolist()))


def unpacked(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numbers of `packed`."""
    return np.array([float(each) for each in text])


def supernet(
    subject: Subject, folder: Path, *, method: str, settings: Mapping[str, Any], trials: int, seed: int, sampler: str
) -> Path:
    """Make a super-network of a subject and search it; continues after a kill."""
    assignments = tuple(f"{name}={_written(value)}" for name, value in settings.items())
    pipeline.supernet(
        str(subject.folder), method=method, data=str(subject.data), settings=assignments, seed=seed, out=folder / "S"
    )
    pipeline.search(
        str(folder / "S"), out=folder / "search", trials=trials, sampler=sampler, seed=seed,
        objectives=("accuracy", "macs"),
    )  # fmt: skip
    return folder / "S"


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def measured(subject: Subject, place: Path, shares: Sequence[float], folder: Path) -> dict[str, Any]:
    """Look at a super-network: its front, its ends, and what is extracted within shares of the multiply-accumulates."""
    judge, found = objective(subject), Found.load(place / FOUND)
    whole = found.original["macs"]
    front = [
        {"macs": point.figures["macs"] / whole, "accuracy": point.figures["accuracy"], **_held(point.selection)}
        for point in (found.points[at] for at in found.front)
    ]
    cut: dict[str, Any] = {}
    for share in shares:
        report = pipeline.extract_for(place, budget=f"macs<={share:.2%}", out=folder / f"{share:g}")
        small = pipeline.load(folder / f"{share:g}")
        cut[f"{share:g}"] = {
            "macs": report.figures["macs"] / whole,
            "params": report.figures["params"] / found.original["params"],
            "test": packed(small, judge),
        }
    model, space = pipeline.load(place), found.space
    ends = {
        name: packed(adapted(extract(model, subnet, space=space), judge), judge)
        for name, subnet in (("largest", space.full), ("smallest", space.smallest))
    }
    least = Counter(model).figures(space.smallest)["macs"] / whole
    return {"front": front, "cut": cut, "ends": ends, "least": least, "axes": len(space.axes)}


def _held(selection: Mapping[str, float]) -> dict[str, float]:
    return {"held": selection["accuracy"]} if "accuracy" in selection else {}


def adapted(model: Model, judge: Classes | Pictures) -> Model:
    """Give a model batch norm statistics of its own, in place."""
    if batch_norms(model.module):
        reestimate(model.module, judge.batches(EXAMPLES))
    return model


def pruned(subject: Subject, macs: float, *, score: str = "l1", multiple: int = 8) -> Model:
    """Return a subject without the same share of every width, weakest filters first, within multiply-accumulates.

    That is magnitude pruning by dependency groups, as torch-pruning's MagnitudePruner does it.
    """
    model = original(subject)
    work = model.derived(copy.deepcopy(model.module))
    reorder(work, ranking(work, saliency(work, score)))
    counter = Counter(work)
    for share in np.linspace(1.0, 0.05, 96):
        subnet, space = uniform(work, float(share), multiple=multiple)
        if counter.figures(subnet)["macs"] <= macs:
            return adapted(extract(work, subnet, space=space), objective(subject))
    raise ValueError(f"no share of all widths stays within {macs:.3g} multiply-accumulates")


def uniform(model: Model, share: float, *, multiple: int = 8) -> tuple[Subnet, Space]:
    """Return the Subnet of the same share of every width, and its Space."""
    rule = Widths(shares=(share, 1.0) if share < 1 else (1.0, 0.5), least=2, multiple=multiple)
    space = elastic_space(model, rule, kinds=("width",))
    return (space.smallest if share < 1 else space.full), space


def latency(subject: Subject, folder: Path) -> list[float]:
    """Median latency of an extracted model over the original's, measured in turns, with its interval."""
    ratio = compare(original(subject), pipeline.load(folder)).ratios["latency"]
    return [ratio.value, float(ratio.low or math.nan), float(ratio.high or math.nan)]


def not_worse(name: str, mine: Sequence[str], other: Sequence[str], margin: float) -> Inequality:
    """Compare two arms on the same examples: the lower end of the 95 % interval of the difference, in points.

    Args:
        name: Of the inequality.
        mine: By seed: whether each example is right.
        other: The same of the other arm; one for all seeds, or one each.
        margin: Points that may be lost.
    """
    first = np.stack([unpacked(text) for text in mine])
    second = np.stack([unpacked(text) for text in other])
    both = 100 * (first.mean(0) - second.mean(0))
    found = paired_bootstrap(both)
    detail = f"({found.value:+.2f}, 95 % {found.low:+.2f} to {found.high:+.2f}, n={found.n}, {len(mine)} seeds)"
    return Inequality.of(name, found.low, ">=", -margin, detail)


def points(texts: Sequence[str]) -> float:
    """Mean accuracy in points."""
    return float(100 * np.mean([unpacked(text).mean() for text in texts]))


def apart(front: Sequence[Mapping[str, float]], gap: float = 0.05) -> int:
    """Points of a front that are more than a gap of multiply-accumulates from each other, counted greedily."""
    count, last = 0, -math.inf
    for macs in sorted(point["macs"] for point in front):
        if macs - last > gap:
            count, last = count + 1, macs
    return count
