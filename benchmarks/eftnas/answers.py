"""Answers in texts: a teacher that finds them, and what is cut out of its super-network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Cell, Cells, Scale, Subject
from benchmarks._frame import Inequality, Store
from benchmarks.eftnas.clozes import COUNT, write_answerable, write_clozes
from benchmarks.eftnas.sweeps import SHARES, SMALL, Tried
from lissome import pipeline
from lissome.engine.spans import Spans
from lissome.models.model import Model
from lissome.ops.stats import Interval, paired_bootstrap
from lissome.pipeline.job import data_for

TAUGHT = {"clozes": COUNT, "cloze_steps": 400, "cloze_lr": 2e-4, "steps": 150, "lr": 1e-4}
"""Of the teacher."""
SETTINGS = {"steps": 240, "scores": 40, "trials": 20, "lr": 2e-4, "quality": "loss"}
"""Of its super-network. Some fifty questions tell the loss of two networks apart, their F1 hardly."""
FIGURES = ("f1", "exact", "answered")


def cells(tried: Tried, scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield the teacher, and one super-network of it per seed."""
    at = partial(store.scratch, "answers", {"part": scale.part, **TAUGHT})
    yield Cell("answers-teacher", TAUGHT, lambda _: teacher(at(), scale))
    known = {
        "settings": SETTINGS,
        "teacher": TAUGHT,
        "smallest": SMALL,
        "shares": SHARES,
        "sweep": tried.sweeps["eftnas"].described,
    }
    for seed in scale.seeds:
        yield Cell(
            f"answers-{seed}",
            {**known, "seed": seed},
            lambda folder, seed=seed: elastic(at(), folder, tried, scale, seed),
        )


def judge(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Compare F1 of words, question by question; intervals are wide, for there are few questions."""
    taught, blank = (found["answers-teacher"][name]["f1"] for name in ("teacher", "untrained"))
    half = [found[f"answers-{seed}"][f"{SHARES[0]:g}"]["f1"] for seed in seeds]
    gain, kept, lost = difference([taught], blank), difference(half, blank), difference(half, taught)
    low = "answers: F1 of {} over that of an untrained head, lower end, points"
    return [
        Inequality.of(low.format("the teacher"), gain.low, ">", 0.0, spread(gain)),
        Inequality.of(low.format("half"), kept.low, ">", 0.0, f"{spread(kept)}; against the teacher {spread(lost)}"),
    ]


def teacher(place: Path, scale: Scale) -> dict[str, Any]:
    """Teach a model to find answers in a text, and judge it on an article that it never saw.

    It learns from questions that were made of other texts first: the articles have some four hundred.

    Returns:
        F1, exact match and whether it is answered, of each question: of the ``untrained`` model, after the first
        lesson (``clozes``), and after both (``teacher``).
    """
    model, found = pipeline.load("minilm"), dict[str, Any]()
    for name, file, steps, lr in (
        ("clozes", _clozes(place), TAUGHT["cloze_steps"], TAUGHT["cloze_lr"]),
        ("teacher", questions(place), TAUGHT["steps"], TAUGHT["lr"]),
    ):
        asked, spans = _of(model, file)
        found.setdefault("untrained", read(_of(model, questions(place))[1], asked))
        if not (place / name).exists():
            new = name == "clozes"
            taught = _elastic.tuned(asked, spans, steps=scale.of(int(steps)), seed=0, lr=lr, new_head=new)
            taught.save(place / name)
        model = pipeline.load(place / name)
        found[name] = read(_of(model, questions(place))[1], model)
    return found


def elastic(place: Path, folder: Path, tried: Tried, scale: Scale, seed: int) -> dict[str, Any]:
    """What is cut out of a super-network of the teacher; all but its rate and length as on the languages."""
    if not (place / "teacher").exists():
        teacher(place, scale)
    settings = {
        **tried.chosen("eftnas"), "lr": SETTINGS["lr"], "smallest": SMALL, "steps": scale.of(int(SETTINGS["steps"])),
        "score_steps": scale.of(int(SETTINGS["scores"])),
    }  # fmt: skip
    it, found = Subject("minilm", place / "teacher", questions(place)), dict[str, Any]()
    made_of = _elastic.supernet(
        it, folder, method="eftnas", settings=settings, trials=scale.of(int(SETTINGS["trials"]), 8), seed=seed,
        quality=str(SETTINGS["quality"]),
    )  # fmt: skip
    for share in SHARES:
        report = pipeline.extract_for(made_of, budget=f"macs<={share:.2%}", out=folder / f"{share:g}")
        small = pipeline.load(folder / f"{share:g}")
        spans = _of(small, questions(place))[1]
        found[f"{share:g}"] = {**read(spans, small), "macs": report.figures["macs"] / report.original["macs"]}
    return found


def questions(place: Path) -> Path:
    """Return the questions on five articles that these answer."""
    file = place / "questions.json"
    return file if file.exists() else write_answerable(_tasks.questions(), file)


def _clozes(place: Path) -> Path:
    file = place / "clozes.json"
    return file if file.exists() else write_clozes(file, int(TAUGHT["clozes"]))


def _of(model: Model, file: Path) -> tuple[Model, Spans]:
    made, splits = data_for(model, file, seed=0, searched=True)
    return made, Spans(splits)


def read(spans: Spans, model: Model) -> dict[str, list[float]]:
    """F1 and exact match of every test question, and whether it is answered, to four digits."""
    each = spans.each(model, "test")
    return {name: [round(float(one), 4) for one in each[name]] for name in FIGURES}


def difference(mine: Sequence[Sequence[float]], other: Sequence[float]) -> Interval:
    """Mean over seeds against one other on the same questions, in points."""
    return paired_bootstrap(100 * (np.mean(mine, axis=0) - np.array(other)))


def spread(found: Interval) -> str:
    """Write a difference with its interval and the number of questions."""
    return f"({found.value:+.2f}, 95 % {found.low:+.2f} to {found.high:+.2f}, n={found.n})"


def rows(cells: Mapping[str, Any], seeds: Sequence[int]) -> list[list[str]]:
    """Return the means of each model, in percent."""
    runs = [cells[f"answers-{seed}"] for seed in seeds]
    named = {name: [one] for name, one in cells["answers-teacher"].items()}
    named |= {f"{share} of the multiply-accumulates": [one[share] for one in runs] for share in runs[0]}
    return [
        [name, *(f"{100 * float(np.mean([one[key] for one in found])):.1f}" for key in FIGURES)]
        for name, found in named.items()
    ]
