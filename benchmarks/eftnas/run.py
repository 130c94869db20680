"""Claim: sizes and orders that follow from learnt scores do at least as well as lists made by hand.

MiniLM, fine-tuned on a task, is the teacher and the start of every arm. On the languages of short texts, super-networks
with sizes by learnt scores and with the same share of every layer get the same steps, paths, teacher and evaluations;
beside them single networks are cut by torch-pruning to a budget and distilled alone, as many steps each; and before
any training widths are cut in the order of every score. On SST-2 the super-network stands beside its teacher, and so
it does on questions whose answers are spans (a slice of SQuAD), tested on an article that nothing was learnt from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from lissome.engine.spans import Spans
from lissome.engine.supermethod import Making
from lissome.methods.elastic.eftnas import EFTNAS
from lissome.models.binding import extract, ranks, reorder
from lissome.pipeline.job import data_for

HALF, FIFTH = 0.5, 0.2
SHARES = (HALF, FIFTH)
"""Shares of the multiply-accumulates at which models are cut out; at the smaller one a model is five times smaller."""
SMALL = 0.195
"""What the smallest network of a space shall cost: within 2 % of it, which leaves it below a fifth."""
LISTS = {"learned": "scores", "uniform": "uniform"}
"""Where the sizes of an arm come from."""
TASKS = {"languages": _tasks.languages, "sst2": _tasks.sentences}
ARMS = {"languages": tuple(LISTS), "sst2": ("learned",)}
ORDERS = ("learned", "l1", "l2", "wanda", "first_order", "random", "none")
STEPS = {"languages": 400, "sst2": 300}
TEACHER, SCORES = 500, 120
TRIALS = {"languages": 60, "sst2": 30}
ANSWERS = {"teacher": 200, "steps": 80, "scores": 40, "trials": 16}
MARGIN, NEAR = 1.0, 0.02
"""Points of accuracy that may be lost; how near the smallest network is to what it shall cost."""
WORST = {"languages": 1 - 1 / len(_tasks.LANGUAGES), "sst2": 0.5}
"""Error of guessing, from where volumes are measured."""


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("eftnas", quick, store, cells=cells, judge=judge, needs=(*TASKS.values(), _tasks.questions))


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured, task by task."""
    facts = {"teacher": TEACHER, "scores": SCORES}
    for task in TASKS:
        it, known = partial(teacher, task, scale, store), {**facts, "task": task, "steps": STEPS[task]}
        yield Cell(f"teacher-{task}", known, lambda _, it=it: whole(it()))
        for seed in scale.seeds:
            for arm in ARMS[task]:
                yield Cell(
                    f"{arm}-{task}-{seed}",
                    {**known, "seed": seed, "arm": arm, "trials": TRIALS[task]},
                    lambda folder, it=it, task=task, arm=arm, seed=seed: made(it(), folder, task, arm, scale, seed),
                )
    known = {**facts, "task": "languages", "steps": STEPS["languages"]}
    yield Cell("answers", {"settings": ANSWERS}, partial(answers, scale))
    it = partial(teacher, "languages", scale, store)
    yield Cell("orders", known, lambda folder: orders(it(), folder, scale.of(SCORES)))
    for seed in scale.seeds:
        for share in SHARES:
            yield Cell(
                f"alone-{share:g}-{seed}",
                {**known, "seed": seed, "share": share},
                lambda _, share=share, seed=seed: alone(it(), share, scale, seed),
            )


def teacher(task: str, scale: Scale, store: Store) -> Subject:
    """MiniLM, fine-tuned on a task."""
    facts = {"part": scale.part, "teacher": TEACHER, "task": task}
    return _elastic.encoder(store.scratch("model", facts), TASKS[task](), steps=scale.of(TEACHER))


def whole(it: Subject) -> dict[str, Any]:
    """The teacher itself."""
    return {"test": _elastic.packed(_elastic.original(it), _elastic.objective(it))}


def made(it: Subject, folder: Path, task: str, arm: str, scale: Scale, seed: int) -> dict[str, Any]:
    """A super-network, searched, and what is cut out of it."""
    settings = {
        "lists": LISTS[arm], "steps": scale.of(STEPS[task]), "score_steps": scale.of(SCORES), "smallest": SMALL,
        "lr": 1e-4,
    }  # fmt: skip
    place = _elastic.supernet(
        it, folder, method="eftnas", settings=settings, trials=scale.of(TRIALS[task], 12), seed=seed
    )
    found = _elastic.measured(it, place, SHARES, folder / "cut")
    volume = _elastic.volume(found["front"], worst=WORST[task])
    return {**found, "volume": volume, "latency": _elastic.latency(it, folder / "cut" / "0.5")}


def alone(it: Subject, share: float, scale: Scale, seed: int) -> dict[str, Any]:
    """One network, cut by torch-pruning to a budget and distilled by itself."""
    judge, given = _elastic.objective(it), _elastic.original(it)
    small = pruned(it, share * Counter(given).count().macs, multiple=1)
    steps = scale.of(STEPS["languages"])
    model = _elastic.tuned(small, judge, steps=steps, seed=seed, teacher=given, lr=1e-4)
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


def answers(scale: Scale, folder: Path) -> dict[str, Any]:
    """A teacher that finds answers in a text, and what is cut out of its super-network: F1 of words, test article."""
    model, splits = data_for(pipeline.load("minilm"), _tasks.questions(), seed=0, searched=True)
    spans = Spans(splits)
    found: dict[str, Any] = {"untrained": spans.figures(model, "test"), "questions": len(splits.test)}
    place = folder / "teacher"
    if not place.exists():
        _elastic.tuned(model, spans, steps=scale.of(ANSWERS["teacher"]), seed=0, lr=2e-4).save(place)
    taught = pipeline.load(place)
    found["teacher"] = spans.figures(taught, "test")
    settings = {
        "steps": scale.of(ANSWERS["steps"]), "score_steps": scale.of(ANSWERS["scores"]), "lr": 2e-4, "smallest": SMALL,
    }  # fmt: skip
    it = Subject("minilm", place, _tasks.questions())
    made_of = _elastic.supernet(
        it, folder, method="eftnas", settings=settings, trials=scale.of(ANSWERS["trials"], 8), seed=0,
        quality="f1",
    )  # fmt: skip
    for share in SHARES:
        report = pipeline.extract_for(made_of, budget=f"macs<={share:.2%}", out=folder / f"{share:g}")
        small = pipeline.load(folder / f"{share:g}")
        cost = report.figures["macs"] / report.original["macs"]
        found[f"{share:g}"] = {**spans.figures(small, "test"), "macs": cost}
    return found


def judge(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    learned = {task: [found[f"learned-{task}-{seed}"] for seed in seeds] for task in TASKS}
    runs = [one for made_of in learned.values() for one in made_of]
    off = max(abs(one["least"] / SMALL - 1) for one in runs)
    over = max(abs(one["most"] - 1) for one in runs)
    mine, hand = (
        sum(found[f"{arm}-languages-{seed}"]["volume"] for seed in seeds) / len(seeds) for arm in ("learned", "uniform")
    )
    told = [
        Inequality.of("the smallest network against what it shall cost, furthest", off, "<=", NEAR),
        Inequality.of("the largest network against what it shall cost, furthest", over, "<=", NEAR),
        Inequality.of("languages: volume of the front over that of lists made by hand", mine / hand, ">=", 1.0),
    ]
    for task, arms in learned.items():
        told += _at_half(task, arms, found[f"teacher-{task}"]["test"])
        told.append(_at_fifth(task, arms, found[f"teacher-{task}"]["test"]))
    for share in SHARES:
        key = f"{share:g}"
        name = f"languages: one run at {share:.0%} against a network distilled alone, points"
        beside = [found[f"alone-{share:g}-{seed}"]["test"] for seed in seeds]
        told.append(_elastic.not_worse(name, [one["cut"][key]["test"] for one in learned["languages"]], beside, MARGIN))
    by = {order: _elastic.points([found["orders"][order]]) for order in ORDERS}
    others = ", ".join(f"{order} {value:.1f}" for order, value in by.items() if order != "learned")
    name = "half of all widths untrained, learnt order against the given"
    told.append(Inequality.of(name, by["learned"], ">", by["none"], others))
    read, blank = (100 * found["answers"][name]["f1"] for name in ("teacher", "untrained"))
    half = f"(at half of the multiply-accumulates: {100 * found['answers'][f'{HALF:g}']['f1']:.1f})"
    return [*told, Inequality.of("answers: F1 of the teacher over that of an untrained head", read, ">", blank, half)]


def _at_fifth(task: str, made_of: Sequence[Mapping[str, Any]], test: str) -> Inequality:
    """How small the small point is, with what it loses."""
    small = [one["cut"][f"{FIFTH:g}"] for one in made_of]
    lost = _elastic.not_worse("", [one["test"] for one in small], [test] * len(small), math.inf).detail
    name = f"{task}: times that the small point is smaller than the teacher, fewest"
    return Inequality.of(name, 1 / max(one["macs"] for one in small), ">=", 1 / FIFTH, f"accuracy against it: {lost}")


def _at_half(task: str, made_of: Sequence[Mapping[str, Any]], test: str) -> list[Inequality]:
    half = [one["cut"][f"{HALF:g}"] for one in made_of]
    tests, slow = [one["test"] for one in half], max(one["latency"][2] for one in made_of)
    return [
        Inequality.of(f"{task}: multiply-accumulates at half, most", max(one["macs"] for one in half), "<=", HALF),
        _elastic.not_worse(f"{task}: at half against the teacher, points", tests, [test] * len(tests), MARGIN),
        Inequality.of(f"{task}: latency at half, upper end", slow, "<", 1.0),
    ]
