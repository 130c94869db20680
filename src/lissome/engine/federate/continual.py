"""Clients whose data come in slices of time, and what keeps them from forgetting earlier ones.

Of T slices each lasts a number of rounds; a client learns from the slice of the round, and is judged by all of them.
Before a round, clients may be asked whether there is a reason to train: rows that came since they last learned, or a
loss on the newest slice above its moving mean.
Against forgetting: a private memory of earlier examples (replay), a penalty on what mattered before,
λ/2·Σ F_j(φ_j − a_j)² (EWC; Kirkpatrick et al. 2017, arXiv 1612.00796), or the opinion of the model of before on the new
examples (LwF; Li & Hoiem 2016, arXiv 1606.09282).
"""

# B examples, K classes or tokens

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from lissome.core.errors import FederationError
from lissome.core.seeds import derive
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.store import Kept
from lissome.engine.federate.training import Lesson, TrainingClient
from lissome.engine.hooks import Batch, Task

Protection = Literal["none", "replay", "ewc", "distil"]
STRENGTHS = {"ewc": 100.0, "distil": 1.0}
"""Usual weights beside the task. Importance has a mean of 1, and with a weight of 1 it holds next to nothing."""
Trigger = Literal["always", "samples", "drift"]
TRIGGER, HOT = "trigger", "triggered"
"""The action that asks clients whether there is a reason to train, and the number by which they answer, 1 or 0."""

MOST_SLICES = 30
"""Slices of time: each brings numbers of its own when a client is judged, and an answer may bring few."""

_ANCHOR, _FISHER = "anchor|", "fisher|"
_ARRIVED, _MOVING = "arrived", "moving"
_JUDGED = 64  # examples of a slice that say what matters: more change the picture little


@dataclass(kw_only=True, eq=False)
class ContinualClient(TrainingClient):
    """Learns slice after slice.

    Attributes:
        slices: T.
        period: Rounds that each lasts; the last one stays.
        protect: Against forgetting.
        memory: Of replay: most examples of earlier slices.
        seed: Of replay: draws them.
        strength: Of ewc: λ; of distil: weight of the old opinion. None: that of `STRENGTHS`.
        trigger: When there is a reason to take part: always, new samples, or drift.
        trigger_samples: Of samples: how many.
        trigger_drift: Of drift: nats above the moving mean of the loss.
    """

    slices: int
    period: int
    protect: Protection = "none"
    memory: int = 100
    seed: int = 0
    strength: float | None = None
    trigger: Trigger = "always"
    trigger_samples: int = 1
    trigger_drift: float = 0.1

    def act(self, work: Work) -> Answer:
        """Say whether there is a reason to train, or do what the order says."""
        return self._triggered(work) if work.head.action == TRIGGER else super().act(work)

    def now(self, round: int) -> int:
        """Return the slice of a round, from 0."""
        return min(self.slices - 1, (round - 1) // self.period)

    def remember(self, work: Work, bound: Bound) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keep, from one slice to the next, the weights that it began with, and how much each mattered before."""
        now = self.now(work.head.round)
        noted = (
            {_ARRIVED: self._arrived(now), _MOVING: work.kept.facts.get(_MOVING)} if self.trigger != "always" else {}
        )
        if self.protect not in {"ewc", "distil"} or not now:
            return {}, noted
        before = {name: value for name, value in work.kept.tensors.items() if name.startswith((_ANCHOR, _FISHER))}
        if work.kept.facts.get("slice") == now and before:
            return before, {"slice": now, **noted}
        found = {_ANCHOR + name: value for name, value in bound.values(list(bound.trained())).items()}
        if self.protect == "ewc":
            past = self.lesson.some(self._learned(now - 1)[:_JUDGED], [])
            for name, value in importance(past, bound).items():
                found[_FISHER + name] = value + before.get(_FISHER + name, torch.zeros(()))
        return found, {"slice": now, **noted}

    def task_for(self, work: Work, bound: Bound, kept: Mapping[str, Tensor]) -> Task:
        """Return the task of the slice, protected.

        Raises:
            FederationError: When this client has fewer examples than there are slices, and none in this one.
        """
        now = self.now(work.head.round)
        learned = self._learned(now)
        if self.protect == "replay" and now:
            earlier = [place for index in range(now) for place in self._learned(index)]
            rng = Random(derive(self.seed, "memory", self.facts.name, now))  # the same examples for the whole slice
            learned = [*learned, *sorted(rng.sample(earlier, min(self.memory, len(earlier))))]
        if not learned:
            raise FederationError(f"slice {now + 1} has none of its {len(self.lesson)} examples; lower slices")
        lesson = self.lesson.some(learned, [])
        task = lesson.task(bound.module)
        if not kept:
            return task
        strength = STRENGTHS[self.protect] if self.strength is None else self.strength
        if self.protect == "ewc":
            return Task(module=task.module, loss=_Penalised(lesson, bound, kept, strength), data=task.data)
        teacher = _teacher(bound, kept)
        return Task(module=task.module, loss=_Taught(lesson, teacher, strength), data=task.data)

    def evaluate(self, bound: Bound) -> Answer:
        """Score on what is held out: all of it, and each slice by itself."""
        answer = super().evaluate(bound)
        found = dict(answer.metrics)
        for index in range(self.slices):
            count, scores = self.lesson.some([], chunk(self.lesson.held, index, self.slices)).score(bound.module)
            if count:
                found |= {f"slice-{index + 1}/{name}": value for name, value in scores.items()}
        return Answer(weight=answer.weight, metrics=found)

    def _triggered(self, work: Work) -> Answer:
        """Compare what there is with what was there before; the moving mean of the loss is kept."""
        now, facts = self.now(work.head.round), dict(work.kept.facts)
        if self.trigger == "samples":
            hot = self._arrived(now) - facts.get(_ARRIVED, 0) >= self.trigger_samples
            return Answer(weight=len(self.lesson), metrics={HOT: float(hot)})
        bound = self._bound(work.head)
        bound.load(work.tensors)
        bound.load({name: value for name, value in work.kept.tensors.items() if self._fits(bound, name, value)})
        bound.module.eval()
        loss = self.lesson.some(self._learned(now), []).turned().score(bound.module)[1].get("loss", 0.0)
        mean_before = facts.get(_MOVING)
        hot = mean_before is None or loss > mean_before + self.trigger_drift
        facts[_MOVING] = loss if mean_before is None else (mean_before + loss) / 2
        keep = Kept(work.kept.tensors, facts)
        return Answer(weight=len(self.lesson), metrics={HOT: float(hot), "loss": loss}, keep=keep)

    def _arrived(self, index: int) -> int:
        """Number of examples of all slices up to one."""
        return len(self.lesson) * (index + 1) // self.slices

    def _learned(self, index: int) -> list[int]:
        return chunk(len(self.lesson), index, self.slices)


def chunk(count: int, index: int, parts: int) -> list[int]:
    """Return the positions of one of the nearly equal parts of a row of examples."""
    return list(range(count * index // parts, count * (index + 1) // parts))


def importance(lesson: Lesson, bound: Bound) -> dict[str, Tensor]:
    """Return the mean squared gradient of each trained parameter, example by example: the empirical Fisher diagonal.

    It is scaled to a mean of 1 over all numbers: a model that has learned its slice has tiny gradients, and no weight
    of the penalty would suit both.
    """
    task = lesson.task(bound.module)
    trained = bound.trained()
    found = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in trained.items()}
    bound.module.eval()
    for index in range(len(lesson)):
        examples = torch.utils.data.default_collate([task.data[index]])
        loss = lesson.losses(lesson.outputs(bound.module, examples), examples).sum()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                found[name].add_(gradient.float().square())
    total, count = sum(float(value.sum()) for value in found.values()), sum(map(torch.numel, found.values()))
    return {name: value * (count / total if total else 0.0) for name, value in found.items()}


class _Penalised:
    """The task's loss, and how far the weights are from where they mattered."""

    def __init__(self, lesson: Lesson, bound: Bound, kept: Mapping[str, Tensor], strength: float) -> None:
        self._lesson, self._strength = lesson, strength
        self._held = [(value, kept[_ANCHOR + name], kept[_FISHER + name]) for name, value in bound.trained().items()]

    def __call__(self, module: Any, batch: Batch) -> Tensor:
        far = sum((matters * (value - anchor).square()).sum() for value, anchor, matters in self._held)
        own = self._lesson.losses(self._lesson.outputs(module, batch.examples), batch.examples)
        return own + 0.5 * self._strength * far


class _Taught:
    """The task's loss, and how far the opinion is from the teacher's, in nats."""

    def __init__(self, lesson: Lesson, teacher: nn.Module, strength: float) -> None:
        self._lesson, self._teacher, self._strength = lesson, teacher, strength

    def __call__(self, module: Any, batch: Batch) -> Tensor:
        logits = self._lesson.outputs(module, batch.examples)
        with torch.no_grad():
            wanted = log_softmax(self._lesson.outputs(self._teacher, batch.examples), -1)
        apart = kl_div(log_softmax(logits, -1), wanted, log_target=True, reduction="none").sum(-1)
        return self._lesson.losses(logits, batch.examples) + self._strength * apart.view(len(apart), -1).mean(1)


def _teacher(bound: Bound, kept: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the module with the weights that the slice began with."""
    local = {id(value): name for name, value in bound.module.named_parameters()}
    names = {name: local[id(value)] for name, value in bound.parameters.items() if id(value) in local}
    teacher = copy.deepcopy(bound.module).eval().requires_grad_(False)
    with torch.no_grad():
        for name in bound.trained():
            teacher.get_parameter(names[name]).copy_(kept[_ANCHOR + name])
    return teacher


def summary(matrix: Sequence[Sequence[float]]) -> dict[str, float]:
    """Sum up what became of each slice, of numbers that are better when larger.

    Args:
        matrix: Row s: score of each slice after slice s was learned.

    Returns:
        ``average``: of all slices at the end; ``forgetting``: mean over the earlier ones of the best score minus the
        last; ``forward``: mean score of a slice just before it is learned (0 slices: not there).
    """
    last, count = matrix[-1], len(matrix)
    found = {"average": mean(last[:count])}
    if count > 1:
        lost = [max(row[at] for row in matrix) - last[at] for at in range(count - 1)]
        found |= {"forgetting": mean(lost), "forward": mean(matrix[at - 1][at] for at in range(1, count))}
    return found
