"""Predicts the latency of Subnets from a few that were timed, and says how well a prediction ranks those it never saw.

A regression needs no hooks inside the model, so that it also serves where a latency table (`lissome.cost.table`) cannot
be made: on a device that is only reached through a benchmark, for a Space that is not a model's. Ridge on relative
errors; its strength is chosen by leaving out one Subnet at a time, in closed form (Golub, Heath & Wahba 1979).

Where another device's times are known already, a few Subnets timed on this one correct them: what is fitted is then the
factor between the two devices, and how it changes with the features (`Regression`, `prior`).
"""

# n Subnets, F features

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.core.files import read_json, write_json
from lissome.core.typed import as_json, from_json
from lissome.cost.device import Device
from lissome.cost.measured import Request, race
from lissome.cost.oracle import SubnetCost
from lissome.models.binding import extract
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.stats import kendall, spearman

Array = NDArray[np.float64]

Features = Callable[[Sequence[Mapping[str, int]]], Array]
"""Turns Subnets into float64[n, F]."""

Predict = Callable[[Sequence[Mapping[str, int]]], Array]
"""Predicted seconds, float64[n]."""

_STRENGTHS = np.logspace(-6, 3, 28)  # of the ridge, in units of a feature's variance
LEAST = 4
"""Timed Subnets below which a regression says nothing."""

_NEAR = 0.1  # a prediction within this share of the measurement is a hit


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well predictions agree with measurements that they never saw.

    Attributes:
        spearman: Rank correlation, 1 for the same order.
        kendall: Kendall's tau-b, 1 for the same order.
        error: Mean absolute error as a share of the measurement.
        hits: Share of predictions within 10 % of the measurement.
        n: Subnets.
    """

    spearman: float
    kendall: float
    error: float
    hits: float
    n: int

    @classmethod
    def of(cls, predicted: Sequence[float] | Array, measured: Sequence[float] | Array) -> Agreement:
        """Hold predictions against measurements."""
        off = np.abs(np.asarray(predicted) / np.asarray(measured) - 1)
        return cls(
            spearman=spearman(predicted, measured), kendall=kendall(predicted, measured),
            error=float(off.mean()), hits=float((off <= _NEAR).mean()), n=len(off),
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"on {self.n} sub-networks that it had not seen: Spearman {self.spearman:.2f}, Kendall {self.kendall:.2f}, "
            f"mean error {self.error:.1%}, {self.hits:.0%} within 10 %"
        )


def encoded(space: Space) -> Features:
    """Features of any Space: for each axis the choice as a share of the full one, 0 where it is switched off."""
    codes = Codes(space)
    full = np.array([max(1, abs(axis.full)) for axis in space.axes], dtype=np.float64)

    def features(subnets: Sequence[Mapping[str, int]]) -> Array:
        shares = codes.chosen(codes.encode(subnets)) / full
        for axis in space.axes:
            if axis.switch is not None:
                shares[:, codes.column[axis.name]] *= shares[:, codes.column[axis.switch]] > 0
        return np.asarray(shares)

    return features


def totals(model: Model) -> Features:
    """Features of a model: counted figures, and by kind how many branches it keeps and how large they are together.

    A dozen numbers, whatever the depth: branches of one kind take alike, so that a few timed Subnets tell.
    """
    cost, space = SubnetCost(model), model.anatomy.space(finest=True)

    def features(subnets: Sequence[Mapping[str, int]]) -> Array:
        return np.array([_totals(model, cost, {**space.full, **subnet}) for subnet in subnets])

    return features


def _totals(model: Model, cost: SubnetCost, subnet: Mapping[str, int]) -> list[float]:
    figures = cost.figures(subnet)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for branch in model.anatomy.branches:
        kept = bool(subnet.get(branch.name, 1))
        sums[branch.kind, ""] += kept
        for dim in branch.dims:
            kind = dim.name.rpartition(".")[2]  # of a traced network a name says which layer, too
            sums[branch.kind, kind] += subnet[branch.axis(dim.name)] if kept else 0
    return [figures["macs"], figures["block_params"], *sums.values()]


class Regression:
    """A ridge regression that predicts seconds.

    Args:
        features: What it looks at.
        subnets: Subnets that were timed.
        seconds: What each of them took.
        prior: What is known of their times, e.g. on another device; the times are then this, multiplied by a linear
            function of the features. Without one, they are a linear function of the features.

    Raises:
        ConfigError: When there are too few, or a time is not positive.
    """

    def __init__(
        self,
        features: Features,
        subnets: Sequence[Mapping[str, int]],
        seconds: Sequence[float],
        *,
        prior: Predict | None = None,
    ) -> None:
        took = np.asarray(seconds, dtype=np.float64)
        if len(took) < LEAST or len(took) != len(subnets):
            raise ConfigError(f"a regression needs {LEAST} timed Subnets or more, got {len(took)} of {len(subnets)}.")
        if not (np.isfinite(took).all() and (took > 0).all()):
            raise ConfigError("the times of Subnets must be positive numbers of seconds.")
        self._features, self._prior = features, prior
        raw = features(subnets)
        self._mean, spread = raw.mean(axis=0), raw.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)
        # Dividing a row by its time makes relative errors count, so that small Subnets are as good as large ones.
        matrix = self._design(raw, subnets) / took[:, None]
        self._weights = _ridge(matrix, np.ones(len(took)))

    def __call__(self, subnets: Sequence[Mapping[str, int]]) -> Array:
        """Return predicted seconds, float64[n]; never less than a millionth."""
        return np.maximum(self._design(self._features(subnets), subnets) @ self._weights, 1e-6)

    def _design(self, raw: Array, subnets: Sequence[Mapping[str, int]]) -> Array:
        scaled = (raw - self._mean) / self._scale
        design = np.concatenate([np.ones((len(raw), 1)), scaled], axis=1)
        return design if self._prior is None else design * self._prior(subnets)[:, None]


def _ridge(matrix: Array, target: Array) -> Array:
    """Ridge whose strength leaves the least error when one row at a time is left out; the first column is not held."""
    held = np.ones(matrix.shape[1])
    held[0] = 0.0
    best: tuple[float, Array] | None = None
    gram, pull = matrix.T @ matrix, matrix.T @ target
    size = float(np.trace(gram)) / len(gram)
    for strength in _STRENGTHS:
        inverse = np.linalg.pinv(gram + np.diag(held) * strength * size)
        weights = inverse @ pull
        leverage = np.einsum("ij,jk,ik->i", matrix, inverse, matrix)
        errors = (target - matrix @ weights) / np.maximum(1 - leverage, 1e-9)
        error = float(errors @ errors)
        if best is None or error < best[0]:
            best = error, weights
    assert best is not None
    return best[1]


def held_out(
    features: Features,
    subnets: Sequence[Mapping[str, int]],
    seconds: Sequence[float],
    *,
    prior: Predict | None = None,
    folds: int = 4,
    seed: int = 0,
) -> Agreement:
    """Say how well a regression ranks Subnets that it never saw: each is predicted from those of the other folds.

    Raises:
        ConfigError: When there are too few.
    """
    order = list(range(len(subnets)))
    Random(seed).shuffle(order)
    predicted = np.empty(len(order))
    for fold in range(folds):
        out = order[fold::folds]
        rest = [place for place in order if place not in out]
        known, took = [subnets[place] for place in rest], [seconds[place] for place in rest]
        fitted = Regression(features, known, took, prior=prior)
        predicted[out] = fitted([subnets[place] for place in out])
    return Agreement.of(predicted, seconds)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Subnets that were timed on one device, as a file that another machine can plan with.

    Attributes:
        device: Where.
        request: The request.
        space: Their Space.
        choices: Their choices, in the order of the Space's axes.
        seconds: What a request of each took.
        original: What a request of the original took.
    """

    device: Device
    request: Request
    space: Space
    choices: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    original: float

    @property
    def subnets(self) -> list[Subnet]:
        """The Subnets."""
        names = [axis.name for axis in self.space.axes]
        return [Subnet(dict(zip(names, row, strict=True))) for row in self.choices]

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, as_json(self))

    @classmethod
    def load(cls, path: Path) -> Timed:
        """Read it from JSON.

        Raises:
            ArtifactError: When the file is missing, damaged, or of another version.
        """
        return from_json(cls, read_json(path), str(path))


def time_subnets(
    model: Model,
    space: Space,
    subnets: Sequence[Subnet],
    *,
    request: Request | None = None,
    rounds: int = 2,
    threads: int | None = None,
    events: EventStream | None = None,
) -> Timed:
    """Time Subnets, each cut out and in turns with the original, so that the machine's other work falls on both.

    Args:
        model: The model, not masked now; one Subnet at a time is held beside it.
        space: The Space of the Subnets.
        subnets: Which ones.
        request: The request (default: 128 prompt tokens, 64 new ones, batch 1).
        rounds: Requests of each.
        threads: CPU threads (default: as many as torch uses now).
        events: Where progress goes: a stage ``time sub-networks``.
    """
    request = request or Request()
    ratios: list[float] = []
    wholes: list[float] = []
    with (events or EventStream()).stage("time sub-networks", len(subnets)) as stage:
        for subnet in subnets:
            laps = race([model, extract(model, subnet, space=space)], request, rounds=rounds, threads=threads)
            whole, small = (float(np.median([lap.latency for lap in each])) for each in laps)
            wholes.append(whole)
            ratios.append(small / whole)
            stage.advance()
    original = float(np.median(wholes))
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    kind: Any = next(model.module.parameters()).device.type
    return Timed(
        device=Device.here(kind=kind, threads=threads, dtype=dtype),  # type: ignore[arg-type]
        request=request,
        space=space,
        choices=tuple(tuple(subnet[axis.name] for axis in space.axes) for subnet in subnets),
        seconds=tuple(ratio * original for ratio in ratios),
        original=original,
    )
