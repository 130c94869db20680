"""One path per forward pass, a log of what each path cost, and the choice of one path afterwards.

The path of micro-batch k of step s follows from (seed, s, k) alone and is drawn before the forward: a pass that is
recomputed for its gradient sees the same path, and so does a run that was killed and continued.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ConfigError
from lissome.core.files import read_json, write_json
from lissome.engine.hooks import Batch, Hooks, Loss
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

LOWEST = 5
"""Paths of lowest mean loss that become candidates."""


@dataclass(frozen=True)
class Log:
    """What training saw.

    Attributes:
        paths: The path of every micro-batch, in order.
        losses: Its mean loss.
    """

    paths: tuple[Subnet, ...]
    losses: tuple[float, ...]


class Paths(Hooks):
    """Trains one Subnet per micro-batch, each choice of each axis equally likely and independent of all others.

    Args:
        model: The model; its module, or one around it, is what is trained.
        space: The axes to draw from.
        accumulation: Micro-batches of a step.
        together: Draw one place for all axes, which must have equally many choices, instead of one for each: with
            ranks that is DyLoRA (Valipour et al. 2022, arXiv 2210.07558).

    Raises:
        ConfigError: When axes that are drawn together have different numbers of choices.
    """

    def __init__(self, model: Model, space: Space, *, accumulation: int = 1, together: bool = False) -> None:
        if together and len({len(axis.choices) for axis in space.axes}) > 1:
            raise ConfigError("axes that are drawn together need equally many choices; give all the same ranks.")
        self._model, self._space, self._accumulation, self._together = model, space, accumulation, together
        self._now = space.full
        self._pending: list[tuple[Subnet, float]] = []
        self._done: list[tuple[Subnet, float]] = []

    def path(self, step: int, rng: random.Random) -> AbstractContextManager[Any]:
        """Draw a path and let the model behave like it."""
        place = rng.random()
        drawn = {
            axis.name: axis.choices[int(place * len(axis.choices))] if self._together else rng.choice(axis.choices)
            for axis in self._space.axes
        }
        self._now = self._space.check(drawn)
        return masked(self._model, self._now, space=self._space)

    def noted(self, loss: Loss) -> Loss:
        """Return a loss that also writes into the log what each micro-batch cost."""

        def noting(module: Any, batch: Batch) -> Tensor:
            losses = loss(module, batch)
            self._pending.append((self._now, float(losses.detach().float().mean())))
            return losses

        return noting

    def snapshot(self, step: int, module: nn.Module) -> None:
        """Keep what the step's own micro-batches cost; passes that only took the time are forgotten."""
        self._done += self._pending[-self._accumulation :]
        self._pending.clear()

    def state(self) -> Mapping[str, Tensor]:
        """Return the log: whole numbers [micro-batches, axes], and losses."""
        names = [axis.name for axis in self._space.axes]
        rows = [[path[name] for name in names] for path, _ in self._done]
        paths = torch.tensor(rows, dtype=torch.int32).view(len(rows), len(names))
        return {"paths": paths, "losses": torch.tensor([loss for _, loss in self._done], dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the log back."""
        names = [axis.name for axis in self._space.axes]
        rows = (Subnet(dict(zip(names, row, strict=True))) for row in tensors["paths"].tolist())
        self._done = list(zip(rows, tensors["losses"].tolist(), strict=True))

    @property
    def log(self) -> Log:
        """What training saw so far."""
        return Log(tuple(path for path, _ in self._done), tuple(loss for _, loss in self._done))


def heuristic(space: Space) -> Subnet:
    """Return the path that needs no evaluation: entry (n − 1) // 2 of each axis's n choices in descending order.

    Of two choices that is the larger one.
    """
    return Subnet({axis.name: axis.choices[::-1][(len(axis.choices) - 1) // 2] for axis in space.axes})


def candidates(log: Log, space: Space) -> dict[str, Subnet]:
    """Return the paths that a log speaks for, by what they are: at most 7, each once.

    The median of each axis, its most frequent choice (the larger one of equals), and the paths of lowest mean loss.

    Raises:
        ConfigError: When the log is empty.
    """
    if not log.paths:
        raise ConfigError("there is no log of training to choose from; train some steps, or choose=heuristic.")
    medians, modes = {}, {}
    for axis in space.axes:
        seen = sorted(path[axis.name] for path in log.paths)
        counts = Counter(seen)
        medians[axis.name] = seen[(len(seen) - 1) // 2]
        modes[axis.name] = max(counts, key=lambda value, counts=counts: (counts[value], value))  # type: ignore[misc]
    losses: dict[Subnet, list[float]] = {}
    for path, loss in zip(log.paths, log.losses, strict=True):
        losses.setdefault(path, []).append(loss)
    ranked = sorted(losses, key=lambda path: sum(losses[path]) / len(losses[path]))
    named = {"median": Subnet(medians), "most frequent": Subnet(modes)}
    named |= {f"lowest loss {place}": path for place, path in enumerate(ranked[:LOWEST], start=1)}
    first = dict.fromkeys(named.values())
    return {next(name for name, path in named.items() if path == one): one for one in first}


Evaluate = Callable[[Subnet], float]
"""What a path is judged by, lower is better."""


@dataclass(frozen=True)
class Found:
    """One path that was evaluated: what it is, and its figure."""

    name: str
    path: Subnet
    value: float


def climb(
    evaluate: Evaluate,
    space: Space,
    start: Subnet,
    *,
    size: Callable[[Subnet], float],
    budget: int,
    rng: random.Random,
) -> list[Found]:
    """Hill climbing: move a few axes to a neighbouring choice; keep what is better, or as good and smaller.

    Args:
        evaluate: Lower is better.
        space: The axes.
        start: Where to begin.
        size: What breaks ties, lower is better.
        budget: Paths to evaluate, the start among them.
        rng: Chooses what is tried.

    Returns:
        The accepted paths, the start first and the best last.
    """
    best, value = start, evaluate(start)
    accepted, tried = [Found("start", best, value)], {best}
    misses = 0
    while len(tried) < budget and misses < 20 * budget:  # a small Space is exhausted before the budget
        changed = space.neighbour(best, rng)
        if changed in tried:
            misses += 1
            continue
        tried.add(changed)
        got = evaluate(changed)
        if got < value or (got == value and size(changed) < size(best)):
            best, value = changed, got
            accepted.append(Found(f"step {len(accepted)}", best, value))
    return accepted


class Remembered:
    """An evaluation whose results are kept in a file, so that a continued search does not repeat them.

    Args:
        evaluate: The evaluation.
        file: A JSON file.
        key: What the results depend on; those of another key are not used.
    """

    def __init__(self, evaluate: Evaluate, file: Any, key: str) -> None:
        self._evaluate, self._file, self._key = evaluate, file, key
        stored = read_json(file) if file.exists() else {}
        self._known: dict[str, float] = stored.get("values", {}) if stored.get("key") == key else {}

    def __call__(self, path: Subnet) -> float:
        """Evaluate, or remember."""
        name = ",".join(str(value) for value in path.values())
        if name not in self._known:
            self._known[name] = self._evaluate(path)
            write_json(self._file, {"key": self._key, "values": self._known})
        return self._known[name]


def best_of(found: Sequence[Found]) -> Found:
    """Return the path of the lowest figure, the first of equals."""
    return min(found, key=lambda one: one.value)
