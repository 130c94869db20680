"""What claims on super-networks share: data, models that are trained as a whole, super-networks, and what is judged.

Every figure of a claim is of the test split, which neither training nor a search nor the choice has seen: for each
example whether the answer is right, so that two arms are compared on the same examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._frame import Inequality, Store
from benchmarks._markdown import Results, environment, inequalities
from lissome import pipeline
from lissome.core.budget import Budget
from lissome.core.errors import AssetError
from lissome.core.events import EventStream
from lissome.core.manifest import read_manifest
from lissome.core.method import Context
from lissome.cost.counted import Counter
from lissome.cost.measured import compare
from lissome.cost.oracle import SubnetCost
from lissome.engine.exampled import OfExamples
from lissome.engine.norms import batch_norms, reestimate
from lissome.engine.objective import Classes, faster_head, objective_of
from lissome.engine.pictures import Pictures
from lissome.engine.search import Found
from lissome.engine.search.pareto import hypervolume
from lissome.engine.spaces import Widths, elastic_space
from lissome.engine.train import train
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.stats import paired_bootstrap
from lissome.pipeline.job import data_for
from lissome.pipeline.supernets import FOUND

PASSES = 3
"""Of a step of a sandwich: the largest sub-network, one at random, the smallest."""
EXAMPLES = 512
"""Training examples over which statistics of batch norms are taken."""
LAPS = 101
"""In turns, of what is timed: of fewer the interval of small networks is as wide as what they save."""


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller.

    Attributes:
        seeds: Of every arm.
        part: Of all steps, trials and examples.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    part: float = 1.0

    def of(self, count: int, least: int = 4) -> int:
        """So many, or fewer."""
        return max(least, round(count * self.part))


FULL, QUICK = Scale(), Scale((0,), 0.02)


@dataclass(frozen=True)
class Cell:
    """One measurement of a claim.

    Attributes:
        name: Its name, unique within the claim.
        settings: All that it depends on, JSON-able.
        compute: Measures, in a folder that survives a kill.
    """

    name: str
    settings: Mapping[str, Any]
    compute: Callable[[Path], Mapping[str, Any]]


Cells = Mapping[str, Mapping[str, Any]]
"""Results of cells by name."""


def run(
    claim: str,
    quick: bool,
    store: Store,
    *,
    cells: Callable[[Scale, Store], Iterable[Cell]],
    judge: Callable[[Cells, Sequence[int]], list[Inequality]],
    needs: Sequence[Callable[[], object]] = (),
) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it; without its data a claim is skipped.

    Args:
        claim: Its name.
        quick: Whether to measure less.
        store: Its cells.
        cells: Yields all of them.
        judge: Turns their results into inequalities.
        needs: Raise `AssetError` where data are missing.
    """
    try:
        for need in needs:
            need()
    except AssetError as error:
        print(f"{claim} is skipped: {error}")
        return []
    scale, found = QUICK if quick else FULL, dict[str, dict[str, Any]]()
    for cell in cells(scale, store):
        if store.wants(cell.name):
            found[cell.name] = measure(cell, scale, store)
    if store.pattern is not None:
        return []
    judged = judge(found, scale.seeds)
    store.publish(claim, {"seeds": scale.seeds, "inequalities": [vars(one) for one in judged]}, cells=found)
    return judged


def measure(cell: Cell, scale: Scale, store: Store) -> dict[str, Any]:
    """Return the result of a cell, computing it the first time."""
    facts = {**cell.settings, "part": scale.part}
    return store.cell(cell.name, facts, lambda: cell.compute(store.scratch(cell.name, facts)))


RESAMPLED = (
    "Intervals resample the held-out examples, each with the mean of its answers over seeds: they say how sure the "
    "figures are on other examples, not with other seeds."
)
"""What claims say of `not_worse`."""

Shown = Mapping[str, Callable[[Mapping[str, Any]], str]]
"""What makes a table of one stored result, by the sentence above it."""


@dataclass(frozen=True)
class Tables:
    """Markdown of a claim.

    Attributes:
        line: Gives the README's line.
        tables: For the page.
        note: A sentence above the inequalities.
    """

    line: Callable[[Mapping[str, Any]], str]
    tables: Shown
    note: str = ""

    def summary(self, results: Results) -> str:
        """Return the README's line."""
        return self.line(results[0])

    def page(self, results: Results) -> str:
        """Return what was measured on which machines, all tables, and the inequalities."""
        shown = [part for result in results for title, made in self.tables.items() for part in (title, made(result))]
        return "\n\n".join([environment(results), *shown, *filter(None, [self.note]), inequalities(results)])


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


def chosen_by(model: Model, subject: Subject) -> float:
    """Accuracy on the examples to choose by, which are no test examples."""
    return objective(subject).figures(model, "selection")["accuracy"]


def original(subject: Subject) -> Model:
    """The model of a subject, never changed."""
    return _data(subject.folder, subject.data)[0]


@dataclass(frozen=True)
class Lesson:
    """A teacher's opinion, its share of the loss, and by what logits are divided there."""

    teacher: Model
    share: float
    temperature: float


def tuned(
    model: Model,
    judge: OfExamples,
    *,
    steps: int,
    seed: int,
    lesson: Lesson | None = None,
    new_head: bool = False,
    **settings: Any,
) -> Model:
    """Return a copy of a model that was trained as a whole; `settings` are of the training loop.

    A new head learns faster, as in lissome.
    """
    work = model.derived(copy.deepcopy(model.module).requires_grad_(True))
    made = judge.training(steps=steps, lr=settings.pop("lr"), batch=settings.pop("batch", None), max_seconds=None)
    task = judge.task(work)
    if lesson is not None and lesson.share:
        told = judge.lesson(work, lesson.teacher, share=lesson.share, temperature=lesson.temperature)
        task = replace(task, loss=told)
    if new_head:
        task = faster_head(task, work)
    train(task, replace(made, **settings), seed=seed)
    return work


def encoder(folder: Path, data: Path, *, steps: int, lr: float = 1e-4, seed: int = 0) -> Subject:
    """Return MiniLM with a head for some classes, trained as a whole (0 steps: not at all); made the first time."""
    place = folder / "model"
    if not place.exists():
        model, splits = data_for(pipeline.load("minilm"), data, seed=seed, searched=True)
        judge = objective_of(splits)
        assert isinstance(judge, Classes)
        (tuned(model, judge, steps=steps, seed=seed, lr=lr, new_head=True) if steps else model).save(place)
    return Subject("minilm", place, data)


def context(subject: Subject, folder: Path, seed: int) -> Context:
    """Return what a method is given to work on a subject."""
    model, splits = _data(subject.folder, subject.data)
    return Context(
        budget=Budget(), original={}, seed=seed, events=EventStream(), folder=folder, data=splits.for_methods(),
        cost=SubnetCost(model),
    )  # fmt: skip


def volume(front: Sequence[Mapping[str, float]], *, worst: float, least: float) -> float:
    """Share of the plane from no error and no multiply-accumulates to a corner that a front leaves behind it.

    Accuracy is that on examples which the search has not seen, for those of a front that were compared on them: on its
    own examples it takes the lucky ones.

    Args:
        front: Points with ``macs``, and some with ``held``.
        worst: Error at the corner: that of guessing.
        least: What a smaller cost counts as: where all spaces are to end there, ending below is no merit.
    """
    held = [point for point in front if "held" in point]
    return hypervolume([((1 - one["held"]) / worst, max(one["macs"], least)) for one in held], (1.0, 1.0))


def packed(model: Model, judge: OfExamples) -> str:
    """Whether each test example is right, as a text of 0 and 1."""
    return "".join(map(str, judge.each(model, "test")["accuracy"].int().tolist()))


def unpacked(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numbers of `packed`."""
    return np.array([float(each) for each in text])


def supernet(
    subject: Subject,
    folder: Path,
    *,
    method: str,
    settings: Mapping[str, Any],
    trials: int,
    seed: int,
    quality: str = "accuracy",
) -> Path:
    """Make a super-network of a subject and search it by the default sampler; continues after a kill.

    Args:
        subject: What becomes one.
        folder: Of unfinished work.
        method: Makes it.
        settings: Of the method.
        trials: Of the search.
        seed: Of both.
        quality: What is searched for beside few multiply-accumulates. On some hundred examples the loss tells networks
            apart whose accuracy is the same.
    """
    pipeline.supernet(
        str(subject.folder), method=method, data=str(subject.data), settings=assignments(settings), seed=seed,
        out=folder / "S",
    )  # fmt: skip
    pipeline.search(
        str(folder / "S"), out=folder / "search", trials=trials, seed=seed,
        objectives=(quality, "macs"),
    )  # fmt: skip
    return folder / "S"


def assignments(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Write settings as the command line takes them."""
    return tuple(f"{name}={written(value)}" for name, value in settings.items())


def written(value: Any) -> str:
    """Write one setting."""
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
            "subnet": dict(report.subnet),
        }
    model, space = pipeline.load(place), found.space
    ends = {
        name: packed(adapted(extract(model, subnet, space=space), judge), judge)
        for name, subnet in (("largest", space.full), ("smallest", space.smallest))
    }
    least, most = (Counter(model).figures(subnet)["macs"] / whole for subnet in (space.smallest, space.full))
    return {"front": front, "cut": cut, "ends": ends, "least": least, "most": most, "axes": len(space.axes)}


def opened(place: Path) -> tuple[Model, Space]:
    """A super-network, and what can be chosen of it."""
    return pipeline.load(place), Space.from_json(read_manifest(place).space)


def _held(selection: Mapping[str, float]) -> dict[str, float]:
    return {"held": selection["accuracy"]} if "accuracy" in selection else {}


def adapted(model: Model, judge: Classes | Pictures) -> Model:
    """Give a model batch norm statistics of its own, in place."""
    if batch_norms(model.module):
        reestimate(model.module, judge.batches(EXAMPLES))
    return model


def uniform(model: Model, share: float, *, multiple: int = 8) -> tuple[Subnet, Space]:
    """Return the Subnet of the same share of every width, and its Space."""
    rule = Widths(shares=(share, 1.0) if share < 1 else (1.0, 0.5), least=2, multiple=multiple)
    space = elastic_space(model, rule, kinds=("width",))
    return (space.smallest if share < 1 else space.full), space


def latency_of(made: Cell, share: float, it: Callable[[], Subject], scale: Scale, store: Store) -> Cell:
    """Return a cell for the latency of what a search found; of its own, to be measured when nothing else runs.

    Args:
        made: A cell with the result of `measured`.
        share: Of the multiply-accumulates, which was asked for.
        it: Gives the subject.
        scale: As of the claim.
        store: As of the claim.
    """

    def compute(_: Path) -> dict[str, Any]:
        return {"latency": latency(it(), measure(made, scale, store)["cut"][f"{share:g}"]["subnet"])}

    return Cell(f"latency-{made.name}", {"of": made.settings, "share": share}, compute)


def latency(subject: Subject, subnet: Mapping[str, int]) -> list[float]:
    """Median latency of a sub-network, its adapters merged, over the original's: in turns, with its interval."""
    model = original(subject)
    full = model.anatomy.space(finest=True).full
    small = extract(model, {name: subnet.get(name, size) for name, size in full.items()})
    ratio = compare(model, small, rounds=LAPS).ratios["latency"]
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
