"""Where the latency of a search's sub-networks comes from: a table, a regression on a few timed ones, or a clock.

A table or a regression of another device is corrected with a few sub-networks that are timed on this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.events import EventStream
from lissome.core.protocols import CostOracle
from lissome.cost.oracle import SubnetCost
from lissome.cost.passes import read_table, table_here
from lissome.cost.predicted import LEAST, Agreement, Regression, Timed, held_out, time_subnets, totals
from lissome.engine.search.moves import draw
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.pipeline.job import MEASURED

TIMED, WHOLE, HERE = "timed.json", "timed-whole.json", "timed-here.json"
"""Files of a search's folder: sub-networks that were timed, the original, where each one is timed in turn, and
sub-networks that correct what is known of another device."""

_READ = f"A regression reads sub-networks that were timed: {TIMED}, which --latency regression leaves in its folder."
_KEPT = "What a search has timed once is not timed again; restore it, or search into another folder."

_FEW = 2 * LEAST  # so that half of them can be held out
_RANKED = 3  # of two every ranking is right or wrong

Latency = Literal["auto", "table", "regression", "measured"]

TIMED_SUBNETS = 24
"""Sub-networks that a regression is fitted to: two for each of its features."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a user wants latency to come about.

    Attributes:
        way: One of `Latency`; ``auto`` is a table for a language model, and a regression for any other.
        device: A latency table, or timed sub-networks, of the device to search for.
        folder: Of the search; what is timed here stays in it.
        seed: Of the sub-networks that are timed.
        check: Sub-networks to time, to see how well a predicted latency ranks them.
        correct: Sub-networks to time here, that correct the times of `device`.
    """

    way: str
    device: str | None
    folder: Path
    seed: int
    check: int
    correct: int = 0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How latency comes about.

    Attributes:
        cost: Counts, and predicts latency when it is predicted.
        identity: What its predictions depend on.
        measured: Takes the latency of a Subnet, when it is measured each time.
        original: Latency of the original, when the cost does not know it.
        notes: Lines for a person.
    """

    cost: CostOracle
    identity: str = "none"
    measured: Callable[[Subnet], Mapping[str, float]] | None = None
    original: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def timing(wish: Wish, model: Model, space: Space, names: set[str], events: EventStream) -> Timing:
    """Say how latency comes about; what must be timed for it is timed now, and stays in the search's folder.

    Args:
        wish: How a user wants it.
        model: The model, without adapters.
        space: What can be chosen.
        names: Figures that the search speaks of; where none is a latency, nothing is timed.
        events: Where progress goes.

    Raises:
        ConfigError: When a table is of another model, there is nothing to correct, or no latency is looked at.
        ArtifactError: When a file of times is damaged, or of another model.
    """
    if not names & MEASURED:
        _refuse_idle(wish)
        return Timing(cost=SubnetCost(model))
    way = _way(wish, model)
    if wish.correct and (way == "measured" or not wish.device):
        raise ConfigError("--correct adjusts what is known of another device; name that device's file with --device.")
    if 0 < wish.correct < _FEW:
        raise ConfigError(f"--correct {wish.correct} is too few to tell how well it does; give {_FEW} or more.")
    if 0 < wish.check < _RANKED:
        raise ConfigError(f"--check {wish.check} is too few to rank; give {_RANKED} or more.")
    if way == "measured":
        return _measured(wish, model, space, events)
    if way == "regression":
        found = _regression(wish, model, space, events)
    else:
        table = read_table(Path(wish.device)) if wish.device else table_here(model, events=events)
        found = Timing(cost=SubnetCost(model, table=table), identity=f"table {table.fingerprint}")
    if wish.correct:
        found = _corrected(wish, model, space, found, events)
    return replace(found, notes=(*found.notes, *_checked(wish, way, model, space, found.cost, events)))


def _way(wish: Wish, model: Model) -> str:
    if wish.way != "auto":
        return wish.way
    return "table" if model.anatomy.task == "causal-lm" else "regression"


def times_of(wish: Wish, model: Model) -> frozenset[str]:
    """Return the names of the times that a search can speak of; phases only a table of a language model tells apart."""
    phased = _way(wish, model) == "table" and not wish.correct and model.anatomy.task == "causal-lm"
    return MEASURED if phased else frozenset({"latency"})


def _refuse_idle(wish: Wish) -> None:
    """Refuse what speaks of latency in a search that looks at none: the device would be ignored without a word."""
    given = {
        f"--latency {wish.way}": wish.way != "auto", f"--device {wish.device}": wish.device is not None,
        f"--correct {wish.correct}": wish.correct > 0, f"--check {wish.check}": wish.check > 0,
    }  # fmt: skip
    for option in (option for option, asked in given.items() if asked):
        raise ConfigError(
            f"{option} says where latency comes from, but the search looks at none; add --objective latency, or a "
            "bound such as --budget latency<=80%."
        )


def _measured(wish: Wish, model: Model, space: Space, events: EventStream) -> Timing:
    """Time each Subnet when it is evaluated, in turns with the original.

    What the original took the first time stays: bounds relative to it are the same in every process, and after a kill.
    """
    file = wish.folder / WHOLE
    if file.exists():
        timed = _timed_before(file, space, _KEPT)
    else:
        timed = time_subnets(model, space, [space.full], events=events)
        timed.save(file)
    whole = timed.original

    def take(subnet: Subnet) -> dict[str, float]:
        timed = time_subnets(model, space, [Subnet({name: subnet[name] for name in space.by_name})])
        return {"latency": timed.seconds[0] / timed.original * whole}

    return Timing(cost=SubnetCost(model), identity="measured", measured=take, original={"latency": whole})


class _WithRegression:
    """Counted figures, and a latency from a regression; no other times, which would be another device's."""

    def __init__(self, counted: SubnetCost, regression: Regression) -> None:
        self._counted, self._regression = counted, regression

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return figures by budget term."""
        return {**self._counted.figures(subnet), "latency": float(self._regression([subnet])[0])}

    def provenance(self, term: str) -> str:
        """Say how a term comes about."""
        return self._counted.provenance(term)


def _regression(wish: Wish, model: Model, space: Space, events: EventStream) -> Timing:
    """Fit a regression to timed sub-networks: another device's, this search's own, or those that are timed now."""
    file = Path(wish.device) if wish.device else wish.folder / TIMED
    if wish.device or file.exists():
        timed = _timed_before(file, space, _READ if wish.device else _KEPT)
    else:
        rng = Random(f"{wish.seed}/timed")
        timed = time_subnets(model, space, [draw(space, rng) for _ in range(TIMED_SUBNETS)], events=events)
        timed.save(file)
    features, subnets = totals(model), timed.subnets
    note = f"latency by a regression, {held_out(features, subnets, timed.seconds)}"
    fitted = Regression(features, subnets, timed.seconds)
    identity = f"regression {_print_of(timed)}"
    return Timing(cost=_WithRegression(SubnetCost(model), fitted), identity=identity, notes=(note,))


def _corrected(wish: Wish, model: Model, space: Space, proxy: Timing, events: EventStream) -> Timing:
    """Correct another device's times with sub-networks that are timed here, once."""
    file = wish.folder / HERE
    if file.exists():
        timed = _timed_before(file, space, _KEPT)
    else:
        rng = Random(f"{wish.seed}/here")
        timed = time_subnets(model, space, [draw(space, rng) for _ in range(wish.correct)], events=events)
        timed.save(file)

    def prior(subnets: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
        return np.array([proxy.cost.figures(subnet)["latency"] for subnet in subnets])

    features, subnets = totals(model), timed.subnets
    fitted = Regression(features, subnets, timed.seconds, prior=prior)
    agreement = held_out(features, subnets, timed.seconds, prior=prior)
    return Timing(
        cost=_WithRegression(SubnetCost(model), fitted),
        identity=f"{proxy.identity}, corrected {_print_of(timed)}",
        notes=(*proxy.notes, f"corrected with {len(subnets)} sub-networks timed here, {agreement}"),
    )


def _print_of(timed: Timed) -> str:
    """What times are known by: their device, and a hash."""
    digest = hashlib.sha256(json.dumps(timed.seconds).encode()).hexdigest()[:16]
    return f"{timed.device.fingerprint} {digest}"


def _timed_before(file: Path, space: Space, hint: str) -> Timed:
    """Read times that were taken of this model.

    Raises:
        ArtifactError: When they are of another one, or the file is damaged or of another kind; ends with the hint.
    """
    try:
        timed = Timed.load(file)
    except ArtifactError as error:
        raise ArtifactError(f"{error} {hint}") from error
    if timed.space != space:
        raise ArtifactError(f"the sub-networks of {file} are of another model; time this model's own.")
    return timed


def _checked(wish: Wish, way: str, model: Model, space: Space, cost: CostOracle, events: EventStream) -> list[str]:
    """Say how well the predicted latency ranks sub-networks that are timed now."""
    if not wish.check:
        return []
    rng = Random(f"{wish.seed}/check")
    subnets = [draw(space, rng) for _ in range(wish.check)]
    timed = time_subnets(model, space, subnets, events=events)
    predicted = [cost.figures(subnet)["latency"] for subnet in subnets]
    return [f"latency by a {way}, {Agreement.of(predicted, timed.seconds)}"]
