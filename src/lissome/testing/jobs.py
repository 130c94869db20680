"""Jobs for tests of methods: a few random windows instead of text, and all that a method is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.events import Event, EventStream
from lissome.core.method import Context
from lissome.cost.oracle import SubnetCost
from lissome.models.model import Model


@dataclass(frozen=True)
class RandomText:
    """Windows of random tokens, the same ones every time; none to select by."""

    fingerprint: str = "random"

    @property
    def calibration(self) -> Tensor:
        """LongTensor[4, 12]."""
        return torch.randint(3, 61, (4, 12), generator=torch.Generator().manual_seed(1))

    @property
    def selection(self) -> Tensor:
        """LongTensor[0, 12]."""
        return self.calibration[:0]

    @property
    def recovery(self) -> Tensor:
        """LongTensor[8, 12]."""
        return torch.randint(3, 61, (8, 12), generator=torch.Generator().manual_seed(2))


def toy_context(
    model: Model,
    folder: Path,
    budget: str = "",
    *,
    heard: Callable[[Event], None] | None = None,
    confirm: Callable[[Any], Mapping[str, float]] | None = None,
) -> Context:
    """Return what a method is given for a toy model, with counted costs.

    Args:
        model: The original.
        folder: Where checkpoints go.
        budget: Budget expression; none: empty.
        heard: Called with every event.
        confirm: Measures a result, by budget term; none: nothing is measured.
    """
    cost = SubnetCost(model)
    return Context(
        budget=Budget.parse(budget) if budget else Budget(),
        original=cost.figures(model.space().full),
        seed=0,
        events=EventStream(*([heard] if heard else [])),
        folder=folder,
        data=RandomText(),
        cost=cost,
        confirm=confirm or (lambda _model: {}),
    )
