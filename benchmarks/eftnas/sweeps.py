"""What the claim on EFTNAS tries on examples to choose by: of teachers, of LoRA, of super-networks, of single ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import _elastic, _lora, _tasks
from benchmarks._elastic import Scale, Subject
from benchmarks._frame import Store
from benchmarks._pruning import pruned
from benchmarks._sweep import Sweep
from lissome import pipeline
from lissome.core.manifest import read_curve
from lissome.cost.counted import Counter
from lissome.engine.regularise import dropping
from lissome.models.model import Model

HALF, FIFTH = 0.5, 0.2
SHARES = (HALF, FIFTH)
"""Shares of the multiply-accumulates at which models are cut out; at the smaller one a model is five times smaller."""
SMALL = 0.195
"""What the smallest network of a space shall cost: within 2 % of it, which leaves it below a fifth."""
TASKS = {"languages": _tasks.languages, "sst2": _tasks.sentences}
TEACHER, SCORES = 1000, 120
TRIED, TRIED_SMALL = 250, 150
"""Steps of a run in which rates of teachers and LoRA are tried; and settings of networks that learn from a teacher."""

WHOLE: dict[str, Any] = {"lr": 1e-4, "steps": TRIED}
WHOLE_CHANGES: tuple[dict[str, Any], ...] = ({"lr": 2e-4}, {"lr": 4e-4})
LORA: dict[str, Any] = {"lr": 2e-3, "rank": 8, "adapt": "all", "steps": TRIED}
LORA_CHANGES: tuple[dict[str, Any], ...] = ({"lr": 1e-3}, {"lr": 4e-3})
ELASTIC: dict[str, Any] = {
    "lr": 1e-4, "scores": "learned", "score_steps": SCORES, "distil": 0.9, "temperature": 2.0, "even": 0.0,
    "steps": TRIED_SMALL,
}  # fmt: skip
ELASTIC_CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 5e-5}, {"lr": 2e-4}, {"scores": "l1"}, {"scores": "first_order"}, {"score_steps": 40}, {"score_steps": 360},
    {"distil": 0.0}, {"distil": 0.5}, {"temperature": 1.0}, {"temperature": 4.0}, {"even": 0.5}, {"even": 1.0},
)  # fmt: skip
SENTENCES: dict[str, Any] = {
    **ELASTIC, "lr": 2e-4, "even": 1.0, "hide": 0.0, "dropout": None,
}  # fmt: skip
"""On SST-2, which has two classes: the rate and the paths of the languages, and what keeps texts from being learnt."""
SENTENCES_CHANGES: tuple[dict[str, Any], ...] = (
    {"hide": 0.15}, {"hide": 0.3}, {"dropout": 0.0}, {"lr": 1e-4}, {"lr": 4e-4}, {"scores": "first_order"},
    {"scores": "l1"}, {"distil": 0.0}, {"distil": 0.5}, {"temperature": 1.0}, {"temperature": 4.0},
)  # fmt: skip
ALONE: dict[str, Any] = {
    "lr": 1e-4, "distil": 0.9, "temperature": 2.0, "weight_decay": 0.0, "steps": TRIED_SMALL,
}  # fmt: skip
ALONE_CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 5e-5}, {"lr": 2e-4}, {"lr": 4e-4}, {"lr": 8e-4}, {"distil": 0.0}, {"distil": 0.5}, {"distil": 1.0},
    {"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 8.0}, {"weight_decay": 0.01}, {"weight_decay": 0.1},
)  # fmt: skip
ALONE_OF: dict[str, tuple[str, dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "languages": ("alone", ALONE, ALONE_CHANGES),
    "sst2": ("alone-sst2", {**ALONE, "dropout": None}, (*ALONE_CHANGES, {"dropout": 0.0})),
}
"""What networks that are distilled alone are called by task, and what is tried of them."""
SWEPT = {"languages": "eftnas", "sst2": "eftnas-sst2"}
"""The sweep of the super-networks of a task."""
CHOSEN = {
    "eftnas": ("lr", "scores", "even"), "eftnas-sst2": ("lr", "scores", "even", "hide", "dropout"),
    "alone": ("lr", "distil", "temperature"), "alone-sst2": ("lr", "distil", "temperature", "dropout"),
}  # fmt: skip
"""What each arm takes: the best value of each."""


class Tried:
    """Sweeps of the claim, and what their best settings give.

    Args:
        scale: How much is measured.
        store: Where.
    """

    def __init__(self, scale: Scale, store: Store) -> None:
        self._scale, self.store = scale, store
        ways = {"teacher": (WHOLE, WHOLE_CHANGES, self._taught), "lora": (LORA, LORA_CHANGES, self._by_lora)}
        self.sweeps = {
            f"{arm}-{task}": Sweep(f"{arm}-{task}", {"task": task}, usual, changes, partial(compute, task))
            for task in TASKS
            for arm, (usual, changes, compute) in ways.items()
        }
        tries = {"languages": (ELASTIC, ELASTIC_CHANGES), "sst2": (SENTENCES, SENTENCES_CHANGES)}
        for task, (usual, changes) in tries.items():
            known = {"task": task, "teacher": self.taught(task), "smallest": SMALL}
            compute = partial(self._super_network, task)
            self.sweeps[SWEPT[task]] = Sweep(SWEPT[task], known, usual, changes, compute)
        for task, (name, usual, changes) in ALONE_OF.items():
            known = {"task": task, "teacher": self.taught(task), "shares": SHARES}
            self.sweeps[name] = Sweep(name, known, usual, changes, partial(self._alone, task))

    def taught(self, task: str) -> dict[str, Any]:
        """What a teacher depends on, for keys of cells."""
        return {"steps": TEACHER, "rates": self.sweeps[f"teacher-{task}"].described}

    def rate(self, arm: str) -> float:
        """The best learning rate of those that were tried."""
        return float(self.sweeps[arm].best(self.store, self._scale, "lr"))

    def chosen(self, arm: str) -> dict[str, Any]:
        """The best of what was tried of each setting that an arm takes."""
        return self.sweeps[arm].chosen(self.store, self._scale, CHOSEN[arm])

    def teacher(self, task: str) -> Subject:
        """MiniLM, fine-tuned on a task at the best rate; made the first time."""
        return self._encoder(task, TEACHER, self.rate(f"teacher-{task}"))

    def untuned(self, task: str) -> Subject:
        """MiniLM with a new head for a task."""
        return self._encoder(task, 0, 0.0)

    def _encoder(self, task: str, steps: int, rate: float) -> Subject:
        facts = {"part": self._scale.part, "task": task, "steps": steps, "lr": rate}
        count = self._scale.of(steps) if steps else 0
        return _elastic.encoder(self.store.scratch("model", facts), TASKS[task](), steps=count, lr=rate)

    def _taught(self, task: str, settings: Mapping[str, Any], _: Path) -> float:
        it = self._encoder(task, settings["steps"], settings["lr"])
        return _elastic.chosen_by(_elastic.original(it), it)

    def _by_lora(self, task: str, settings: Mapping[str, Any], _: Path) -> float:
        it = self.untuned(task)
        return _elastic.chosen_by(by_lora(it, self._scale, settings, 0), it)

    def _super_network(self, task: str, settings: Mapping[str, Any], folder: Path) -> float:
        """Mean accuracy of the middle network and the smallest."""
        it = self.teacher(task)
        steps = {name: self._scale.of(settings[name]) for name in ("steps", "score_steps")}
        pipeline.supernet(
            str(it.folder), method="eftnas", data=str(it.data), seed=0, out=folder / "S",
            settings=_elastic.assignments({"smallest": SMALL, **settings, **steps}),
        )  # fmt: skip
        found = [one.quality["accuracy"] for one in read_curve(folder / "S") if one.change in {"middle", "smallest"}]
        return sum(found) / len(found)

    def _alone(self, task: str, settings: Mapping[str, Any], _: Path) -> float:
        it = self.teacher(task)
        found = [_elastic.chosen_by(alone(it, share, self._scale, settings, 0), it) for share in SHARES]
        return sum(found) / len(found)


def by_lora(it: Subject, scale: Scale, settings: Mapping[str, Any], seed: int) -> Model:
    """MiniLM with plain adapters on all layers and a head, trained and merged."""
    given = _elastic.original(it)
    work = given.derived(copy.deepcopy(given.module))
    return _lora.lora(work, _elastic.objective(it), seed=seed, **{**settings, "steps": scale.of(settings["steps"])})


def alone(it: Subject, share: float, scale: Scale, settings: Mapping[str, Any], seed: int) -> Model:
    """One network, cut by torch-pruning to a share of the multiply-accumulates and distilled by itself."""
    start = _cut(it, share)
    with dropping(start.module, settings.get("dropout")):
        return _elastic.tuned(
            start, _elastic.objective(it), steps=scale.of(settings["steps"]), seed=seed, lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            lesson=_elastic.Lesson(_elastic.original(it), settings["distil"], settings["temperature"]),
        )  # fmt: skip


@cache
def _cut(it: Subject, share: float) -> Model:
    """What is distilled, never changed: the same for all settings and seeds."""
    return pruned(it, share * Counter(_elastic.original(it)).count().macs, multiple=1)
