"""What an artifact folder tells about itself, as plain values for tables and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lissome.core.budget import TERMS
from lissome.core.errors import ArtifactError
from lissome.core.files import read_json
from lissome.core.manifest import MANIFEST, Manifest, read_curve, read_manifest
from lissome.core.method import CurvePoint
from lissome.core.metrics import Metric
from lissome.report.front import Front, read_front
from lissome.report.rounds import Bytes, bytes_of
from lissome.report.rows import Row

RESULT = "result.json"


def unit_of(name: str) -> str:
    """Unit of a budget term; empty for anything else (a perplexity has none)."""
    return TERMS[name].unit if name in TERMS else ""


def read_result(folder: Path) -> dict[str, Any]:
    """Return the result table that `fit` left in an artifact; empty when there is none.

    Raises:
        ArtifactError: When the file is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return {}
    fields = read_json(path)
    if not isinstance(fields, dict) or not all(isinstance(row, dict) for row in fields.get("rows", [])):
        raise ArtifactError(f"{path} is not a result table; restore it, or run the same fit again.")
    return fields


def _check_artifact(folder: Path) -> None:
    """Say what is missing before a file of it is."""
    if not (folder / MANIFEST).exists():
        what = "a folder" if not folder.is_dir() else "an artifact"
        raise ArtifactError(f"{folder} is not {what} that lissome wrote: {MANIFEST} does not exist there.")


def explanation(folder: Path) -> dict[str, Any]:
    """Return an artifact's manifest and curve as JSON-able fields.

    Raises:
        ArtifactError: When one of them is damaged or from a newer version.
    """
    _check_artifact(folder)
    curve = [point.to_json() for point in read_curve(folder)]
    return {"manifest": read_manifest(folder).to_json(), "curve": curve}


def step_of(folder: Path, step: int) -> dict[str, Any]:
    """Return one step of an artifact's curve as JSON-able fields.

    Raises:
        ArtifactError: When the artifact is damaged, or has no such step.
    """
    _check_artifact(folder)
    read_manifest(folder)
    points = {point.step: point for point in read_curve(folder)}
    if step not in points:
        known = f"steps {min(points)} to {max(points)}" if points else "no curve"
        raise ArtifactError(f"{folder} has no step {step}; it has {known}.")
    return points[step].to_json()


def rows_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the result rows of a lineage: what the first step got against what the last one gave."""
    if not manifest.lineage:
        return []
    before, after = manifest.lineage[0].before, manifest.lineage[-1].after
    return [{"name": manifest.base.name, **_figures(before)}, {"name": manifest.name, **_figures(after, before)}]


def _figures(metrics: Sequence[Metric], base: Sequence[Metric] = ()) -> dict[str, Mapping[str, Any]]:
    values = {metric.name: metric.value for metric in base}
    return {
        metric.name: metric.to_json()
        | ({"ratio": metric.value / values[metric.name]} if values.get(metric.name) else {})
        for metric in metrics
    }


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Everything that the page shows, as plain values.

    Attributes:
        manifest: The artifact's manifest.
        curve: Every step of the run, from the original on.
        rows: Result rows, the original first; see `lissome.report.rows`.
        verdicts: How each bound of the budget ended.
        notes: Lines for a person.
        path: How the user calls the artifact's folder, for the command that extracts a step.
        federation: The stored result of a federation; empty for others.
        sent: Bytes of its messages by round.
        front: Of a super-network, what a search of it found.
        batch_norms: Of a super-network, whether it has batch norms.
    """

    manifest: Manifest
    curve: tuple[CurvePoint, ...] = ()
    rows: Sequence[Row] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    path: str = "ARTIFACT"
    federation: Mapping[str, Any] = field(default_factory=dict)
    sent: Bytes = field(default_factory=dict)
    front: Front | None = None
    batch_norms: bool = False


def read_page(folder: Path) -> PageData:
    """Collect what an artifact folder knows of itself.

    Raises:
        ArtifactError: When its manifest or its curve is missing, damaged or from a newer version.
    """
    _check_artifact(folder)
    manifest = read_manifest(folder)
    result = read_result(folder)
    return PageData(
        manifest=manifest,
        curve=read_curve(folder),
        rows=result.get("rows") or rows_of(manifest),
        verdicts=result.get("verdicts", ()),
        notes=result.get("notes", ()),
        path=str(folder),
        federation=result if "rounds" in result else {},
        sent=_sent(folder),
        front=read_front(folder, manifest),
        batch_norms=bool(result.get("batch_norms")),
    )


def _sent(folder: Path) -> Bytes:
    ledger = folder / "ledger.csv"
    return bytes_of(ledger.read_text(encoding="utf-8", errors="replace")) if ledger.is_file() else {}
