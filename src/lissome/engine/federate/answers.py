"""Reading the answer to an order: checked against what was asked for, decoded, and placed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lissome.core.errors import FederationError
from lissome.engine.federate.guard import (
    check_finite,
    check_numbers,
    check_scale,
    check_size,
    check_weight,
    largest_answer,
)
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Piece
from lissome.engine.federate.orders import AnswerHead, OrderHead
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program, Report
from lissome.models.space import Subnet


class FailedError(FederationError):
    """A client says that it could not, which breaks no rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenOrder:
    """An order that was sent and not answered yet.

    Attributes:
        client: Who was asked, as it was then.
        address: Where.
        phase: What for.
        head: What the order says.
        subnet: What it is to work on; None is the whole model.
        sent: When, on the clock of the link.
        tries: How often it was sent before, because it was lost on the way.
        lost: Whether the last one was lost.
        supplied: Whether it was sent again with the tensors that the client did not keep.
    """

    client: Profile
    address: str
    phase: Phase
    head: OrderHead
    subnet: Subnet | None
    sent: float = 0.0
    tries: int = 0
    lost: bool = False
    supplied: bool = False


def read_head(order: OpenOrder, parcel: Parcel) -> AnswerHead:
    """Return the head of an answer.

    Raises:
        FederationError: When it answers another order.
        FailedError: When the client says that it could not.
    """
    head = AnswerHead.from_json(parcel.head)
    if head.ticket != order.head.ticket or head.tick != order.head.tick:
        raise FederationError("the answer names another order than the one that it came for")
    if head.error:
        raise FailedError(head.error)
    if head.lacks and order.supplied:
        raise FailedError("it does not keep the tensors that it was sent")
    return head


def largest(order: OpenOrder, program: Program) -> int:
    """Bytes that the answer to an order may have."""
    templates = _layout(order, program).templates(program.tensors)
    return largest_answer(order.phase.up.payload(templates) + order.phase.extra, len(templates))


def read_answer(
    order: OpenOrder, parcel: Parcel, head: AnswerHead, program: Program, *, heaviest: float, staleness: int = 0
) -> tuple[Piece, Report]:
    """Check and decode an answer.

    Args:
        order: What it answers.
        parcel: What came.
        head: Its head.
        program: The server's side of the method.
        heaviest: Weight above which an answer counts no more.
        staleness: Rounds since the order.

    Raises:
        FederationError: When it breaks a rule; says which.
    """
    phase, layout = order.phase, _layout(order, program)
    check_size(parcel.bytes, largest(order, program))
    templates = layout.templates(program.tensors)
    weight, metrics = check_numbers(parcel.numbers)
    if phase.merger is not None:
        check_weight(weight, max(1, order.client.examples))
    tensors = phase.up.decode(parcel.tensors, templates, carried(program, phase, layout) if phase.up.delta else None)
    check_finite(tensors)
    check_scale(tensors, lambda: layout.cut(program.tensors))
    report = Report(
        client=order.client.name, weight=min(weight, heaviest), metrics=metrics, subnet=order.subnet,
        staleness=staleness, notes=dict(head.notes),
    )  # fmt: skip
    program.accept(phase, report)
    counted = program.weigh(phase, report) / (1 + staleness) ** 0.5
    return Piece(client=order.client.name, weight=counted, layout=layout, tensors=tensors), report


def _layout(order: OpenOrder, program: Program) -> Layout:
    """What comes back."""
    if order.phase.merger is None:
        return Layout({})
    return program.returns(order.phase, order.head.round, order.client, order.subnet)


def carried(program: Program, phase: Phase, layout: Layout) -> dict[str, Tensor]:
    """What a client has after an order: the cut tensors as the order's codec carries them."""
    sent = layout.cut(program.tensors)
    return phase.down.decode(phase.down.encode(sent), sent)
