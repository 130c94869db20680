"""One operation that ran, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lissome.models.traced.atoms import Mark, varying

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


def gathered_in(recorder: Recorder, op: Operation, mark: Mark, dims: Set[int]) -> Mark | None:
    """Let atoms along some dimensions (counted from the last, −1) go together.

    Returns:
        The mark without those dimensions; None where it has no other: every channel meets every other in the operation,
        and none can go.
    """
    over, reason = varying(mark) & dims, f"{op.name.removeprefix('native_')} over them in {recorder.place()}"
    if over == varying(mark):
        recorder.seen.atoms.freeze(mark, reason)
        return None
    for dim in over:
        mark = recorder.seen.atoms.collapse(mark, mark.ndim + dim, reason)
    return mark
