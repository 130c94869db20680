"""Merging models by what they say: the mean opinion of all clients' models teaches one, on examples without labels.

Ensemble distillation (Lin et al. 2020, arXiv 2006.07242; FedKEMF, arXiv 2208.07978): the teachers' opinion is
q̄(x) = Σ_i a_i·softmax(g(θ_i; x)/T), and the student minimises T²·KL(q̄ ‖ softmax(g(θ; x)/T)) over public examples.
Teachers are asked one at a time, as they come, so memory is one model and their mean opinion. The student starts from
the mean of the teachers' weights, or from the old ones.
"""

# N public examples, K classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from lissome.core.errors import ConfigError, FederationError
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.merge import Overlap, Piece, Tensors
from lissome.engine.federate.training import Lesson
from lissome.engine.hooks import Batch, Task
from lissome.engine.train import TrainConfig, train


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """What an ensemble is distilled with.

    Attributes:
        build: Makes the module that the merged tensors belong to, with their names.
        public: A lesson whose examples to learn from are public; their labels are not looked at.
        config: Settings of the training loop.
        temperature: T.
        start: Where the student starts.
        equal: Whether every teacher counts the same; otherwise by its examples.
        seed: Of the training.
        prefix: Of the names of the tensors that are distilled; others are averaged where they overlap.
    """

    build: Callable[[], Bound]
    public: Lesson
    config: TrainConfig
    temperature: float = 1.0
    start: Literal["mean", "old"] = "mean"
    equal: bool = True
    seed: int = 0
    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"the temperature must be above 0, got {self.temperature}.")
        if not len(self.public):
            raise ConfigError("distilling needs public examples; give some, or merge by averaging.")


class Distilled:
    """Merges whole models by distilling their mean opinion.

    A model is asked when it comes; one whose opinion is NaN or infinite is no teacher, and not part of the mean either.

    Args:
        base: The old values.
        fusion: With what.
    """

    keeps: bool = False
    limits: bool = False

    def __init__(self, base: Tensors, fusion: Fusion) -> None:
        self.base, self._fusion = base, fusion
        self._mean = Overlap(base)
        self._opinions: Tensor | float = 0.0
        self._total = 0.0

    def add(self, piece: Piece) -> None:
        """Ask a teacher.

        Raises:
            FederationError: When it holds slices of a teacher, or its opinion is NaN or infinite.
        """
        names = [name for name in piece.layout.places if self._mine(name)]
        if any(piece.layout.keys[name] for name in names):
            raise FederationError("an ensemble is made of whole models, not of slices; use the overlap merger")
        if names:
            self._ask(piece, names)
        self._mean.add(piece)

    def result(self) -> dict[str, Tensor]:
        """Distil, and average what is not distilled."""
        found = self._mean.result()
        names = [name for name in found if self._mine(name)]
        if not names:
            return found
        start = found if self._fusion.start == "mean" else self.base
        self._module.load({self._inner(name): start[name] for name in names})
        return {**found, **self._taught(self._module, self.opinion, names)}

    @property
    def opinion(self) -> Tensor:
        """The mean opinion of all teachers on the public examples: probabilities at T, [N, …, K]."""
        assert isinstance(self._opinions, Tensor)
        return self._opinions / self._total

    @cached_property
    def _module(self) -> Bound:
        """What the teachers' tensors are put into, one after the other, and then the student's."""
        return self._fusion.build()

    @torch.no_grad()
    def _ask(self, piece: Piece, names: Sequence[str]) -> None:
        fusion = self._fusion
        self._module.module.eval()
        self._module.load({self._inner(name): piece.tensors[name] for name in names})
        logits = _logits(fusion.public, self._module)
        if not bool(torch.isfinite(logits).all()):
            raise FederationError("its model has no opinion: a score of a public example is NaN or infinite")
        weight = 1.0 if fusion.equal else piece.weight
        self._opinions = self._opinions + weight * softmax(logits / fusion.temperature, -1)
        self._total += weight

    def _taught(self, student: Bound, wanted: Tensor, names: list[str]) -> dict[str, Tensor]:
        fusion = self._fusion
        task = fusion.public.task(student.module)
        loss = _Opinion(fusion.public, wanted, fusion.temperature)
        train(Task(module=student.module, loss=loss, data=task.data), fusion.config, seed=fusion.seed)
        own = student.values([self._inner(name) for name in names])
        return {name: own[self._inner(name)].to(self.base[name].dtype) for name in names}

    def _mine(self, name: str) -> bool:
        return name.startswith(self._fusion.prefix)

    def _inner(self, name: str) -> str:
        return name.removeprefix(self._fusion.prefix)


class _Opinion:
    """T²·KL(q̄ ‖ student) of each example, the mean over its tokens."""

    def __init__(self, lesson: Lesson, wanted: Tensor, temperature: float) -> None:
        self._lesson, self._wanted, self._temperature = lesson, wanted, temperature

    def __call__(self, module: Any, batch: Batch) -> Tensor:
        found = log_softmax(self._lesson.outputs(module, batch.examples) / self._temperature, -1)
        apart = kl_div(found, self._wanted[batch.indices.cpu()].to(found.device), reduction="none").sum(-1)
        return self._temperature**2 * apart.view(len(apart), -1).mean(1)


def _logits(lesson: Lesson, bound: Bound, size: int = 32) -> Tensor:
    """Logits of all examples that a lesson learns from, in their order [N, …, K]."""
    data: Any = lesson.task(bound.module).data
    found = []
    for start in range(0, len(lesson), size):
        rows = [data[index] for index in range(start, min(start + size, len(lesson)))]
        found.append(lesson.outputs(bound.module, torch.utils.data.default_collate(rows)))
    return torch.cat(found)
