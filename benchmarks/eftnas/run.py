"""Claim: sizes and orders that follow from scores do at least as well as lists made by hand.

MiniLM, fine-tuned on a task, is the teacher and the start of every arm; beside it stands tuned LoRA. On the languages
of short texts, super-networks with sizes by scores and with the same share of every layer get the same steps,
paths, teacher and evaluations; beside them single networks are cut by torch-pruning to a budget and distilled alone, as
many steps each; and before any training widths are cut in the order of every score. On SST-2 the super-network stands
beside its teacher, and so it does on questions whose answers are spans (a slice of SQuAD), tested on an article that
nothing was learnt from. Settings are the best of several, found on examples to choose by.
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
from benchmarks._sweep import told
from benchmarks.eftnas import answers
from benchmarks.eftnas.sweeps import (
    ALONE,
    ALONE_OF,
    FIFTH,
    HALF,
    LORA,
    SCORES,
    SHARES,
    SMALL,
    SWEPT,
    TASKS,
    TEACHER,
    Tried,
    by_lora,
)
from benchmarks.eftnas.sweeps import alone as distilled
from lissome import pipeline
from lissome.cost.counted import Counter
from lissome.engine.ranking import ranking, saliency
from lissome.engine.supermethod import Making
from lissome.methods.elastic.eftnas import EFTNAS
from lissome.models.binding import extract, ranks, reorder

LISTS = {"scored": "scores", "uniform": "uniform", "published": "scores"}
"""Where the sizes of an arm come from."""
ARMS = {"languages": ("scored", "uniform"), "sst2": ("scored",)}
PUBLISHED = {"scores": "learned", "even": 0.0}
"""What of the paper's settings the other arms may choose otherwise: scores that are learnt, and all paths at random."""
ORDERS = ("learned", "l1", "l2", "wanda", "first_order", "random", "none")
STEPS = 1000
TRIALS = {"languages": 150, "sst2": 100}
QUALITY = {"languages": "loss", "sst2": "accuracy"}
"""What is searched for, beside few multiply-accumulates; of two classes larger networks are right more often, yet so
sure of them that their loss is higher."""
BELOW = 0.8
"""What the largest network of a space shall cost where it is not the whole."""
MARGIN, NEAR = 1.0, 0.02
"""Points that may be lost; how near the ends of a space are to what they shall cost."""
FULLY = 0.97
"""Share of its multiply-accumulates that a network which is cut to a budget must use."""
WORST = {"languages": 1 - 1 / len(_tasks.LANGUAGES), "sst2": 0.5}
"""Error of guessing, from where volumes are measured."""


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("eftnas", quick, store, cells=cells, judge=judge, needs=(*TASKS.values(), _tasks.questions))


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured: first what rates are chosen by, then task by task."""
    tried = Tried(scale, store)
    for sweep in tried.sweeps.values():
        yield from sweep.cells()
    for task in TASKS:
        yield from _of_task(task, tried, scale)
    yield from _beside(tried, scale)
    yield from answers.cells(tried, scale, store)


def _of_task(task: str, tried: Tried, scale: Scale) -> Iterator[Cell]:
    """The teacher of a task, LoRA beside it, and super-networks."""
    known = {"task": task, "teacher": tried.taught(task), "sweep": tried.sweeps[SWEPT[task]].described}
    yield Cell(f"teacher-{task}", known, lambda _: whole(tried.teacher(task), tried.rate(f"teacher-{task}")))
    lora = {"task": task, "steps": TEACHER, "sweep": tried.sweeps[f"lora-{task}"].described}
    for seed in scale.seeds:
        yield Cell(f"lora-{task}-{seed}", {**lora, "seed": seed}, lambda _, seed=seed: beside(tried, task, scale, seed))
    published = [("published", scale.seeds[0])] if task == "languages" else []
    for arm, seed in [*((arm, seed) for seed in scale.seeds for arm in ARMS[task]), *published]:
        elastic = Cell(
            f"{arm}-{task}-{seed}",
            {**known, "steps": STEPS, "scores": SCORES, "smallest": SMALL, "shares": SHARES, "seed": seed,
             "arm": arm, "trials": TRIALS[task], "quality": QUALITY[task], "worst": WORST[task]},
            lambda folder, arm=arm, seed=seed: made(tried, folder, task, arm, scale, seed),
        )  # fmt: skip
        yield elastic
        if arm == "scored":
            yield _elastic.latency_of(elastic, HALF, partial(tried.teacher, task), scale, tried.store)


def _beside(tried: Tried, scale: Scale) -> Iterator[Cell]:
    """What stands beside super-networks on the languages of texts."""
    facts = {"task": "languages", "teacher": tried.taught("languages"), "scores": SCORES}
    yield Cell("orders", facts, lambda folder: orders(tried.teacher("languages"), folder, scale.of(SCORES)))
    for seed in scale.seeds:
        ends = {**facts, "smallest": SMALL, "largest": BELOW, "seed": seed}
        yield Cell(f"bounds-{seed}", ends, lambda folder, seed=seed: bounds(tried, folder, scale, seed))
    yield from _alone("alone", "languages", tried, scale, scale.seeds)
    yield from _alone("as-many-passes", "languages", tried, scale, scale.seeds[:1], _elastic.PASSES)
    yield from _alone(ALONE_OF["sst2"][0], "sst2", tried, scale, scale.seeds)


def _alone(arm: str, task: str, tried: Tried, scale: Scale, seeds: Sequence[int], times: int = 1) -> Iterator[Cell]:
    """Networks that are cut and distilled one by one, so many times as long as a super-network."""
    length = times * STEPS
    facts = {
        "task": task, "teacher": tried.taught(task), "scores": SCORES, "steps": length,
        "sweep": tried.sweeps[ALONE_OF[task][0]].described,
    }  # fmt: skip
    for share, seed in ((share, seed) for seed in seeds for share in SHARES):
        yield Cell(
            f"{arm}-{share:g}-{seed}",
            {**facts, "seed": seed, "share": share},
            lambda _, share=share, seed=seed: alone(tried, task, share, scale, length, seed),
        )


def whole(it: Subject, rate: float) -> dict[str, Any]:
    """The teacher itself."""
    return {"test": _elastic.packed(_elastic.original(it), _elastic.objective(it)), "chosen": told({"lr": rate})}


def beside(tried: Tried, task: str, scale: Scale, seed: int) -> dict[str, Any]:
    """MiniLM with LoRA, trained as long as the teacher."""
    it, rate = tried.untuned(task), tried.rate(f"lora-{task}")
    model = by_lora(it, scale, {**LORA, "lr": rate, "steps": TEACHER}, seed)
    return {"test": _elastic.packed(model, _elastic.objective(it)), "chosen": told({"lr": rate})}


def made(tried: Tried, folder: Path, task: str, arm: str, scale: Scale, seed: int) -> dict[str, Any]:
    """A super-network, searched, and what is cut out of it."""
    it, chosen = tried.teacher(task), tried.chosen(SWEPT[task]) | (PUBLISHED if arm == "published" else {})
    settings = {
        "lists": LISTS[arm], "steps": scale.of(STEPS), "score_steps": scale.of(SCORES), "smallest": SMALL,
        **chosen,
    }  # fmt: skip
    place = _elastic.supernet(
        it, folder, method="eftnas", settings=settings, trials=scale.of(TRIALS[task], 12), seed=seed,
        quality=QUALITY[task],
    )  # fmt: skip
    found = _elastic.measured(it, place, SHARES, folder / "cut")
    return {
        **found, "chosen": told(chosen), "passes": _elastic.PASSES * settings["steps"],
    }  # fmt: skip


def bounds(tried: Tried, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """What the ends of a space cost that ends below the whole; it is not trained."""
    it = tried.teacher("languages")
    settings = {"steps": 1, "score_steps": scale.of(SCORES), "smallest": SMALL, "largest": BELOW}
    pipeline.supernet(
        str(it.folder), method="eftnas", data=str(it.data), settings=_elastic.assignments(settings), seed=seed,
        out=folder / "S",
    )  # fmt: skip
    model, space = _elastic.opened(folder / "S")
    whole = Counter(_elastic.original(it)).count().macs
    least, most = (Counter(model).figures(subnet)["macs"] / whole for subnet in (space.smallest, space.full))
    return {"least": least, "most": most}


def alone(tried: Tried, task: str, share: float, scale: Scale, steps: int, seed: int) -> dict[str, Any]:
    """One network, cut by torch-pruning to a budget and distilled by itself."""
    it, chosen = tried.teacher(task), tried.chosen(ALONE_OF[task][0])
    model = distilled(it, share, scale, {**ALONE, **chosen, "steps": steps}, seed)
    macs = Counter(model).count().macs / Counter(_elastic.original(it)).count().macs
    test = _elastic.packed(model, _elastic.objective(it))
    return {"test": test, "macs": macs, "chosen": told(chosen), "passes": scale.of(steps)}


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


def volume(made_of: Sequence[Mapping[str, Any]], task: str) -> float:
    """Mean volume of the fronts of some super-networks, whose smallest are all to cost the same."""
    volumes = [_elastic.volume(one["front"], worst=WORST[task], least=SMALL) for one in made_of]
    return sum(volumes) / len(volumes)


def judge(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    scored = {task: [found[f"scored-{task}-{seed}"] for seed in seeds] for task in TASKS}
    told = _ends(found, [one for made_of in scored.values() for one in made_of], seeds)
    mine, hand = (
        volume([found[f"{arm}-languages-{seed}"] for seed in seeds], "languages") for arm in ("scored", "uniform")
    )
    told.append(Inequality.of("languages: volume of the front over that of lists made by hand", mine / hand, ">=", 1.0))
    for task, arms in scored.items():
        test = found[f"teacher-{task}"]["test"]
        lora = [found[f"lora-{task}-{seed}"]["test"] for seed in seeds]
        told.append(_elastic.not_worse(f"{task}: teacher against tuned LoRA, points", [test] * len(lora), lora, MARGIN))
        told += _at_half(task, arms, test, [found[f"latency-scored-{task}-{seed}"]["latency"][2] for seed in seeds])
        told.append(_at_fifth(task, arms, test))
    for task, made_of in scored.items():
        told += _against_alone(found, task, made_of, seeds)
    by = {order: _elastic.points([found["orders"][order]]) for order in ORDERS}
    others = ", ".join(f"{order} {value:.1f}" for order, value in by.items() if order != "learned")
    name = "half of all widths untrained, learnt order against the given"
    told.append(Inequality.of(name, by["learned"], ">", by["none"], others))
    return told + answers.judge(found, seeds)


def _ends(found: Cells, runs: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Inequality]:
    """How near the ends of spaces come to what they shall cost: up to the whole, and up to less."""
    cut = [found[f"bounds-{seed}"] for seed in seeds]
    off = {
        "smallest": max(abs(one["least"] / SMALL - 1) for one in (*runs, *cut)),
        "largest": max(abs(one["most"] - 1) for one in runs),
        f"largest, {BELOW:.0%} of the whole,": max(abs(one["most"] / BELOW - 1) for one in cut),
    }
    return [
        Inequality.of(f"the {end} network against what it shall cost, furthest", far, "<=", NEAR)
        for end, far in off.items()
    ]


def _against_alone(
    found: Cells, task: str, scored: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[Inequality]:
    told = []
    for share in SHARES:
        beside = [found[f"{ALONE_OF[task][0]}-{share:g}-{seed}"] for seed in seeds]
        mine = [one["cut"][f"{share:g}"]["test"] for one in scored]
        name = f"{task}: one run at {share:.0%} against a network distilled alone, points"
        told.append(_elastic.not_worse(name, mine, [one["test"] for one in beside], MARGIN))
        used = min(one["macs"] for one in beside) / share
        told.append(
            Inequality.of(f"{task}: share of {share:.0%} that the network distilled alone uses", used, ">=", FULLY)
        )
    return told


def _at_fifth(task: str, made_of: Sequence[Mapping[str, Any]], test: str) -> Inequality:
    """How small the small point is, with what it loses."""
    small = [one["cut"][f"{FIFTH:g}"] for one in made_of]
    lost = _elastic.not_worse("", [one["test"] for one in small], [test] * len(small), math.inf).detail
    name = f"{task}: times that the small point is smaller than the teacher, fewest"
    return Inequality.of(name, 1 / max(one["macs"] for one in small), ">=", 1 / FIFTH, f"accuracy against it: {lost}")


def _at_half(task: str, made_of: Sequence[Mapping[str, Any]], test: str, slow: Sequence[float]) -> list[Inequality]:
    half = [one["cut"][f"{HALF:g}"] for one in made_of]
    tests = [one["test"] for one in half]
    return [
        Inequality.of(f"{task}: multiply-accumulates at half, most", max(one["macs"] for one in half), "<=", HALF),
        _elastic.not_worse(f"{task}: at half against the teacher, points", tests, [test] * len(tests), MARGIN),
        Inequality.of(f"{task}: latency at half, upper end", max(slow), "<", 1.0),
    ]
