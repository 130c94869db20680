"""A latency table of models that read an input once: encoders, segmenters, networks of images or numbers.

Time of a pass = what stands outside the branches + for each branch, what its layers take. These are timed in place, in
the original and in Subnets of all sizes; against the multiply-accumulates of the branch their medians make a curve that
never falls and is piecewise linear (Once-for-all's table, Cai et al. 2020, has an entry for each size instead). What
runs between the layers, activations and attention's products, is not seen by hooks: a factor on the sum, fitted to the
whole passes, stands for it. The table is a small JSON file that carries its device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError, LissomeError
from lissome.core.events import EventStream
from lissome.core.files import cache_dir, check_writable, read_json, write_json
from lissome.core.typed import as_json, from_json
from lissome.cost.blocks import Part, Vector
from lissome.cost.clock import Clock, Mark, fixed_threads
from lissome.cost.counted import Counter
from lissome.cost.device import Device
from lissome.cost.measured import Request
from lissome.cost.peak import give_back
from lissome.cost.table import (
    REMAKE,
    Curve,
    LatencyTable,
    Seconds,
    cached_table,
    check_device,
    fit_curve,
    latency_table,
    nonnegative,
    warn_if_doubtful,
)
from lissome.models.anatomy import Branch
from lissome.models.binding import extract
from lissome.models.example import example
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

SCHEMA = 1
_KIND = "pass"
_PROBES = 12  # Subnets beside the original and the smallest: each layer is seen in about as many sizes
_MACS = "macs"
_WARM = 1  # passes of each that are thrown away


@dataclass(frozen=True, kw_only=True)
class PassTable:
    """Predicted times of one forward on one device, for any Subnet of one model.

    Attributes:
        device: Where it was measured.
        fingerprint: Of that device.
        model: Hash of what the times depend on: names and shapes of all weights, and of the inputs.
        request: Batch, and tokens of a text.
        outside: Seconds of what stands outside the branches.
        branches: Seconds of a branch by its multiply-accumulates, by name; one without layers is not among them.
        probes: Of each Subnet that was timed, predicted over measured time, both relative to the original.
        kind: ``"pass"``.
        schema: Version of the file.
    """

    device: Device
    fingerprint: str
    model: str
    request: Request
    outside: float
    branches: Mapping[str, Curve]
    probes: tuple[float, ...] = ()
    kind: str = _KIND
    schema: int = SCHEMA

    WIDTH = 1
    """Length of the vectors that `block` returns."""

    def block(self, parts: tuple[Part, ...], macs: Sequence[float]) -> Vector:
        """Return the seconds of a block, given the multiply-accumulates of each of its parts."""
        return (sum(self.part(part, count)[0] for part, count in zip(parts, macs, strict=True)),)

    def beside(self, branches: Sequence[Branch]) -> Vector:
        """Nothing: what a block has beside its branches is outside, or in the factor."""
        return (0.0,)

    def part(self, part: Part, macs: float) -> Vector:
        """Return the seconds of a branch."""
        curve = self.branches.get(part.branch.name)
        return (curve.at({_MACS: macs}) if curve is not None else 0.0,)

    def figures_of(self, total: Sequence[Seconds]) -> dict[str, Seconds]:
        """Turn the sum of all blocks, or of many Subnets at once, into latency."""
        return {"latency": total[0] + self.outside}

    def require(self, model: Model) -> None:
        """Refuse a model that this table says nothing about.

        Raises:
            ConfigError: When it was measured on another one.
        """
        if self.model != fingerprint(model, self.request):
            raise ConfigError(f"the latency table was measured on another model; {REMAKE}")

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, as_json(self))

    @classmethod
    def load(cls, path: Path) -> PassTable:
        """Read it from JSON.

        Raises:
            ArtifactError: When the file is missing, damaged, changed by hand or of a newer version.
        """
        fields = read_json(path)
        if not isinstance(fields, dict) or fields.get("kind") != _KIND:
            raise ArtifactError(f"{path} is no latency table of a model that reads an input once.")
        if fields.get("schema") != SCHEMA:
            version = ascii(fields.get("schema"))[:20]
            raise ArtifactError(f"{path} is a latency table of version {version}; this lissome reads {SCHEMA}.")
        table = from_json(cls, fields, str(path))
        check_device(table.device, table.fingerprint, path)
        return table


Table = LatencyTable | PassTable
"""A latency table of any model."""


def read_table(path: Path) -> Table:
    """Read a latency table of either kind; errors as in `LatencyTable.load`."""
    fields = read_json(path)
    passes = isinstance(fields, dict) and fields.get("kind") == _KIND
    return PassTable.load(path) if passes else LatencyTable.load(path)


def new_table(model: Model, *, events: EventStream | None = None) -> Table:
    """Measure the latency table of any model on this machine."""
    return (latency_table if model.anatomy.task == "causal-lm" else pass_table)(model, events=events)


def table_here(model: Model, *, events: EventStream | None = None) -> Table:
    """Return the table that was measured here before for a model of these shapes, or measure and keep it.

    Raises:
        ConfigError: When the cache cannot be written; said before anything is measured.
    """
    if model.anatomy.task == "causal-lm":
        return cached_table(model, events=events)
    path = cache_dir() / "latency" / f"{_device_of(model, None).fingerprint}-{fingerprint(model, Request())}.json"
    if path.exists():
        with contextlib.suppress(LissomeError):  # damaged, or of another version: measure again
            return PassTable.load(path)
    check_writable(path)
    table = pass_table(model, events=events)
    table.save(path)
    return table


def fingerprint(model: Model, request: Request) -> str:
    """Return a hash of what times depend on: names and shapes of weights and inputs, and the type of numbers."""
    inputs = {name: list(value.shape) for name, value in _inputs(model, request).items()}
    dtype = str(next(model.module.parameters()).dtype)
    facts = json.dumps([model.anatomy.architecture, dtype, inputs, sorted(model.binding.shapes.items())])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def pass_table(
    model: Model,
    *,
    space: Space | None = None,
    request: Request | None = None,
    threads: int | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    events: EventStream | None = None,
) -> PassTable:
    """Measure the table of a model on this machine.

    Args:
        model: The model, not masked now; one Subnet at a time is held beside it.
        space: The Space whose sizes are tried (default: the model's own).
        request: Batch, and tokens of a text (default: one example, 128 tokens).
        threads: CPU threads (default: as many as torch uses now).
        seconds: Time to take; more makes it steadier on a busy machine.
        seed: Seed of the Subnets that are tried.
        events: Where progress is reported: a stage ``latency table``.

    Raises:
        ConfigError: When the model writes text: its requests have two phases, see `lissome.cost.table`.
    """
    if model.anatomy.task == "causal-lm":
        raise ConfigError(f"{model.name} writes text; its latency table is that of lissome.cost.table.")
    space, request, rng = space or model.space(), request or Request(), Random(seed)
    subnets = [space.smallest, *(space.sample(rng) for _ in range(_PROBES))]
    laps: list[_Lap] = []
    with (
        fixed_threads(threads) as used,
        torch.inference_mode(),
        (events or EventStream()).stage("latency table", len(subnets)) as stage,
        _Watch(model, request) as original,
    ):
        for subnet in subnets:
            laps.append(_beside(original, extract(model, subnet, space=space), request, seconds / len(subnets)))
            stage.advance()
    give_back()
    table = _fitted(model, space, subnets, laps, _device_of(model, used), request)
    warn_if_doubtful(table.probes, events)
    return table


def _device_of(model: Model, threads: int | None) -> Device:
    weight: Tensor = next(model.module.parameters())
    kind: Any = weight.device.type
    dtype: Any = str(weight.dtype).removeprefix("torch.")
    return Device.here(kind=kind, threads=threads, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class _Lap:
    """What was seen of a Subnet beside the original: medians.

    Attributes:
        layers: Seconds of each layer, of the original and of the Subnet.
        whole: Seconds of the whole pass in which the thread computed, of both.
        wall: Seconds of the original's pass by the clock.
    """

    layers: tuple[Mapping[str, float], Mapping[str, float]]
    whole: tuple[float, float]
    wall: float


def _beside(original: _Watch, probe: Model, request: Request, seconds: float) -> _Lap:
    """Time a Subnet in turns with the original; a function, so that it is freed before the next one is cut."""
    deadline, turn = time.perf_counter() + seconds, 0
    original.forget()
    with _Watch(probe, request) as small:
        while turn <= _WARM or time.perf_counter() < deadline:
            for watch in (original, small)[:: 1 if turn % 2 else -1]:
                watch.run(keep=turn >= _WARM)
            turn += 1
    return _Lap(
        layers=(original.layers(), small.layers()), whole=(original.whole(), small.whole()), wall=original.wall()
    )


class _Watch:
    """A model that runs forward while its layers are timed; hooks are removed on leaving."""

    def __init__(self, model: Model, request: Request) -> None:
        self._model, self._inputs = model, _inputs(model, request)
        self._clock, self._outer = Clock.of(model.module, busy=True), Clock.of(model.module)
        self._marks: dict[str, list[Mark]] = defaultdict(list)
        self._handles: list[Any] = []
        self.forget()

    def __enter__(self) -> _Watch:
        for path in sorted({path for branch in self._model.anatomy.branches for path in layers_of(branch)}):
            layer: nn.Module = self._model.module.get_submodule(path)
            self._handles.append(layer.register_forward_pre_hook(self._marker(path)))
            self._handles.append(layer.register_forward_hook(self._marker(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        """Begin anew."""
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._wholes: list[float] = []
        self._walls: list[float] = []

    def run(self, *, keep: bool) -> None:
        """Run forward once, and note what the layers took."""
        self._marks.clear()
        self._clock.settle()
        start, wall = self._clock.mark(), self._outer.mark()
        self._model.module(**self._inputs)
        end, last = self._clock.mark(), self._outer.mark()
        self._clock.settle()
        if keep:
            self._wholes.append(self._clock.seconds(start, end))
            self._walls.append(self._outer.seconds(wall, last))
            for path, marks in self._marks.items():  # a layer that runs twice in a pass has four marks
                pairs = zip(marks[::2], marks[1::2], strict=True)
                self._seen[path].append(sum(self._clock.seconds(*pair) for pair in pairs))

    def layers(self) -> dict[str, float]:
        """Median seconds of each layer."""
        return {path: float(np.median(seen)) for path, seen in self._seen.items()}

    def whole(self) -> float:
        """Median seconds of a pass in which the thread computed."""
        return float(np.median(self._wholes))

    def wall(self) -> float:
        """Median seconds of a pass by the clock."""
        return float(np.median(self._walls))

    def _marker(self, path: str) -> Any:
        return lambda *_: self._marks[path].append(self._clock.mark())


def layers_of(branch: Branch) -> list[str]:
    """Names of the layers that hold a branch's weights and statistics."""
    return sorted({name.rpartition(".")[0] for name in (*branch.parameters, *branch.buffers)})


def _inputs(model: Model, request: Request) -> dict[str, Any]:
    return dict(example(model, tokens=request.prompt, batch=request.batch))


def _fitted(
    model: Model, space: Space, subnets: Sequence[Subnet], laps: Sequence[_Lap], device: Device, request: Request
) -> PassTable:
    """Make curves of the branches, a factor and what is outside of what was seen."""
    counter, named = Counter(model), {branch.name: layers_of(branch) for branch in model.anatomy.branches}
    counts = [{row.name: row.macs for row in counter.table(subnet)} for subnet in (space.full, *subnets)]
    seen: list[Mapping[str, float]] = [
        {path: float(np.median([lap.layers[0][path] for lap in laps])) for path in laps[0].layers[0]}
    ]
    seen += [lap.layers[1] for lap in laps]
    curves = {}
    for name, paths in named.items():
        points = [
            ({_MACS: float(count[name])}, sum(took.get(path, 0.0) for path in paths))
            for count, took in zip(counts, seen, strict=True)
            if name in count
        ]
        points = [(amount, took) for amount, took in points if took > 0]
        if points:
            curves[name] = fit_curve(points)
    sums = np.array([_sum(curves, count) for count in counts])
    wholes = [float(np.median([lap.whole[0] for lap in laps])), *(lap.whole[1] for lap in laps)]
    outside, factor = _line(sums, np.array(wholes))
    # By the clock the original takes what it takes with all its threads; everything is in proportion to that.
    whole = outside + factor * sums[0]
    wall = float(np.median([lap.wall for lap in laps])) / whole
    predicted = (outside + factor * sums[1:]) / whole
    ratios = [ratio * lap.whole[0] / lap.whole[1] for ratio, lap in zip(predicted, laps, strict=True)]
    return PassTable(
        device=device,
        fingerprint=device.fingerprint,
        model=fingerprint(model, request),
        request=request,
        outside=wall * outside,
        branches={name: curve.times(wall * factor) for name, curve in curves.items()},
        probes=tuple(float(ratio) for ratio in ratios),
    )


def _sum(curves: Mapping[str, Curve], macs: Mapping[str, int]) -> float:
    return sum(curve.at({_MACS: float(macs[name])}) for name, curve in curves.items() if name in macs)


def _line(sums: NDArray[np.float64], wholes: NDArray[np.float64]) -> tuple[float, float]:
    """Fit ``whole = outside + factor · sum``, neither below zero; relative errors count."""
    rows = np.stack([np.ones_like(sums), sums], axis=1) / wholes[:, None]
    outside, factor = nonnegative(rows, np.ones(len(sums)))
    return float(outside), float(factor)
