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
from lissome.core.seeds import derive
from lissome.engine.federate.answers import FailedError, OpenOrder, largest, read_answer, read_head
from lissome.engine.federate.audit import Audit, Event
from lissome.engine.federate.guard import largest_answer
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.ledger import Ledger
from lissome.engine.federate.lengths import Lengths
from lissome.engine.federate.link import Incoming, Link, Outgoing
from lissome.engine.federate.members import Members
from lissome.engine.federate.merge import Overlap
from lissome.engine.federate.orders import PHASES, STATIC, OrderHead
from lissome.engine.federate.parcel import PROFILE, Parcel
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program, Report
from lissome.engine.federate.shelf import Intake
from lissome.models.space import Subnet

if TYPE_CHECKING:
    from lissome.engine.federate.rounds import RoundsConfig

_TRIES = 5  # times that an order which is lost on the way is sent again
_REVERTED = "what it kept last is damaged; it goes on from what it kept before, which changes the result"
_REMEMBERED = 100  # rounds after which an answer is no longer known as late, and counts as one to no order


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

    Attributes:
        lengths: How long updates are.
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
        self.lengths = Lengths()
        self._open: dict[str, OpenOrder] = {}
        self._profiles: dict[str, str] = {}
        self._static: dict[str, str] = {}
        self._superseded: dict[str, str] = {}
        self._count = 0
        self._now: _Phase | None = None

    def roll_call(self, round: int, *, wait: float = 0.0, wanted: int = 0) -> None:
        """Ask those who are new who they are.

        Args:
            round: Number of the round.
            wait: Most seconds to wait for `wanted` clients.
            wanted: How many clients to wait for; 0 does not wait, and who answers later takes part later. When there
                are enough, others that were asked have the patience of the link to answer.
        """
        limit = self._link.now() + wait
        while True:
            new = self._members.see(self._link.addresses(), round)
            self._link.send([self._profile_order(address, round) for address in new])
            while wanted and self._profiles:
                # Not longer than its patience: one that never answers must not keep others from being asked.
                incoming = self._link.receive(min(limit, self._link.now() + self._link.patience))
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

        Raises:
            NumericsError: When answers were merged that cannot be used.
        """
        merge = (phase.merger or Overlap)(self._program.tensors)
        intake = Intake(merge, [one.name for one in clients], self._folder)
        if phase.merger is not None:
            self.lengths.begin(phase.action, None if merge.limits else self._program.tensors)
        self._now = _Phase(phase, round, round * PHASES + index, intake)
        try:
            limit = self._link.now() + self._config.deadline if self._config.deadline is not None else float("inf")
            self._send(self._now, clients, subnets)
            while len(self._now.reports) < enough and self._waiting():
                until = min(limit, self._link.now() + self._link.patience)
                incoming = self._link.receive(until)
                if incoming is not None:
                    self._take(incoming, round)
                elif until >= limit:
                    break
                else:
                    self._look_again(round)
            self._silent(round)
            if phase.merger is not None:
                self.lengths.settle()
            merged = intake.result() if phase.merger is not None else {}
            for client, reason in intake.refused.items():
                self._audit.note("rejected", round=round, client=client, action=phase.action, reason=reason)
                self._now.reports.pop(client, None)
            for client, reason in intake.too_late.items():
                self._audit.note("late", round=round, client=client, action=phase.action, reason=reason)
            return merged, [self._now.reports[name] for name in sorted(self._now.reports)]
        finally:
            self._now = None
            intake.close()

    def blame(self, round: int, reason: str) -> bool:
        """Write down who took part in a round that cannot be used; a strike for those whose updates stand out.

        Args:
            round: Number of the round.
            reason: Why it cannot be used.

        Returns:
            Whether there are such.
        """
        action, suspects = self.lengths.action, self.lengths.suspects()
        for client in sorted(self.lengths.found):
            self._audit.note("void", round=round, client=client, action=action, reason=reason)
        for client, times in suspects.items():
            why = f"its update is {times:.3g} times as long as the median of a round that could not be used"
            self._audit.note("rejected", round=round, client=client, action=action, reason=why)
        return bool(suspects)

    def _waiting(self) -> bool:
        return any(self._is_now(order) for order in self._open.values())

    def _send(self, now: _Phase, clients: Sequence[Profile], subnets: Mapping[str, Subnet | None]) -> None:
        """Send orders one by one, those of one Subnet after each other, so that they share one encoded slice."""
        groups: dict[Subnet | None, list[Profile]] = {}
        for client in clients:
            groups.setdefault(subnets.get(client.name), []).append(client)
        for subnet, members in groups.items():
            shared: dict[tuple[str, ...], Mapping[str, Tensor]] = {}
            for client in members:
                layout = self._layout(now.phase, now.round, client, subnet)
                key = (*layout.keys, *layout.keys.values())
                if key not in shared:
                    shared = {key: now.phase.down.encode(layout.cut(self._program.tensors))}
                address = self._members.address(client.name) or ""
                head = self._head(now, client, subnet)
                order = OpenOrder(client=client, address=address, phase=now.phase, head=head, subnet=subnet)
                self._dispatch(order, shared[key])

    def _layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        return self._program.layout(phase, round, client, subnet) if phase.sends else Layout({})

    def _head(self, now: _Phase, client: Profile, subnet: Subnet | None) -> OrderHead:
        phase, number, tick = now.phase, now.round, now.tick
        tag, _ = self._program.static(client, subnet)
        return OrderHead(
            action=phase.action, ticket=self._ticket(f"{tick}.{client.name}"), round=number, tick=tick,
            seed=derive(self._seed, "client", client.name, tick),
            subnet=subnet.to_json() if subnet is not None else None,
            settings=dict(self._program.settings(phase, number, client)),
            down=str(phase.down), up=str(phase.up), static=tag, federation=self._name,
        )  # fmt: skip

    def _ticket(self, start: str) -> str:
        self._count += 1
        return f"{start}.{self._count}"

    def _dispatch(self, order: OpenOrder, wire: Mapping[str, Tensor]) -> None:
        head, name = order.head, order.client.name
        if head.static and self._static.get(name) != head.static:
            _, static = self._program.static(order.client, order.subnet)
            wire = {**wire, **{STATIC + key: value.contiguous() for key, value in static.items()}}
            self._static[name] = head.static
        parcel = Parcel(kind=order.phase.kind, head=head.to_json(), tensors=wire)
        self._open[head.ticket] = replace(order, sent=self._link.now(), lost=False)
        self._ledger.note(parcel, round=head.round, client=name, action=head.action, direction="down")
        most = largest(order, self._program)
        self._link.send([Outgoing(address=order.address, ticket=head.ticket, parcel=parcel, largest=most)])

    def _profile_order(self, address: str, round: int) -> Outgoing:
        self._members.asked(address)
        ticket = self._ticket(PROFILE)
        head = OrderHead(action=PROFILE, ticket=ticket, round=round, tick=round * PHASES, seed=0, federation=self._name)
        parcel = Parcel(kind="query", head=head.to_json())
        self._profiles[ticket] = address
        self._ledger.note(parcel, round=round, client=address, action=PROFILE, direction="down")
        return Outgoing(address=address, ticket=ticket, parcel=parcel, largest=largest_answer())

    def _take(self, incoming: Incoming, round: int) -> None:
        """Take one answer in, whatever it is; nothing in it may end the round."""
        if self._profiles.get(incoming.ticket) == incoming.address:
            del self._profiles[incoming.ticket]
            self._join(incoming, round)
            return
        order = self._open.get(incoming.ticket)
        if order is None or order.address != incoming.address:
            self._stray(incoming, round)
            return
        del self._open[incoming.ticket]
        try:
            self._accept(order, incoming)
        except LissomeError as error:
            self._count_up(incoming, order.head.round, order.client.name, order.phase.action, used=False)
            self._note("failed" if isinstance(error, FailedError) else "rejected", order, str(error))
            if self._now is not None and self._is_now(order):
                self._now.intake.gone(order.client.name)

    def _stray(self, incoming: Incoming, round: int) -> None:
        """Take note of an answer that nobody waits for: to an order that was sent again, or to none."""
        name = self._members.name(incoming.address)
        self._count_up(incoming, round, name, "?", used=False)
        if incoming.parcel is None or self._superseded.pop(incoming.ticket, None) == incoming.address:
            return
        reason = "an answer to no order, or the second one to the same"
        self._audit.note("rejected", round=round, client=name, action="?", reason=reason)

    def _accept(self, order: OpenOrder, incoming: Incoming) -> None:
        parcel, now, name = incoming.parcel, self._now, order.client.name
        if parcel is None:
            if incoming.lost and self._is_now(order) and order.tries < _TRIES:
                self._open[order.head.ticket] = replace(order, lost=True)
                return
            raise FederationError(incoming.error) if incoming.broken else FailedError(incoming.error)
        head = read_head(order, parcel)
        if head.damaged:
            self._note("reverted", order, _REVERTED)
        if head.lacks and self._is_now(order):
            self._count_up(incoming, order.head.round, name, order.phase.action, used=False)
            self._static.pop(name, None)
            self._resend(replace(order, supplied=True))
            return
        staleness = 0 if self._is_now(order) else max(1, (now.round if now else 0) - order.head.round)
        usable = now is not None and now.phase.action == order.phase.action and self._config.late == "use"
        if head.lacks or (staleness and not usable):
            self._count_up(incoming, order.head.round, name, order.phase.action, used=False)
            self._note("late", order, "after its phase")
            return
        heaviest = self._members.heaviest()
        piece, report = read_answer(order, parcel, head, self._program, heaviest=heaviest, staleness=staleness)
        if order.phase.merger is not None:
            self.lengths.check(piece)
        self._count_up(incoming, order.head.round, name, order.phase.action, used=True)
        assert now is not None
        if staleness:
            now.intake.add_stale(piece)
        else:
            now.reports[name] = report
            if order.phase.merger is not None:
                now.intake.add(piece)

    def _look_again(self, round: int) -> None:
        """Send orders again: lost ones, those of clients started anew, and, if the settings say so, slow ones."""
        self.roll_call(round)
        for order in [one for one in self._open.values() if self._is_now(one)]:
            address, waited = self._members.address(order.client.name), self._link.now() - order.sent
            slow = self._config.resend is not None and waited > self._config.resend
            if address is not None and (order.lost or slow or address != order.address):
                del self._open[order.head.ticket]
                self._superseded[order.head.ticket] = order.address
                self._resend(replace(order, address=address, tries=order.tries + 1))
            elif order.lost and waited > self._config.join:
                del self._open[order.head.ticket]
                self._note("failed", order, "it was lost, and did not come back")
                if self._now is not None:
                    self._now.intake.gone(order.client.name)

    def _resend(self, order: OpenOrder) -> None:
        """Send an order again; whoever repeats it gives the same answer."""
        order = replace(order, head=replace(order.head, ticket=self._ticket(order.head.ticket)))
        layout = self._layout(order.phase, order.head.round, order.client, order.subnet)
        self._dispatch(order, order.phase.down.encode(layout.cut(self._program.tensors)))

    def _join(self, incoming: Incoming, round: int) -> None:
        if incoming.parcel is None:
            self._members.refuse(incoming.address, round, incoming.error)
            return
        self._members.join(incoming.address, incoming.parcel, round)
        name = self._members.name(incoming.address)
        self._count_up(incoming, round, name, PROFILE, used=True)

    def _silent(self, round: int) -> None:
        """Write down who has not answered; what they send later is recognised as late."""
        for order in self._open.values():
            if self._is_now(order):
                self._note("silent", order, "no answer before the phase ended")
        for ticket in [key for key, order in self._open.items() if order.head.round < round - _REMEMBERED]:
            del self._open[ticket]

    def _note(self, event: Event, order: OpenOrder, reason: str) -> None:
        self._audit.note(
            event, round=order.head.round, client=order.client.name, action=order.phase.action, reason=reason
        )

    def _is_now(self, order: OpenOrder) -> bool:
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
