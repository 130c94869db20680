"""One phase of a round: orders out, answers in, each checked before it is merged.

Orders are made one after the other, clients of one Subnet together, so that the server holds one slice at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lissome.core.errors import FederationError, LissomeError
from lissome.engine.federate.audit import Audit, Event
from lissome.engine.federate.guard import check_finite, check_numbers, check_size
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.ledger import Ledger
from lissome.engine.federate.link import Incoming, Link, Outgoing
from lissome.engine.federate.members import Members
from lissome.engine.federate.merge import Overlap, Piece
from lissome.engine.federate.orders import STATIC, AnswerHead, OrderHead
from lissome.engine.federate.parcel import PROFILE, Parcel
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program, Report
from lissome.engine.federate.shelf import Intake
from lissome.engine.train import derive
from lissome.models.space import Subnet

if TYPE_CHECKING:
    from lissome.engine.federate.rounds import RoundsConfig

_REMEMBERED = 100  # rounds after which an answer is no longer known as late, and counts as one to no order

PHASES = 100
"""Most phases of a round; ticks count in steps of it."""


@dataclass(frozen=True, eq=False)
class _Open:
    """An order that was sent and not answered yet."""

    client: str
    address: str
    phase: Phase
    round: int
    head: OrderHead
    subnet: Subnet | None
    resent: bool = False


class Exchange:
    """Sends orders and takes answers in, for one federation.

    Args:
        program: The server's side of the method.
        link: How clients are reached.
        members: Who they are.
        ledger: Where messages are counted.
        audit: Where answers that are not used are written down.
        folder: For answers that have to wait.
        seed: Of all that is drawn.
        config: Settings of the loop.
        name: Of the federation; clients of another one refuse.
    """

    def __init__(  # noqa: PLR0913  the parts of one federation, all by name
        self,
        program: Program,
        link: Link,
        members: Members,
        ledger: Ledger,
        audit: Audit,
        *,
        folder: Path,
        seed: int,
        config: RoundsConfig,
        name: str = "",
    ) -> None:
        self._program, self._link, self._members = program, link, members
        self._ledger, self._audit, self._folder = ledger, audit, folder
        self._seed, self._config, self._name = seed, config, name
        self._open: dict[str, _Open] = {}
        self._profiles: dict[str, str] = {}
        self._static: dict[str, str] = {}
        self._count = 0
        self._now: _Phase | None = None

    def roll_call(self, round: int, *, wait: float = 0.0, wanted: int = 0) -> None:
        """Ask those who are new who they are.

        Args:
            round: Number of the round.
            wait: Most seconds to wait for `wanted` clients.
            wanted: How many clients to wait for; 0 does not wait, and who answers later takes part later.
        """
        limit = self._link.now() + wait
        while True:
            new = self._members.see(self._link.addresses())
            self._link.send([self._profile_order(address, round) for address in new])
            while wanted and self._profiles:
                incoming = self._link.receive(limit)
                if incoming is None:
                    break
                self._take(incoming, round)
            if len(self._members.present()) >= wanted or self._link.now() >= limit:
                return
            self._link.pause(min(1.0, limit - self._link.now()))

    def phase(
        self,
        phase: Phase,
        round: int,
        index: int,
        clients: Sequence[Profile],
        subnets: Mapping[str, Subnet | None],
        *,
        enough: int,
    ) -> tuple[dict[str, Tensor], list[Report]]:
        """Run one phase.

        Args:
            phase: What is done.
            round: Number of the round.
            index: Number of the phase in it.
            clients: Who is asked.
            subnets: What each works on.
            enough: Answers after which the phase ends.

        Returns:
            What was merged (empty without a merger), and a report for each answer that was used, by client name.
        """
        merger = phase.merger or Overlap
        intake = Intake(merger(self._program.tensors), [one.name for one in clients], self._folder)
        self._now = _Phase(phase, round, round * PHASES + index, intake)
        try:
            limit = self._link.now() + self._config.deadline if self._config.deadline is not None else float("inf")
            self._send(self._now, clients, subnets)
            while len(self._now.reports) < enough and self._waiting():
                incoming = self._link.receive(limit)
                if incoming is None:
                    break
                self._take(incoming, round)
            self._silent(round)
            merged = intake.result() if phase.merger is not None else {}
            for client, reason in intake.refused.items():
                self._audit.note("rejected", round=round, client=client, action=phase.action, reason=reason)
                self._now.reports.pop(client, None)
            return merged, [self._now.reports[name] for name in sorted(self._now.reports)]
        finally:
            self._now = None
            intake.close()

    def _waiting(self) -> bool:
        return any(self._is_now(order) for order in self._open.values())

    def _send(self, now: _Phase, clients: Sequence[Profile], subnets: Mapping[str, Subnet | None]) -> None:
        """Send orders one by one, those of one Subnet after each other, so that they share one encoded slice."""
        phase = now.phase
        groups: dict[Subnet | None, list[Profile]] = {}
        for client in clients:
            groups.setdefault(subnets.get(client.name), []).append(client)
        for subnet, members in groups.items():
            shared: dict[tuple[str, ...], Mapping[str, Tensor]] = {}
            for client in members:
                layout = self._program.layout(phase, client, subnet) if phase.sends else Layout({})
                key = (*layout.keys, *layout.keys.values())
                if key not in shared:
                    shared = {key: phase.down.encode(layout.cut(self._program.tensors))}
                address, head = self._members.address(client.name), self._head(now, client, subnet)
                order = _Open(client.name, address, phase, now.round, head, subnet)
                self._dispatch(order, shared[key], client)

    def _head(self, now: _Phase, client: Profile, subnet: Subnet | None) -> OrderHead:
        self._count += 1
        phase, number, tick = now.phase, now.round, now.tick
        tag, _ = self._program.static(client, subnet)
        return OrderHead(
            action=phase.action, ticket=f"{number}.{tick}.{client.name}.{self._count}", round=number, tick=tick,
            seed=derive(self._seed, "client", client.name, tick),
            subnet=subnet.to_json() if subnet is not None else None,
            settings=dict(self._program.settings(phase, number, client)),
            down=str(phase.down), up=str(phase.up), static=tag, federation=self._name,
        )  # fmt: skip

    def _dispatch(self, order: _Open, wire: Mapping[str, Tensor], client: Profile) -> None:
        head = order.head
        if head.static and self._static.get(order.client) != head.static:
            _, static = self._program.static(client, order.subnet)
            wire = {**wire, **{STATIC + name: value.contiguous() for name, value in static.items()}}
            self._static[order.client] = head.static
        parcel = Parcel(kind=order.phase.kind, head=head.to_json(), tensors=wire)
        self._open[head.ticket] = order
        self._ledger.note(parcel, round=order.round, client=order.client, action=head.action, direction="down")
        self._link.send([Outgoing(address=order.address, ticket=head.ticket, parcel=parcel)])

    def _profile_order(self, address: str, round: int) -> Outgoing:
        self._members.asked(address)
        self._count += 1
        ticket = f"{PROFILE}.{self._count}"
        head = OrderHead(action=PROFILE, ticket=ticket, round=round, tick=round * PHASES, seed=0, federation=self._name)
        parcel = Parcel(kind="query", head=head.to_json())
        self._profiles[ticket] = address
        self._ledger.note(parcel, round=round, client=address, action=PROFILE, direction="down")
        return Outgoing(address=address, ticket=ticket, parcel=parcel)

    def _take(self, incoming: Incoming, round: int) -> None:
        """Take one answer in, whatever it is; nothing in it may end the round."""
        if self._profiles.get(incoming.ticket) == incoming.address:
            del self._profiles[incoming.ticket]
            self._join(incoming, round)
            return
        order = self._open.get(incoming.ticket)
        if order is None or order.address != incoming.address:
            name = self._members.name(incoming.address)
            reason = "an answer to no order, or the second one to the same"
            self._count_up(incoming, round, name, "?", used=False)
            self._audit.note("rejected", round=round, client=name, action="?", reason=reason)
            return
        del self._open[incoming.ticket]
        try:
            self._accept(order, incoming)
        except (FederationError, LissomeError) as error:
            event: Event = "failed" if incoming.parcel is None or isinstance(error, _FailedError) else "rejected"
            self._count_up(incoming, round, order.client, order.phase.action, used=False)
            self._audit.note(event, round=round, client=order.client, action=order.phase.action, reason=str(error))
            if self._now is not None and self._is_now(order):
                self._now.intake.gone(order.client)

    def _accept(self, order: _Open, incoming: Incoming) -> None:
        parcel, now = incoming.parcel, self._now
        if parcel is None:
            raise _FailedError(incoming.error)
        head = AnswerHead.from_json(parcel.head)
        if head.ticket != order.head.ticket or head.tick != order.head.tick:
            raise FederationError("the answer names another order than the one that it came for")
        if head.lacks and self._is_now(order) and not order.resent:
            self._resend(order)
            return
        if head.error or head.lacks:
            raise _FailedError(head.error or "it does not keep the tensors that it was sent")
        staleness = 0 if self._is_now(order) else max(1, (now.round if now else order.round) - order.round)
        usable = now is not None and now.phase.action == order.phase.action and self._config.late == "use"
        if staleness and not usable:
            self._count_up(incoming, order.round, order.client, order.phase.action, used=False)
            self._audit.note(
                "late", round=order.round, client=order.client, action=order.phase.action, reason="after its phase"
            )
            return
        piece, report = self._read(order, parcel, head, staleness)
        self._count_up(incoming, order.round, order.client, order.phase.action, used=True)
        assert now is not None
        if staleness:
            now.intake.add_stale(piece)
        else:
            now.reports[order.client] = report
            if order.phase.merger is not None:
                now.intake.add(piece)

    def _read(self, order: _Open, parcel: Parcel, head: AnswerHead, staleness: int) -> tuple[Piece, Report]:
        """Check and decode an answer."""
        phase, program = order.phase, self._program
        profile = next((one for one in self._members.present() if one.name == order.client), None)
        if profile is None:
            raise FederationError("the client is not there any more")
        layout = program.returns(phase, profile, order.subnet) if phase.merger is not None else Layout({})
        templates = layout.templates(program.tensors)
        check_size(parcel, phase.up.payload(templates) + phase.extra, len(templates))
        most = self._members.largest_weight(order.client)
        weight, metrics = check_numbers(parcel.numbers, most)
        tensors = phase.up.decode(parcel.tensors, templates, self._base(phase, layout) if phase.up.delta else None)
        check_finite(tensors)
        report = Report(
            client=order.client, weight=weight, metrics=metrics, subnet=order.subnet, staleness=staleness,
            notes=dict(head.notes),
        )  # fmt: skip
        counted = program.weigh(phase, report) / (1 + staleness) ** 0.5
        return Piece(client=order.client, weight=counted, layout=layout, tensors=tensors), report

    def _base(self, phase: Phase, layout: Layout) -> dict[str, Tensor]:
        """What a client has after an order: the cut tensors as the order's codec carries them."""
        sent = layout.cut(self._program.tensors)
        return phase.down.decode(phase.down.encode(sent), sent)

    def _resend(self, order: _Open) -> None:
        """Send an order again, with the tensors that its client was believed to keep."""
        self._static.pop(order.client, None)
        profile = next(one for one in self._members.present() if one.name == order.client)
        layout = self._program.layout(order.phase, profile, order.subnet) if order.phase.sends else Layout({})
        wire = order.phase.down.encode(layout.cut(self._program.tensors))
        self._dispatch(replace(order, resent=True), wire, profile)

    def _join(self, incoming: Incoming, round: int) -> None:
        if incoming.parcel is None:
            self._audit.note("refused", round=round, client=incoming.address, action=PROFILE, reason=incoming.error)
            return
        self._members.join(incoming.address, incoming.parcel, round)
        name = self._members.name(incoming.address)
        self._count_up(incoming, round, name, PROFILE, used=True)

    def _silent(self, round: int) -> None:
        """Write down who has not answered; what they send later is recognised as late."""
        for order in self._open.values():
            if self._is_now(order):
                self._audit.note(
                    "silent", round=round, client=order.client, action=order.phase.action,
                    reason="no answer before the phase ended",
                )  # fmt: skip
        old = [ticket for ticket, order in self._open.items() if order.round < round - _REMEMBERED]
        for ticket in old:
            del self._open[ticket]

    def _is_now(self, order: _Open) -> bool:
        return self._now is not None and order.head.tick == self._now.tick

    def _count_up(self, incoming: Incoming, round: int, client: str, action: str, *, used: bool) -> None:
        if incoming.parcel is not None:
            self._ledger.note(incoming.parcel, round=round, client=client, action=action, direction="up", used=used)


@dataclass(eq=False)
class _Phase:
    """The phase that is running."""

    phase: Phase
    round: int
    tick: int
    intake: Intake

    def __post_init__(self) -> None:
        self.reports: dict[str, Report] = {}


class _FailedError(FederationError):
    """A client says that it could not, which breaks no rule."""
