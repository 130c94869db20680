"""A latency table: what every part of a model takes on one device, added up for any Subnet.

Time of a pass = what stands outside the blocks + for each block, what it takes beside its branches + each branch by
its sizes; prefill and decode apart. Branch times are medians of measurements in place (`lissome.cost.probe`), made
monotone and piecewise linear in the sizes by least squares with slopes that cannot be negative. A last factor makes
the prediction for the original equal to its measured wall time. The table is a small JSON file that carries its
device, so that one machine can plan for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError, LissomeError
from lissome.core.events import EventStream
from lissome.core.files import cache_dir, check_writable, read_json, write_json
from lissome.core.typed import as_json, from_json
from lissome.cost.blocks import BlockSum, Part, Vector
from lissome.cost.device import Device
from lissome.cost.measured import Request
from lissome.cost.peak import give_back
from lissome.cost.probe import Samples, block_kind, choose_probes, collect
from lissome.models.anatomy import Branch
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

SCHEMA = 1
REMAKE = "make one for this model with: lissome bench MODEL --save-table FILE"
"""What to do where a table is of another model."""

Seconds = TypeVar("Seconds", float, NDArray[np.float64])

_PROBES = 4  # with 30 blocks each size is then seen in about twenty blocks
_KNOTS = 3  # of a size that is one of several: few, since every combination is seen less often
_DOUBTFUL = 0.1  # of a ratio; on an idle machine the probes come out within 0.02
_SWEEPS = 3000  # of coordinate descent; it stops moving after some hundreds for the few unknowns here


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Seconds per unit of an amount, between two of its values."""

    amount: str
    low: float
    high: float
    slope: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds of a branch: monotone and piecewise linear in its amounts (see `amounts`)."""

    start: float
    segments: tuple[Segment, ...]

    def at(self, values: Mapping[str, float]) -> float:
        """Return the seconds at the given amounts; beyond the measured ends they stay level."""
        return self.start + sum(
            each.slope * (min(max(values[each.amount], each.low), each.high) - each.low) for each in self.segments
        )

    def times(self, factor: float) -> Curve:
        """Return the curve of so many times the seconds."""
        segments = tuple(replace(each, slope=factor * each.slope) for each in self.segments)
        return Curve(start=factor * self.start, segments=segments)


@dataclass(frozen=True, kw_only=True)
class PhaseTable:
    """Seconds of one phase.

    Attributes:
        outside: Embedding, masks, last norm, head, choice of the token.
        blocks: What a block takes beside its branches, by the kinds of these (``"attention+mlp"``).
        branches: Curve of each kind of branch.
        scale: Factor that makes the prediction for the original equal to what was measured.
    """

    outside: float
    blocks: Mapping[str, float]
    branches: Mapping[str, Curve]
    scale: float = 1.0

    def beside(self, branches: Sequence[Branch]) -> float:
        """Return the seconds that a block takes beside the branches that it keeps."""
        return self.scale * self.blocks.get(block_kind(branches), max(self.blocks.values()))

    def part(self, part: Part) -> float:
        """Return the seconds of a branch."""
        return self.scale * self.branches[part.branch.kind].at(amounts(part.branch.kind, part.sizes))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model must have in common with the one that a table was measured on."""

    architecture: str
    hidden: int
    vocabulary: int
    dtype: str

    @classmethod
    def of(cls, model: Model) -> Shape:
        """Read it from a model."""
        dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        anatomy = model.anatomy
        return cls(architecture=anatomy.architecture, hidden=anatomy.hidden, vocabulary=anatomy.vocabulary, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Predicted times of requests on one device, for any Subnet of one model.

    Attributes:
        device: Where it was measured.
        fingerprint: Of that device; says which measurements belong together.
        model: What it was measured on.
        request: The request.
        prefill: Seconds of the prompt.
        decode: Seconds of one decode step.
        probes: Of each probe, predicted over measured time of a request, both relative to the original.
        schema: Version of the file.
    """

    device: Device
    fingerprint: str
    model: Shape
    request: Request
    prefill: PhaseTable
    decode: PhaseTable
    probes: tuple[float, ...] = ()
    schema: int = SCHEMA

    WIDTH = 2
    """Length of the vectors that `block` returns."""

    def block(self, parts: tuple[Part, ...], macs: Sequence[float]) -> Vector:
        """Return the seconds of one block: in a prefill and in a decode step; `macs` as in `part`."""
        each = (self.part(part, count) for part, count in zip(parts, macs, strict=True))
        columns = zip(self.beside([part.branch for part in parts]), *each, strict=True)
        prefill, decode = (sum(column) for column in columns)
        return prefill, decode

    def beside(self, branches: Sequence[Branch]) -> Vector:
        """Return what a block takes beside the branches that it keeps."""
        return self.prefill.beside(branches), self.decode.beside(branches)

    def part(self, part: Part, macs: float) -> Vector:
        """Return what a branch takes, which its sizes say; its multiply-accumulates are for tables of passes."""
        return self.prefill.part(part), self.decode.part(part)

    def figures_of(self, total: Sequence[Seconds]) -> dict[str, Seconds]:
        """Turn the sum of all blocks (see `block`), or of many Subnets at once, into latency, prefill, decode."""
        prefill = total[0] + self.prefill.scale * self.prefill.outside
        step = total[1] + self.decode.scale * self.decode.outside
        request = self.request
        return {
            "latency": prefill + request.steps * step,
            "prefill": request.batch * request.prompt / prefill,
            "decode": request.batch / step,
        }

    def require(self, model: Model) -> None:
        """Refuse a model that this table says nothing about.

        Raises:
            ConfigError: Says what differs.
        """
        mine, other = as_json(self.model), as_json(Shape.of(model))
        wrong = [f"{name} {mine[name]} (model: {other[name]})" for name in mine if mine[name] != other[name]]
        if wrong:
            raise ConfigError(f"the latency table was measured on another model: {', '.join(wrong)}; {REMAKE}")

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, as_json(self))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read it from JSON.

        Raises:
            ArtifactError: When the file is missing, damaged, changed by hand or of a newer version.
        """
        fields = read_json(path)
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtifactError(
                f"{path} is a latency table of version {schema}; this lissome reads up to {SCHEMA}, update it."
            )
        table = from_json(cls, fields, str(path))
        check_device(table.device, table.fingerprint, path)
        return table


def latency_table(
    model: Model,
    *,
    space: Space | None = None,
    request: Request | None = None,
    threads: int | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    events: EventStream | None = None,
) -> LatencyTable:
    """Measure the latency table of a model on this machine.

    Args:
        model: The model, not masked now. One Subnet of about 60 % of its size is held beside it.
        space: The Space whose sizes are tried (default: the model's own).
        request: The request (default: 128 prompt tokens, 64 new ones, batch 1).
        threads: CPU threads (default: as many as torch uses now).
        seconds: Time to take; more makes it steadier on a busy machine.
        seed: Seed of the shapes that are tried.
        events: Where progress is reported.

    Raises:
        UnsupportedModelError: When the model is not a causal language model.
    """
    model.anatomy.require("causal-lm", "a latency table")
    space, request = space or model.space(), request or Request()
    probes = choose_probes(model, space, _PROBES, Random(seed))
    samples = collect(model, probes, space, request, seconds=seconds, threads=threads, events=events)
    device = _device_of(model, threads)
    table = LatencyTable(
        device=device,
        fingerprint=device.fingerprint,
        model=Shape.of(model),
        request=request,
        prefill=_fit_phase(samples["prefill"]),
        decode=_fit_phase(samples["decode"]),
    )
    give_back()
    table = _calibrated(table, model, probes, samples)
    warn_if_doubtful(table.probes, events)
    return table


def check_device(device: Device, fingerprint: str, path: Path) -> None:
    """Refuse a table whose fingerprint is not that of its device.

    Raises:
        ArtifactError: The file was changed by hand.
    """
    if fingerprint != device.fingerprint:
        raise ArtifactError(f"{path}: the fingerprint is not that of its device; the file was changed, make it again.")


def warn_if_doubtful(probes: Sequence[float], events: EventStream | None) -> None:
    """Say that the machine is busy when a table errs on its own probes, given as predicted over measured ratios."""
    worst = max(abs(ratio - 1) for ratio in probes)
    if events is not None and worst > _DOUBTFUL:
        events.message(
            f"the latency table errs by up to {worst:.0%} on its own probes: this machine is busy; "
            "stop other programs or use fewer threads, then measure again"
        )


def cached_table(
    model: Model, *, request: Request | None = None, threads: int | None = None, events: EventStream | None = None
) -> LatencyTable:
    """Return the table that was measured here before for a model of these shapes, or measure and keep it.

    Times do not depend on the weights' values, so that a job that is continued, or one with another text or seed,
    plans with the same table. It lies in the cache folder, named by device and shapes; delete it to measure again.
    Arguments as in `latency_table`.

    Raises:
        ConfigError: When the cache cannot be written; said before anything is measured.
    """
    request = request or Request()
    device = _device_of(model, threads)
    facts = json.dumps([as_json(Shape.of(model)), request.to_mapping(), list(model.binding.shapes.items())])
    name = f"{device.fingerprint}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    path = cache_dir() / "latency" / name
    if path.exists():
        with contextlib.suppress(LissomeError):  # damaged, or of another version: measure again
            return LatencyTable.load(path)
    check_writable(path)
    table = latency_table(model, request=request, threads=threads, events=events)
    table.save(path)
    return table


def _device_of(model: Model, threads: int | None) -> Device:
    kind = next(model.module.parameters()).device.type
    return Device.here(kind=kind, threads=threads, dtype=Shape.of(model).dtype)  # type: ignore[arg-type]


def amounts(kind: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """What the time of a branch depends on.

    For attention the numbers of query and of KV heads, for a mixer its channels (or heads) and those that it scans,
    else its sizes.
    """
    if kind == "attention":
        return {"query_heads": float(sizes["groups"] * sizes.get("queries", 1)), "kv_heads": float(sizes["groups"])}
    if kind == "mixer":
        size = float(sizes["channels"] if "channels" in sizes else sizes["heads"])
        return {"size": size, "scanned": size * sizes["ssm"]}
    return {name: float(size) for name, size in sizes.items()}


def _fit_phase(samples: Samples) -> PhaseTable:
    points: dict[str, list[tuple[dict[str, float], float]]] = {}
    for (kind, sizes), seen in samples.branches.items():
        points.setdefault(kind, []).append((amounts(kind, dict(sizes)), float(np.median(seen))))
    return PhaseTable(
        outside=float(np.median(samples.outside)),
        blocks={kind: float(np.median(seen)) for kind, seen in samples.blocks.items()},
        branches={kind: fit_curve(measured) for kind, measured in points.items()},
    )


def fit_curve(points: Sequence[tuple[Mapping[str, float], float]]) -> Curve:
    """Fit a monotone, piecewise linear curve to amounts and the seconds that each took.

    Relative errors count, so that small shapes are as good as large ones.
    """
    names = list(points[0][0])
    spans = [
        (name, low, high)
        for name in names
        for low, high in _pairs(sorted({values[name] for values, _ in points}), many=len(names) == 1)
    ]
    rows = [[1.0, *(min(max(values[name], low), high) - low for name, low, high in spans)] for values, _ in points]
    seconds = np.array([took for _, took in points])
    start, *slopes = nonnegative(np.array(rows) / seconds[:, None], np.ones(len(points)))
    return Curve(
        start=float(start),
        segments=tuple(
            Segment(amount=name, low=low, high=high, slope=float(slope))
            for (name, low, high), slope in zip(spans, slopes, strict=True)
        ),
    )


def _pairs(values: list[float], *, many: bool) -> list[tuple[float, float]]:
    knots = values if many or len(values) <= _KNOTS else [values[0], values[len(values) // 2], values[-1]]
    return list(pairwise(knots))


def nonnegative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with coefficients that are not negative, by coordinate descent."""
    scale = np.linalg.norm(matrix, axis=0)
    columns = matrix / scale
    gram, pull = columns.T @ columns, columns.T @ target
    found = np.zeros(len(scale))
    for _ in range(_SWEEPS):
        for index in range(len(found)):
            found[index] = max(0.0, found[index] + pull[index] - gram[index] @ found)
    return np.asarray(found / scale)


def _calibrated(
    table: LatencyTable, model: Model, probes: Sequence[Subnet], samples: Mapping[str, Samples]
) -> LatencyTable:
    """Scale both phases to the original's wall time, and note how well the probes are then predicted."""
    whole = _sums(model, table).total({})
    prefill = float(np.median(samples["prefill"].wall)) / (whole[0] + table.prefill.outside)
    decode = float(np.median(samples["decode"].wall)) / (whole[1] + table.decode.outside)
    table = replace(table, prefill=replace(table.prefill, scale=prefill), decode=replace(table.decode, scale=decode))
    sums = _sums(model, table)
    base = table.figures_of(sums.total({}))
    ratios = []
    for index, subnet in enumerate(probes):
        predicted = table.figures_of(sums.total(subnet))["latency"] / base["latency"]
        took = [
            prefill * _median(samples["prefill"], index, which)
            + decode * table.request.steps * _median(samples["decode"], index, which)
            for which in (0, 1)
        ]
        ratios.append(predicted * took[0] / took[1])
    return replace(table, probes=tuple(ratios))


def _sums(model: Model, table: LatencyTable) -> BlockSum:
    return BlockSum(model, lambda parts: table.block(parts, [0.0] * len(parts)), LatencyTable.WIDTH)


def _median(samples: Samples, probe: int, which: int) -> float:
    return float(np.median([pair[which] for pair in samples.pairs[probe]]))
