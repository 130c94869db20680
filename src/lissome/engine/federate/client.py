"""The client's side of the exchange: checks an order, lets the method work on it, answers; then keeps its state.

What a client accepts is capped: an order that is too large, that has other tensors than the method expects, that holds
NaN, or that comes from another federation is refused. State is kept last, so that work that fails leaves it as it was.
Why it fails is for whoever runs the client: of an error that may speak of its files or its data, the server is told the
kind alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lissome.core.errors import BudgetError, DataError, FederationError, LissomeError, NumericsError, SubnetError
from lissome.core.events import EventStream
from lissome.engine.federate.audit import printable
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.guard import check_finite
from lissome.engine.federate.orders import STATIC, AnswerHead, OrderHead
from lissome.engine.federate.parcel import PROFILE, WEIGHT, Parcel
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.store import ClientStore, Kept

LARGEST = 8 << 30
"""Bytes of an order above which a client refuses it by default."""

_LEFT = "left/"  # what a codec left out, among the kept tensors
_OPEN = (BudgetError, FederationError, NumericsError, SubnetError)  # are about what the server sent or was told


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """An order as a method's client sees it.

    Attributes:
        head: What it says.
        tensors: Global tensors, cut for this client, by global name.
        static: Tensors that were sent once, by global name.
        kept: What this client kept after its last order.
    """

    head: OrderHead
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    static: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a method's client answers.

    Attributes:
        tensors: By global name; most methods answer with what came, changed.
        weight: Number of examples behind it.
        metrics: Numbers by name.
        keep: What it keeps for its next order; None leaves what it has.
        notes: What it says to the method's server; JSON-able.
    """

    weight: float
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    keep: Kept | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


class ClientProgram(Protocol):
    """The client's side of a method."""

    def profile(self) -> Profile:
        """Say who this client is."""

    def templates(self, head: OrderHead) -> Mapping[str, Tensor] | None:
        """Return shapes and types of the tensors that it accepts with such an order; None accepts none."""

    def act(self, work: Work) -> Answer:
        """Do what the order says."""


class Worker:
    """Answers orders for one client.

    Args:
        program: The method's client.
        store: Its disk.
        federation: Name of the federation that it belongs to; empty: any.
        largest: Bytes of an order above which it refuses.

    Attributes:
        events: Where it is said what was asked and how much was sent, for whoever runs the client.
        threads: That it computes with; with more than one, sums have another order than on other back ends.
        discreet: Whether the server is told no more of an error than `tellable` says.
    """

    def __init__(
        self, program: ClientProgram, store: ClientStore, *, federation: str = "", largest: int = LARGEST
    ) -> None:
        self.events, self.threads, self.discreet = EventStream(), 1, True
        self._program, self._store = program, store
        self._federation, self._largest = federation, largest

    def handle(self, parcel: Parcel) -> Parcel:
        """Answer one order; what is wrong with it, or fails, becomes an answer that says so.

        Raises:
            FederationError: For what nobody foresaw; says its kind.
        """
        head = OrderHead.from_json(parcel.head)
        said = f"{head.action} of round {head.round}"
        try:
            with with_threads(self.threads):
                answer = self._answer(parcel, head)
            self.events.message(f"{said}: {answer.bytes:,} bytes sent, {answer.payload:,} of them tensors")
            return answer
        except LissomeError as error:
            self.events.message(f"{said} refused: {error}")
            told = tellable(error) if self.discreet else str(error)
            failed = AnswerHead(ticket=head.ticket, tick=head.tick, error=printable(told))
            return Parcel(kind=parcel.kind, head=failed.to_json())
        except Exception as error:
            self.events.message(f"{said} failed: {type(error).__name__}: {error}")
            if not self.discreet:
                raise
            raise FederationError(tellable(error)) from error

    def check_size(self, size: int) -> None:
        """Refuse an order of more bytes than this client takes; where it comes as bytes, before it is decoded.

        Raises:
            FederationError: Says both sizes.
        """
        if size > self._largest:
            raise FederationError(f"the order has {size} bytes, this client takes {self._largest}")

    def _answer(self, parcel: Parcel, head: OrderHead) -> Parcel:
        if self._federation and head.federation and head.federation != self._federation:
            raise FederationError(f"this client belongs to {self._federation}, the order to {head.federation}")
        self.check_size(parcel.bytes)
        if head.action == PROFILE:
            profile = replace(self._program.profile(), token=self._store.token())
            answer = AnswerHead(ticket=head.ticket, tick=head.tick, notes=profile.to_json())
            return Parcel(kind=parcel.kind, head=answer.to_json())
        static = self._static(parcel, head)
        if static is None:
            lacking = AnswerHead(ticket=head.ticket, tick=head.tick, lacks=True)
            return Parcel(kind=parcel.kind, head=lacking.to_json())
        kept = self._store.before(head.tick)
        for path in kept.damaged:
            self.events.message(f"what was kept in {path} is damaged; this client goes on from what it kept before")
        work = Work(head=head, tensors=self._tensors(parcel, head), static=static, kept=kept)
        return self._reply(parcel, work, self._program.act(work))

    def _tensors(self, parcel: Parcel, head: OrderHead) -> dict[str, Tensor]:
        wire = {name: value for name, value in parcel.tensors.items() if not name.startswith(STATIC)}
        if not wire:
            return {}
        templates = self._program.templates(head)
        if templates is None:
            raise FederationError(f"{head.action} takes no tensors, {len(wire)} came")
        tensors = Codec.parse(head.down).decode(wire, templates)
        check_finite(tensors)
        return tensors

    def _static(self, parcel: Parcel, head: OrderHead) -> dict[str, Tensor] | None:
        """Tensors that stay: those that came with the order, else those that were kept; None when they are lacking."""
        came = {name.removeprefix(STATIC): value for name, value in parcel.tensors.items() if name.startswith(STATIC)}
        if not head.static:
            return {}
        if came:
            check_finite(came)
            self._store.keep_static(head.static, came)
            return came
        return self._store.static(head.static)

    def _reply(self, parcel: Parcel, work: Work, answer: Answer) -> Parcel:
        codec, keep = Codec.parse(work.head.up), answer.keep
        tensors = dict(answer.tensors)
        base = {name: work.tensors[name] for name in tensors if name in work.tensors}
        if codec.feedback:
            tensors = {name: value + _left(work.kept, name, value) for name, value in tensors.items()}
        wire = codec.encode(tensors, base)
        if codec.feedback:
            arrived = codec.decode(wire, tensors, base)
            left = {_LEFT + name: value.float() - arrived[name].float() for name, value in tensors.items()}
            held = keep if keep is not None else work.kept
            keep = Kept({**{n: t for n, t in held.tensors.items() if not n.startswith(_LEFT)}, **left}, held.facts)
        head = AnswerHead(
            ticket=work.head.ticket, tick=work.head.tick, static=work.head.static, notes=dict(answer.notes),
            damaged=len(work.kept.damaged),
        )  # fmt: skip
        numbers = {WEIGHT: answer.weight, **answer.metrics}
        result = Parcel(kind=parcel.kind, head=head.to_json(), tensors=wire, numbers=numbers)
        if keep is not None:
            self._store.keep(work.head.tick, keep)
        return result


def tellable(error: Exception) -> str:
    """Return what a server may know of an error at a client: no path, and nothing of its data; its own log has all."""
    if isinstance(error, _OPEN):
        return str(error)
    what = "its data cannot be used" if isinstance(error, DataError) else f"it failed ({type(error).__name__})"
    return f"{what}; its own log says why"


def _left(kept: Kept, name: str, value: Tensor) -> Tensor:
    """What was left out of the last answer; nothing when the tensor had another shape then."""
    left = kept.tensors.get(_LEFT + name)
    return left if left is not None and left.shape == value.shape else torch.zeros(())


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside the block; with one, sums have the same order on every back end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
