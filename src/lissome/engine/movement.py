"""Scores that are learnt while a model is fine-tuned: movement pruning with structure.

Sanh, Wolf, Rush, "Movement Pruning" (NeurIPS 2020, arXiv 2005.07683), and its structured form with blocks (Lagunas et
al. 2021, arXiv 2109.04838), as EFTNAS uses it: every unit of a weight (a block of an attention's matrix, a row or a
column of an MLP's) has a score S, 0 at first; the forward pass uses the weight where S is above a threshold, and the
backward pass takes the threshold for the identity, so that ``∂loss/∂S = Σ over the unit of ∂loss/∂(W ⊙ M) · W``: units
that move away from zero gain score. A penalty on S grows together with the threshold, in a window at the end.
"""

# O rows, I columns of a weight; R × C blocks of it

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.engine.hooks import Batch, Hooks, Loss, Task
from lissome.models.binding import replaced
from lissome.models.model import Model
from lissome.models.parts import is_conv1d

_SPARE = 0.001  # share of the weights that the threshold masks when the window opens


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the threshold rises.

    Attributes:
        steps: Steps of the training; the window ends with them.
        opens: Share of them before the window.
        penalty: Weight of the penalty at the end.
    """

    steps: int
    opens: float = 0.4
    penalty: float = 0.02

    def grown(self, step: int) -> float | None:
        """How far the window is at a step, ``1 - (1 - t)³``; None before it opens."""
        start = round(self.opens * self.steps)
        if step < start:
            return None
        t = (step - start + 1) / max(1, self.steps - start)
        return 1 - (1 - min(1.0, t)) ** 3


class Scored(nn.Module):
    """A task's module with a score for every unit of its weights, trained together.

    Args:
        task: What is trained.
        model: The model in it.
        block: Side of the blocks of attentions' matrices.
    """

    def __init__(self, task: Task, model: Model, *, block: int = 32) -> None:
        super().__init__()
        self.task, self._model = task.module, model
        self.grains = _grains(model, block)
        self.scores = nn.ParameterList(
            nn.Parameter(torch.zeros(_blocks(model.module.get_parameter(name), grain), device=_device(model)))
            for name, grain in self.grains.items()
        )

    def expanded(self, values: Tensor, name: str) -> Tensor:
        """Spread one number for each unit over its weights: [R, C] → [O, I]."""
        rows, columns = self.grains[name]
        height, width = self._model.module.get_parameter(name).shape
        return values.repeat_interleave(rows, 0)[:height].repeat_interleave(columns, 1)[:, :width]

    def saliencies(self) -> dict[str, Tensor]:
        """Return the scores, for each weight by name; they can be negative."""
        pairs = zip(self.grains, self.scores, strict=True)
        return {name: self.expanded(score.detach(), name) for name, score in pairs}

    def masked(self, threshold: float) -> dict[str, Tensor]:
        """Return weights that are zero where a score is not above the threshold, and biases of rows without any."""
        found: dict[str, Tensor] = {}
        for name, score in zip(self.grains, self.scores, strict=True):
            weight = self._model.module.get_parameter(name)
            mask = (score.detach() > threshold).to(weight.dtype)
            found[name] = weight * self.expanded(mask + (score - score.detach()), name)
            owner = self._model.module.get_submodule(name.rpartition(".")[0])
            bias, makes = getattr(owner, "bias", None), int(is_conv1d(owner))  # the dimension of what the layer makes
            if isinstance(bias, Tensor):
                rows = mask.amax(1 - makes).repeat_interleave(self.grains[name][makes])[: len(bias)]
                found[f"{name.removesuffix('.weight')}.bias"] = bias * rows
        return found

    def penalty(self) -> Tensor:
        """``mean over weights of ½ · mean(σ(S)) · (numbers of a unit)``."""
        terms = [
            0.5 * score.sigmoid().mean() * math.prod(grain)
            for score, grain in zip(self.scores, self.grains.values(), strict=True)
        ]
        return torch.stack(terms).mean()

    def quantile(self, share: float) -> float:
        """The score below which a share of all weights lies."""
        flat = torch.cat([score.detach().flatten() for score in self.scores]).float()
        sizes = torch.cat(
            [
                torch.full((score.numel(),), float(math.prod(grain)))
                for score, grain in zip(self.scores, self.grains.values(), strict=True)
            ]
        )
        values, order = flat.cpu().sort()
        covered = sizes[order].cumsum(0)
        return float(values[int((covered < share * covered[-1]).sum())])


class Scoring(Hooks):
    """Trains through the masks of a threshold that rises in a window.

    Args:
        scored: The module with scores.
        schedule: When it rises.
    """

    def __init__(self, scored: Scored, schedule: Schedule) -> None:
        self._scored, self._schedule = scored, schedule
        self._first = math.nan
        self.weight = 0.0

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Put the masked weights in place for one pass."""
        grown = self._schedule.grown(step)
        self.weight = 0.0 if grown is None else self._schedule.penalty * grown
        if grown is None:
            return self._through(-math.inf)
        if math.isnan(self._first):
            self._first = self._scored.quantile(_SPARE)
        return self._through(self._first * (1 - grown))

    @contextmanager
    def _through(self, threshold: float) -> Iterator[None]:
        with replaced(self._scored._model.module, self._scored.masked(threshold)):
            yield

    def loss(self, plain: Loss) -> Loss:
        """Return a task's loss with the penalty in it."""

        def penalised(module: Any, batch: Batch) -> Tensor:
            losses = plain(module.task, batch)
            return losses + self.weight * module.penalty() if self.weight else losses

        return penalised

    def state(self) -> Mapping[str, Tensor]:
        """Remember the threshold at which the window opened."""
        return {"first": torch.tensor(self._first, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self._first = float(tensors["first"])


def _grains(model: Model, block: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of a unit of every weight that a dim of a branch cuts: blocks, or single rows or columns."""
    found: dict[str, tuple[int, int]] = {}
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            for cut in dim.cuts:
                weight = model.module.get_parameter(cut.parameter) if cut.parameter.endswith(".weight") else None
                if weight is None or weight.dim() != 2 or dim.beside:
                    continue
                height, width = weight.shape
                lines = (1, width) if cut.dim == 0 else (height, 1)
                found.setdefault(cut.parameter, (block, block) if branch.kind == "attention" else lines)
    return found


def _blocks(weight: Tensor, grain: tuple[int, int]) -> tuple[int, int]:
    return -(-weight.shape[0] // grain[0]), -(-weight.shape[1] // grain[1])


def _device(model: Model) -> torch.device:
    return next(model.module.parameters()).device
