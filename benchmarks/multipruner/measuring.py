"""Perplexity at an exact share of the block parameters, read off a method's curve of removals."""

# N test windows, T tokens

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.multipruner.texts import Texts
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.models.binding import Masking
from lissome.models.model import Model
from lissome.models.precision import fast_dtype, in_dtype
from lissome.models.space import Space, Subnet

TARGETS = (0.9, 0.8)
"""Shares of the block parameters that are kept."""

Curve = Sequence[tuple[float, Subnet]]
"""Share of the block parameters and what is left, from the original downwards."""


class Counted:
    """The counted terms of a model's Subnets; satisfies `lissome.core.protocols.CostOracle`."""

    def __init__(self, model: Model) -> None:
        self._counter = Counter(model)
        self.original = self._counter.count().figures()

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return the counted terms."""
        return self._counter.figures(subnet)

    def provenance(self, term: str) -> str:
        """All are counted."""
        return "counted"

    def share(self, subnet: Mapping[str, int]) -> float:
        """Share of the block parameters that a Subnet keeps."""
        return self.figures(subnet)["block_params"] / self.original["block_params"]


def at_targets(model: Model, space: Space, curve: Curve, test: Tensor, targets: Iterable[float]) -> dict[str, Any]:
    """Return the loss at exact shares, interpolated on a curve, and run the test at its two bracketing points only.

    Args:
        model: The model that the curve's Subnets are of.
        space: Their Space.
        curve: The curve; it must reach below every target.
        test: LongTensor[N, T].
        targets: Shares.

    Returns:
        By target, as text: ``nll`` (mean loss of every window, nats) and ``between`` (the two shares).
    """
    masking = Masking(model.binding, space)
    walk = Walk(model, test)
    known: dict[int, Tensor] = {}

    def loss(index: int) -> Tensor:
        if index not in known:
            masking.switch(curve[index][1])
            known[index] = walk.plain()
        return known[index]

    try:
        return {f"{target:g}": interpolated([share for share, _ in curve], loss, target) for target in targets}
    finally:
        masking.restore()


def interpolated(shares: Sequence[float], loss: Callable[[int], Tensor], target: float) -> dict[str, Any]:
    """Interpolate the loss per window linearly in the share between the two points around `target`.

    Raises:
        ValueError: When the curve does not reach `target`.
    """
    below = next((index for index, share in enumerate(shares) if share <= target), None)
    if below is None:
        raise ValueError(f"the curve ends at {min(shares):.1%}, above {target:.1%}.")
    above = max(0, below - 1)
    gap = shares[above] - shares[below]
    weight = (shares[above] - target) / gap if gap > 0 else 1.0
    nll = weight * loss(below) if weight else torch.zeros_like(loss(below))
    if weight < 1.0:
        nll = nll + (1 - weight) * loss(above)
    return {"nll": nll.tolist(), "between": [shares[above], shares[below]]}


def median_row(losses: Tensor) -> Tensor:
    """The run whose mean is the (lower) median of all runs."""
    means = losses.mean(1).tolist()
    return losses[means.index(sorted(means)[(len(means) - 1) // 2])]


def fast(model: Model) -> Model:
    """Return the model in the number type that this machine multiplies fastest."""
    return in_dtype(model, fast_dtype())


def settings(model: Model, data: Texts, seed: int, **more: Any) -> dict[str, Any]:
    """Return what a cell depends on: weights, text, number type, and whatever else is named."""
    facts = {"model": model.name, "sha256": model.source.sha256, "text": data.facts(), "seed": seed}
    return {**facts, "dtype": str(fast_dtype()).removeprefix("torch."), **more}
