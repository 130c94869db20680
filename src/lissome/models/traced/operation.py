"""One operation that ran, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lissome.models.traced.atoms import Mark

if TYPE_CHECKING:
    from lissome.models.traced.recorder import Recorder

Marks = tuple[Mark, ...]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation that ran.

    Attributes:
        name: What it is, without its overload.
        call: Does it again.
        args: What it takes.
        kwargs: What it takes by name.
        given: The tensors that it gave.
        pointwise: Whether torch says that it treats every element alike.
    """

    name: str
    call: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    given: list[Tensor]
    pointwise: bool

    @property
    def taken(self) -> list[Tensor]:
        """All tensors that it takes."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]


Rule = Callable[["Recorder", Operation], list[Marks]]


def raised(mark: Mark, rank: int) -> Mark:
    """Return a mark with as many dimensions as wanted, new ones first."""
    return mark.view(*[1] * (rank - mark.ndim), *mark.shape)
