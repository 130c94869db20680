"""What a training loop is given: a task, and hooks where methods differ."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees.

    Attributes:
        examples: Collated examples (`torch.utils.data.default_collate`), e.g. LongTensor[B, T].
        indices: LongTensor[B], positions of the examples in the data set.
        second: The batch of the second data set, or None.
        step: Optimizer step, from 0.
    """

    examples: Any
    indices: Tensor
    second: Any
    step: int


Loss = Callable[[Any, Batch], Tensor]


class Examples(Protocol):
    """Examples by position: a list, a tensor whose rows are the examples, any data set with a length."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one example."""


@runtime_checkable
class Measured(Protocol):
    """Examples of unlike lengths, in tokens; batches are made of those of about one length."""

    @property
    def lengths(self) -> Tensor:
        """LongTensor[N]."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and on what.

    Attributes:
        module: Its parameters that require a gradient are trained, in place.
        loss: Maps (module, batch) to Tensor[B], the loss of each example. Each example counts the same, so that
            accumulation changes nothing; a token-weighted mean would depend on how the batch is cut.
        data: Examples that `default_collate` can stack.
        second: A second data set that is drawn in step with the first (validation for bilevel methods, replay …).
        rates: Factors on the learning rates of parameters of the module, by name, where they are not 1.
    """

    module: nn.Module
    loss: Loss
    data: Examples
    second: Examples | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


class Hooks:
    """Where methods differ; every default does nothing. Pass an instance of a subclass to `train`.

    Under FSDP the parameters that hooks see are shards (DTensor).
    """

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Return a context for one forward and backward pass, e.g. ``masked(model, space.sample(rng))``."""
        return contextlib.nullcontext()

    def passes(self, step: int, rng: random.Random) -> Sequence[AbstractContextManager[Any]]:
        """Return a context for each pass over one micro-batch, in order; the mean of their losses is trained on."""
        return (self.path(step, rng),)

    def weigh(self, batch: Batch) -> Tensor | None:
        """Return Tensor[B] of factors on the examples' losses (mean 1 keeps the scale), or None."""
        return None

    def mask(self, step: int, name: str, parameter: nn.Parameter) -> Tensor | None:
        """Return what the gradient of `parameter` is multiplied with (broadcastable), or None."""
        return None

    def noise(self, step: int, name: str, parameter: nn.Parameter) -> float:
        """Return the standard deviation of Gaussian noise added to the clipped gradient; 0 adds none."""
        return 0.0

    def snapshot(self, step: int, module: nn.Module) -> None:
        """See the module after `step` steps (running averages, evaluation, copies); must leave it as it is."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what the hooks must remember across a kill."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
