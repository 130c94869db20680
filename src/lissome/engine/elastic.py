"""Trains any model as a super-network: its Subnets share weights, and every pass goes through one of them.

What is interchangeable: which Subnets a step trains (`lissome.engine.paths`), what they learn from (the task, or a
teacher: another model, or the largest Subnet itself), and which parameters are trained (`trained`).
"""

# B examples, K classes or tokens

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from lissome.core.errors import ConfigError
from lissome.engine.hooks import Batch, Hooks, Loss
from lissome.engine.paths import PathSampler
from lissome.models.adapters.layers import is_adapter_tensor
from lissome.models.binding import Masking
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

Forward = Callable[[Any, Batch], Tensor]
"""Maps (module, batch) to logits [B, …, K]."""

Judge = Callable[[Tensor, Batch], Tensor]
"""Maps (logits, batch) to the loss of each example [B]."""


class Elastic(Hooks):
    """Lets every pass of a training run go through a Subnet.

    Args:
        model: The model; its module, or one around it, is what is trained.
        sampler: Which Subnets.
    """

    def __init__(self, model: Model, sampler: PathSampler) -> None:
        self._sampler = sampler
        self._masking = Masking(model.binding, sampler.space)
        self.now: Subnet = sampler.space.full

    def passes(self, step: int, rng: random.Random) -> Sequence[AbstractContextManager[Any]]:
        """Draw the Subnets of one micro-batch before any of them is trained."""
        return [self._through(subnet) for subnet in self._sampler.draw(step, rng)]

    @contextlib.contextmanager
    def _through(self, subnet: Subnet) -> Iterator[None]:
        self.now = subnet
        try:
            self._masking.switch(subnet)
            yield
        finally:
            self._masking.restore()
            self.now = self.space.full

    @property
    def space(self) -> Space:
        """The Space that is trained."""
        return self._sampler.space

    @property
    def largest(self) -> bool:
        """Whether the pass that runs goes through the whole model."""
        return self.now == self.space.full


def task_loss(forward: Forward, judge: Judge) -> Loss:
    """Return a loss that judges every Subnet by the task alone."""
    return lambda module, batch: judge(forward(module, batch), batch)


def taught_loss(
    forward: Forward, judge: Judge, teacher: nn.Module, *, share: float = 0.9, temperature: float = 2.0
) -> Loss:
    """Return a loss with the opinion of another model: ``(1 - share) · task + share · T² · KL(teacher‖student)``.

    Args:
        forward: Gives logits, of the student and of the teacher.
        judge: The task.
        teacher: Another model; it is asked once per micro-batch, however many Subnets learn from it.
        share: Weight of the teacher (EFTNAS: 0.9).
        temperature: T, by which logits are divided (EFTNAS: 2).

    Raises:
        ConfigError: When the share is not in [0, 1], or the temperature not positive.
    """
    _check(share, temperature)
    asked = _Once(lambda batch: _silently(forward, teacher, batch))

    def loss(module: Any, batch: Batch) -> Tensor:
        logits = forward(module, batch)
        told = divergence(logits, asked(batch), temperature)
        return (1 - share) * judge(logits, batch) + share * told

    return loss


def inplace_loss(
    forward: Forward, judge: Judge, elastic: Elastic, *, share: float = 1.0, temperature: float = 1.0
) -> Loss:
    """Return a loss in which the largest Subnet learns the task, and the others learn from it on the same examples.

    In-place distillation (Yu & Huang 2019, arXiv 1903.05134); needs a sampler that draws the largest first, such as
    `lissome.engine.paths.Sandwich`.

    Args:
        forward: Gives logits.
        judge: The task.
        elastic: Says which Subnet is trained.
        share: Weight of what the largest says, against the task.
        temperature: As in `taught_loss`.

    Raises:
        ConfigError: When the share is not in [0, 1], or the temperature not positive; or a smaller Subnet comes first.
    """
    _check(share, temperature)
    heard = Heard(elastic)

    def loss(module: Any, batch: Batch) -> Tensor:
        logits = forward(module, batch)
        largest = heard(batch, logits)
        if largest is None:
            return judge(logits, batch)
        told = divergence(logits, largest, temperature)
        return (1 - share) * judge(logits, batch) + share * told if share < 1 else told

    return loss


class Heard:
    """What the largest Subnet said of a micro-batch, for the others.

    Args:
        elastic: Says which Subnet is trained.
    """

    def __init__(self, elastic: Elastic) -> None:
        self._elastic, self._batch, self._answer = elastic, None, torch.empty(0)

    def __call__(self, batch: Any, answer: Tensor) -> Tensor | None:
        """Keep what the largest says, and return None; to any other return what the largest said.

        Raises:
            ConfigError: When the largest was not asked about this micro-batch.
        """
        if self._elastic.largest:
            self._batch, self._answer = batch, answer.detach()
            return None
        if self._batch is not batch:
            raise ConfigError("in-place distillation needs paths that begin with the largest; use the sandwich.")
        return self._answer


def lesson_loss(
    forward: Forward, judge: Judge, teacher: nn.Module | Elastic, *, share: float, temperature: float
) -> Loss:
    """Return `taught_loss` of another model, or `inplace_loss` of the largest Subnet itself."""
    if isinstance(teacher, Elastic):
        return inplace_loss(forward, judge, teacher, share=share, temperature=temperature)
    return taught_loss(forward, judge, teacher, share=share, temperature=temperature)


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(teacher/T ‖ student/T)`` of each example [B], the mean over its positions: [B, …, K] and the same."""
    student, told = (log_softmax(each.float() / temperature, -1) for each in (logits, teacher))
    each = kl_div(student, told, reduction="none", log_target=True).sum(-1)
    return temperature**2 * each.flatten(1).mean(1) if each.ndim > 1 else temperature**2 * each


class _Once:
    """Asks once per micro-batch."""

    def __init__(self, ask: Callable[[Batch], Tensor]) -> None:
        self._ask, self._batch, self._answer = ask, None, torch.empty(0)

    def __call__(self, batch: Any) -> Tensor:
        if self._batch is not batch:
            self._batch, self._answer = batch, self._ask(batch)
        return self._answer


@torch.no_grad()
def _silently(forward: Forward, teacher: nn.Module, batch: Batch) -> Tensor:
    teacher.to(batch.indices.device)  # the training loop moves only what it trains
    modes = {part: part.training for part in teacher.modules()}
    teacher.eval()
    try:
        return forward(teacher, batch)
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check(share: float, temperature: float) -> None:
    if not 0 <= share <= 1 or temperature <= 0:
        raise ConfigError(
            f"a teacher needs a share in [0, 1] and a temperature above 0, got {share} and {temperature}."
        )


@contextlib.contextmanager
def trained(model: Model, part: str = "all") -> Iterator[tuple[str, ...]]:
    """Let one part of a model's parameters require a gradient for a while, and no other.

    Args:
        model: The model.
        part: ``"all"``; ``"adapters"``; ``"blocks"``, those that can be skipped, without what stands outside of them;
            or the dotted name of a submodule, such as ``"vision_encoder"``. ``"all but prompt_encoder"`` leaves a
            submodule out.

    Yields:
        Names of the trained parameters.

    Raises:
        ConfigError: When the part has no parameters.
    """
    before = {name: value.requires_grad for name, value in model.module.named_parameters()}
    # A network of any kind has blocks that are none: its stem, its head.
    blocks = tuple({f"{model.anatomy.blocks[branch.block]}." for branch in model.anatomy.branches if branch.removable})
    asked, _, but = part.partition(" but ")
    # By identity: what a submodule shares with another one has only the other's name.
    held = {id(value) for value in model.module.get_submodule(but).parameters()} if but else set()
    chosen = tuple(
        name
        for name, value in model.module.named_parameters()
        if id(value) not in held
        and (
            asked == "all"
            or (asked == "adapters" and is_adapter_tensor(name))
            or (asked == "blocks" and name.startswith(blocks))
            or name.startswith(f"{asked}.")
        )
    )
    if not chosen:
        raise ConfigError(f"{part!r} has no parameters; give all, adapters, blocks or the name of a submodule.")
    try:
        for name, value in model.module.named_parameters():
            value.requires_grad_(name in chosen)
        yield chosen
    finally:
        for name, value in model.module.named_parameters():
            value.requires_grad_(before.get(name, value.requires_grad))
