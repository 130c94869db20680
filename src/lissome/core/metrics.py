"""Typed results: a number never travels without its unit, its spread and which way is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Metric:
        """Rebuild a metric from `to_json`."""
        return cls(**fields)
