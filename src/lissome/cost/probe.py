"""Times the parts of a model in place: every branch, inside real requests, in the shapes that a Subnet may have.

A branch timed alone in a loop would find its weights in the cache, which it does not in a model; and the difference
between two whole runs drowns in a machine's noise. So hooks mark the time at the entrance and exit of every block and
branch while requests run, in the original and in a few *probes*: Subnets whose blocks have all kinds of shapes, so
that one pass times dozens of shapes. Original and probe answer in lockstep. The parts are timed in CPU time of the
calling thread: wall time would leave other programs' time slices out of the short parts (their medians) but keep
them in the long ones, and a sum over parts would be wrong by half on a busy machine.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from lissome.core.events import EventStream
from lissome.cost.blocks import sizes_of
from lissome.cost.clock import Clock, Mark, fixed_threads
from lissome.cost.measured import Request, Runner
from lissome.models.anatomy import Branch
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

PHASES = ("prefill", "decode")
_STEPS = 8  # decode steps after each prefill; the two phases then take about equal shares of the time
_PICKS = 6  # sizes tried of a dim with many; a branch's time is close to linear in its sizes
_DROP = 0.12  # share of branches that a probe lacks, to see what a block takes with one branch alone
_WARM = 1  # rounds thrown away

Sizes = tuple[tuple[str, int], ...]


@dataclass
class Samples:
    """Seconds that were seen in one phase.

    Attributes:
        branches: By kind and sizes of the dims, of every pass of every such branch.
        blocks: By the kinds of the branches that a block has, what it took beside them.
        outside: What a pass took beside its blocks.
        wall: Whole passes of the original, in wall time.
        pairs: For each probe, whole passes of the original and of the probe at the same moment.
    """

    branches: dict[tuple[str, Sizes], list[float]] = field(default_factory=lambda: defaultdict(list))
    blocks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outside: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    pairs: list[list[tuple[float, float]]] = field(default_factory=list)


def collect(
    model: Model,
    probes: Sequence[Subnet],
    space: Space,
    request: Request,
    *,
    seconds: float,
    threads: int | None = None,
    events: EventStream | None = None,
) -> dict[str, Samples]:
    """Time the parts of a model and of its probes.

    Args:
        model: The model, not masked now; one probe at a time is cut out of it.
        probes: Subnets of `space`; see `choose_probes`.
        space: Their Space.
        request: Its prompt and batch are used; decode steps are those right after the prompt.
        seconds: Time to take; each probe gets an equal share, and at least one round.
        threads: CPU threads (default: as many as torch uses now).
        events: Where progress is reported.

    Returns:
        Samples by phase, ``"prefill"`` and ``"decode"``.
    """
    events = events or EventStream()
    samples = {phase: Samples() for phase in PHASES}
    with (
        fixed_threads(threads),
        torch.inference_mode(),
        events.stage("latency table", len(probes)) as stage,
        _Watch(model, request, samples) as original,
    ):
        for subnet in probes:
            _time_beside(original, extract(model, subnet, space=space), request, samples, seconds / len(probes))
            stage.advance()
    return samples


def choose_probes(model: Model, space: Space, count: int, rng: Random) -> list[Subnet]:
    """Draw Subnets in which the sizes of every dim occur about equally often, spread over the blocks."""
    return [_probe(model, space, rng) for _ in range(count)]


def _probe(model: Model, space: Space, rng: Random) -> Subnet:
    values = dict(space.full)
    by_dim: dict[tuple[str, str], list[str]] = defaultdict(list)
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            if branch.axis(dim.name) in space.by_name:
                by_dim[branch.kind, dim.name].append(branch.axis(dim.name))
    for axes in by_dim.values():
        rng.shuffle(axes)
        for turn, axis in enumerate(axes):
            picks = spread(space.by_name[axis].choices, _PICKS)
            values[axis] = picks[turn % len(picks)]
    for branch in model.anatomy.branches:
        if branch.name in space.by_name and rng.random() < _DROP:
            values[branch.name] = 0
    for names in space.quorums:
        if not any(values[name] for name in names):
            values[rng.choice(names)] = 1
    return space.canonical(Subnet(values))


def spread(choices: Sequence[int], count: int) -> list[int]:
    """Pick at most `count` of ascending choices, evenly spread, with both ends."""
    if len(choices) <= count:
        return list(choices)
    return [choices[round(index * (len(choices) - 1) / (count - 1))] for index in range(count)]


def _time_beside(original: _Watch, probe: Model, request: Request, samples: dict[str, Samples], seconds: float) -> None:
    """Time one probe beside the original; a function, so that the probe is freed before the next one is cut."""
    deadline = time.perf_counter() + seconds
    with _Watch(probe, request, samples) as small:
        _race(original, small, samples, deadline)


def _race(original: _Watch, small: _Watch, samples: dict[str, Samples], deadline: float) -> None:
    """Let both answer in lockstep until the time is over; the first round is thrown away.

    One prefill and one decode step are always kept; a machine on which even these take too long gets a short round.
    """
    for phase in PHASES:
        samples[phase].pairs.append([])
    turn = 0
    while turn <= _WARM or time.perf_counter() < deadline:
        for step in range(_STEPS + 1):
            if step > 1 and time.perf_counter() > deadline:
                break
            phase, keep = "decode" if step else "prefill", turn >= _WARM
            took = {
                watch: watch.run(phase, keep=keep) for watch in (original, small)[:: 1 if (turn + step) % 2 else -1]
            }
            if keep:
                samples[phase].pairs[-1].append((took[original][1], took[small][1]))
                samples[phase].wall.append(took[original][0])
        turn += 1


class _Watch:
    """A model that answers requests while its blocks and branches are timed; hooks are removed on leaving."""

    def __init__(self, model: Model, request: Request, samples: dict[str, Samples]) -> None:
        self._model, self._samples = model, samples
        self._runner = Runner(model.module, request)
        self._clock = Clock.of(model.module, busy=True)
        self._marks: dict[str, list[Mark]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        anatomy = self._model.anatomy
        for path in (*anatomy.blocks, *(path for branch in anatomy.branches for path in timed(branch))):
            module = self._model.module.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(self._marker(path)))
            self._handles.append(module.register_forward_hook(self._marker(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._runner.close()

    def _marker(self, path: str) -> Any:
        return lambda *_: self._marks.setdefault(path, []).append(self._clock.mark())

    def run(self, phase: str, *, keep: bool) -> tuple[float, float]:
        """Make one pass and note what its parts took; returns its wall time and that of this thread alone."""
        self._marks.clear()
        start = self._clock.mark()
        wall = self._runner.prefill() if phase == "prefill" else self._runner.step()
        whole = self._clock.seconds(start, self._finish())
        if keep:
            self._note(self._samples[phase], whole)
        return wall, whole

    def _finish(self) -> Mark:
        end = self._clock.mark()
        self._clock.settle()
        return end

    def _note(self, samples: Samples, whole: float) -> None:
        took = {path: self._clock.seconds(*marks) for path, marks in self._marks.items()}
        anatomy = self._model.anatomy
        samples.outside.append(whole - sum(took[path] for path in anatomy.blocks))
        for index, path in enumerate(anatomy.blocks):
            branches = anatomy.of_block(index)
            each = [sum(took[part] for part in timed(branch)) for branch in branches]
            samples.blocks[block_kind(branches)].append(took[path] - sum(each))
            for branch, seconds in zip(branches, each, strict=True):
                samples.branches[branch.kind, tuple(sizes_of(branch, {}).items())].append(seconds)


def timed(branch: Branch) -> tuple[str, ...]:
    """Modules whose times make up that of a branch: its own, and linear layers that lie beside it (OPT's ``fc1``)."""
    return (branch.path, *(name for name in branch.linears if not f"{name}.".startswith(f"{branch.path}.")))


def block_kind(branches: Sequence[Branch]) -> str:
    """Name what a block has, e.g. ``"attention+mlp"``."""
    return "+".join(branch.kind for branch in branches)
