"""What the cases and schedulers of the claim are called; the tables need nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A model and how its weights are cut: `layout` is read at `high` and, without its last plane, at `low` bits."""

    model: str
    layout: str
    high: int
    low: int

    @property
    def name(self) -> str:
        """Start of its cells' names."""
        return f"{self.model}-{self.high}to{self.low}"


CASES = (Case("smollm2-135m", "4+1", 5, 4), Case("smollm2-135m", "3+1", 4, 3), Case("gemma-3-270m", "3+1", 4, 3))

SCHEDULERS = {
    "learnt": "attention to the prompt's keys and values",
    "activation": "the same layers without attention",
    "confidence": "a threshold of the likeliest token's probability",
    "random": "a class drawn by its share among the texts learnt from",
}
"""What decides when bits fall, the first being the paper's and the others its ablations."""

TAUGHT = ("learnt", "activation")
"""Those that depend on a seed."""
