"""Typed results: a number never travels without its unit, its spread and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lissome.core.typed import as_json, from_json

Better = Literal["lower", "higher"]
Provenance = Literal["counted", "measured", "simulated", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured or counted quantity.

    Attributes:
        name: Short stable key, e.g. ``"ppl"`` or ``"latency"``.
        value: The point estimate, in `unit`.
        unit: ``"s"``, ``"bytes"``, ``"tokens/s"``, ``"count"``, ``"nats"`` …; empty for a plain ratio.
        better: Which direction is an improvement.
        se: Standard error of `value`, when it is known.
        low: Lower end of the 95 % interval, when known.
        high: Upper end of the 95 % interval, when known.
        n: Number of samples behind the value.
        provenance: How the number came about.
    """

    name: str
    value: float
    unit: str = ""
    better: Better = "lower"
    se: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    provenance: Provenance = "measured"

    def to_json(self) -> dict[str, Any]:
        """Return the metric as JSON-able fields, leaving out what is unknown."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], where: str = "metric") -> Metric:
        """Rebuild a metric from `to_json`.

        Raises:
            ArtifactError: When a field is unknown, missing or of another type.
        """
        return from_json(cls, fields, where)
