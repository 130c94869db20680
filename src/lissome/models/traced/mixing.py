"""Products between values, as an attention makes them, for counting."""

from __future__ import annotations

from dataclasses import dataclass

from lissome.models.mixing import Sizes


@dataclass(frozen=True)
class Term:
    """One product.

    Attributes:
        macs: Multiply-accumulates per unit of the dim, or of all of it.
        dim: Name of the dim whose units it is spread over; empty when it is always whole.
    """

    macs: int
    dim: str = ""


@dataclass(frozen=True)
class Products:
    """All products between values in a branch; see `lissome.models.mixing.Mixing`."""

    terms: tuple[Term, ...]

    def whole(self, sizes: Sizes, tokens: int, *, causal: bool) -> int:
        """Every forward costs the same: the inputs have one size."""
        return sum(term.macs * (sizes[term.dim] if term.dim else 1) for term in self.terms)

    def step(self, sizes: Sizes, length: int) -> int:
        """Nothing: it does not generate."""
        return 0

    def held(self, sizes: Sizes, length: int) -> int:
        """Nothing: it does not generate."""
        return 0
