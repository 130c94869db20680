"""What the verbs of lissome answer: typed, and JSON-able with keys that do not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lissome.core.budget import TERMS, Verdict
from lissome.core.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric of one model, and how it compares with the original.

    Attributes:
        metric: The metric.
        ratio: Value over the original's value, from paired samples where there are any; None for the original.
        ratio_low: Lower end of the 95 % interval of `ratio`, when known.
        ratio_high: Upper end of it.
    """

    metric: Metric
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figure as JSON-able fields."""
        ratios = {"ratio": self.ratio, "ratio_low": self.ratio_low, "ratio_high": self.ratio_high}
        return {**self.metric.to_json(), **{key: value for key, value in ratios.items() if value is not None}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Figure:
        """Rebuild a figure from `to_json`."""
        ratios = {key: fields.get(key) for key in ("ratio", "ratio_low", "ratio_high")}
        return cls(metric=Metric.from_json({k: v for k, v in fields.items() if k not in ratios}), **ratios)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of a result table: its name and its figures by metric name."""

    name: str
    figures: Mapping[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-able fields."""
        return {"name": self.name, **{key: figure.to_json() for key, figure in self.figures.items()}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Row:
        """Rebuild a row from `to_json`."""
        figures = {key: Figure.from_json(value) for key, value in fields.items() if isinstance(value, Mapping)}
        return cls(name=fields["name"], figures=figures)


def whole(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures by budget term with counts and bytes as whole numbers."""
    return {name: round(value) if TERMS[name].unit in ("count", "bytes") else value for name, value in figures.items()}


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON-able fields."""
    return {
        "term": str(verdict.term),
        "ok": verdict.ok,
        "got": verdict.got,
        "limit": verdict.limit,
        "unit": verdict.term.kind.unit,
    }


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What a job would do.

    Attributes:
        model: Name of the model.
        recipe: Methods with their settings.
        budget: The bounds.
        original: Figures of the original by budget term.
        predicted: Figures expected of the result; no others can be told before the work.
        at_most: Those of them that are only bounds: a cost will be there or below, a speed there or above.
        reachable: Smallest figures that removal can reach.
        provenance: How each term comes about.
        peak_memory: Predicted peak bytes above the imported libraries.
        memory_parts: What that peak is made of, in bytes.
        seconds: Predicted time of the job, good to a factor of about two; None when a method cannot say.
        tags: State of the model after the last step.
        notes: Lines for a person.
    """

    model: str
    recipe: list[dict[str, Any]]
    budget: str
    original: Mapping[str, float]
    predicted: Mapping[str, float]
    reachable: Mapping[str, float]
    provenance: Mapping[str, str]
    peak_memory: float
    memory_parts: Mapping[str, float]
    seconds: float | None
    tags: tuple[str, ...]
    notes: tuple[str, ...] = ()
    at_most: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able fields."""
        figures = {name: whole(getattr(self, name)) for name in ("original", "predicted", "reachable")}
        lists = {name: list(getattr(self, name)) for name in ("tags", "notes", "at_most")}
        parts = {name: round(value) for name, value in self.memory_parts.items()}
        return {**vars(self), **figures, **lists, "peak_memory": round(self.peak_memory), "memory_parts": parts}


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """Models side by side, the original first.

    Attributes:
        rows: The models.
        verdicts: How each bound of the budget ended.
        notes: Lines for a person.
        versions: Versions of the libraries, and the machine.
        seconds: How long it took.
    """

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON-able fields."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "verdicts": [verdict_json(verdict) for verdict in self.verdicts],
            "notes": list(self.notes),
            "versions": dict(self.versions),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class FitReport(TableReport):
    """The result of a job.

    Attributes:
        out: The artifact's folder.
        sha256: Hash of its weights' file.
        ok: Whether every bound holds.
    """

    out: Path
    sha256: str

    @property
    def ok(self) -> bool:
        """Whether every bound holds."""
        return all(verdict.ok for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able fields."""
        return {"out": str(self.out), "sha256": self.sha256, "ok": self.ok, **super().to_json()}


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """Text that a model wrote.

    Attributes:
        text: The new text.
        tokens: Number of new tokens.
        prefill: Prompt tokens per second, up to the first new token.
        decode: New tokens per second after the first one; None when no other was written.
        bits: Mean bits of weights by which new tokens were computed, of nested weights; None of others.
    """

    text: str
    tokens: int
    prefill: float
    decode: float | None
    bits: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON-able fields."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """Facts about a model or a device.

    Attributes:
        name: What it is called.
        kind: ``"model"`` or ``"device"``.
        facts: Whatever there is to say, JSON-able.
        figures: Counted figures by budget term.
    """

    name: str
    kind: str
    facts: Mapping[str, Any]
    figures: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-able fields."""
        return {"name": self.name, "kind": self.kind, **self.facts, "figures": whole(self.figures)}


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What a search found, in short; the whole of it lies in the folder.

    Attributes:
        out: The search's folder.
        study: Where the trials are: a file or a URL, for Optuna and its dashboard.
        model: Name of what was searched.
        objectives: Figures that were made better, the most important first.
        bounds: Bounds in the figures' units.
        evaluated: How many Subnets.
        failed: How many gave no figures, by the reason.
        front: Points that hold every bound and that nothing beats: number, figures, selection, test, by, subnet.
        chosen: The point that is chosen; None when nothing holds the bounds, or there is no bound to choose by.
        original: Figures of the original, quality on the search split like that of points; none where it broke a bound.
        whole: The whole network as a point; None where it was not evaluated.
        hypervolume: What the front leaves behind it, up to its own worst figures and a tenth further.
        provenance: How each figure came about.
        splits: What the splits are.
        notes: Lines for a person.
        seconds: How long it took.
    """

    out: Path
    study: str
    model: str
    objectives: tuple[str, ...]
    bounds: tuple[str, ...]
    evaluated: int
    failed: Mapping[str, int]
    front: tuple[Mapping[str, Any], ...]
    chosen: Mapping[str, Any] | None
    original: Mapping[str, float]
    whole: Mapping[str, Any] | None
    hypervolume: float
    provenance: Mapping[str, str]
    splits: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able fields."""
        lists = {name: list(getattr(self, name)) for name in ("objectives", "bounds", "front", "notes")}
        return {**vars(self), "out": str(self.out), **lists}


@dataclass(frozen=True, kw_only=True)
class SupernetReport:
    """A super-network that was made.

    Attributes:
        out: The elastic artifact's folder.
        sha256: Hash of its weights' file.
        model: Name of the model that it was made from.
        method: Name of the method that made it.
        axes: Number of decisions.
        log10_subnets: Logarithm of the number of Subnets.
        points: The model as it was given, and the largest, the middle and the smallest Subnet: step, change, subnet,
            figures, and quality on the examples to choose by.
        data: What it was trained on.
        batch_norms: Whether it has batch norms; then each of `points` was judged with statistics of its own.
        seconds: How long it took.
    """

    out: Path
    sha256: str
    model: str
    method: str
    axes: int
    log10_subnets: float
    points: tuple[Mapping[str, Any], ...]
    data: Mapping[str, Any]
    batch_norms: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able fields."""
        return {**vars(self), "out": str(self.out), "points": list(self.points)}


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """A model that was cut out of a super-network.

    Attributes:
        out: The model's folder.
        artifact: The super-network's.
        number: The point that was taken, by its place in the order of proposals; None where nothing was searched.
        figures: What it was chosen by: costs, and quality on the examples to choose by.
        test: Quality on the test split, where the search reported it.
        original: Figures of the whole network.
        subnet: The choice for every axis.
        seconds: How long it took.
    """

    out: Path
    artifact: Path
    number: int | None
    figures: Mapping[str, float]
    test: Mapping[str, float]
    original: Mapping[str, float]
    subnet: Mapping[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able fields."""
        fields = {name: value for name, value in vars(self).items() if name != "out"}
        return {**fields, "path": str(self.out), "artifact": str(self.artifact)}
