"""Products between values, as an attention makes them, and of weights with all channels, for counting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lissome.models.mixing import Sizes


@dataclass(frozen=True)
class Term:
    """One product.

    Attributes:
        macs: Multiply-accumulates for one unit of each of the dims.
        dims: Names of the dims whose units are multiplied with each other; none when it is always whole.
    """

    macs: int
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Products:
    """All products between values in a branch; see `lissome.models.mixing.Mixing`."""

    terms: tuple[Term, ...]

    def whole(self, sizes: Sizes, tokens: int, *, causal: bool) -> int:
        """Every forward costs the same: the inputs have one size."""
        return sum(term.macs * math.prod(sizes[dim] for dim in term.dims) for term in self.terms)

    def step(self, sizes: Sizes, length: int) -> int:
        """Nothing: it does not generate."""
        return 0

    def held(self, sizes: Sizes, length: int) -> int:
        """Nothing: it does not generate."""
        return 0
