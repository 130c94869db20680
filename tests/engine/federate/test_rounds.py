"""The loop: sampling, quorum, deadline, stragglers, phases, evaluation, and that nothing depends on who was faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissome.core.errors import ArtifactError, FederationError
from lissome.core.events import Event, EventStream
from lissome.engine.federate.audit import Audit
from lissome.engine.federate.client import Worker
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.link import Incoming
from lissome.engine.federate.local import Device, LocalLink
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.outer import Momentum
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.program import TRAIN, Phase, Program, Report
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.store import ClientStore, Kept
from tests.engine.federate.fleet import Adder, adders, digest, federation


def zeros() -> dict[str, Tensor]:
    return {"w": torch.zeros(3, 2), "b": torch.zeros(5)}


def test_a_round_averages_by_examples_and_state_is_kept(tmp_path: Path) -> None:
    program = Program(zeros())
    job = federation(program, adders(zeros(), 3, tmp_path), tmp_path / "server", evaluate_every=1)
    rounds = job.run()
    # Client i adds (i + 1) · order with 10·(i + 1) examples: (1·1 + 2·2 + 3·3) / 6 in the first order, twice that then.
    assert torch.allclose(program.tensors["w"], torch.full((3, 2), 3 * 14 / 6))
    assert [one.number for one in rounds] == [0, 1, 2]
    assert rounds[1].metrics == {"train/step": pytest.approx(14 / 6), "evaluate/orders": 2.0}
    assert rounds[2].scores["a1"] == {"orders": 3.0}
    assert rounds[2].clients == ("a0", "a1", "a2")
    assert all(one.ok for one in rounds)


def test_the_server_may_judge_less_often(tmp_path: Path) -> None:
    class Judge(Program):
        def evaluate(self, round: int) -> Mapping[str, float]:
            return {"round": float(round)}

    job = federation(Judge(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "server", rounds=5, judge_every=2)
    found = [one.metrics.get("server/round") for one in job.run()]
    assert found == [0, None, 2, None, 4, 5], "at the start, every second round, and at the end"


def test_whoever_runs_a_client_hears_what_was_asked_of_it(tmp_path: Path) -> None:
    said: list[str] = []
    client = Adder("a", shapes={"w": torch.zeros(4)})
    worker = Worker(client, ClientStore(tmp_path), federation="ours")
    worker.events.listen(lambda event: said.append(event.message))
    for action, known in (("profile", ""), ("train", "ours"), ("train", "another")):
        head = OrderHead(action=action, ticket="t", round=3, tick=300, seed=0, federation=known)
        tensors = {"w": torch.zeros(4)} if action == "train" else {}
        worker.handle(Parcel(kind="train", head=head.to_json(), tensors=tensors))
    assert said[0].startswith("profile of round 3: ")
    assert said[1].endswith(" bytes sent, 16 of them tensors")
    assert said[2] == "train of round 3 refused: this client belongs to ours, the order to another"


def test_whoever_runs_a_client_hears_that_what_it_kept_is_damaged(tmp_path: Path) -> None:
    said: list[str] = []
    worker, store = Worker(Adder("a", shapes={"w": torch.zeros(4)}), ClientStore(tmp_path)), ClientStore(tmp_path)
    worker.events.listen(lambda event: said.append(event.message))
    for tick in (100, 200):
        store.keep(tick, Kept(facts={"tick": tick}))
    (tmp_path / "00000200" / "facts.json").write_text("{")
    head = OrderHead(action="train", ticket="t", round=3, tick=300, seed=0, federation="")
    worker.handle(Parcel(kind="train", head=head.to_json(), tensors={"w": torch.zeros(4)}))
    assert "00000200 is damaged" in said[0] and "bytes sent" in said[1]


def test_bytes_are_all_counted(tmp_path: Path) -> None:
    program = Program(zeros())
    job = federation(program, adders(zeros(), 3, tmp_path), tmp_path / "server", evaluate_every=2)
    job.run()
    payload = 4 * 11
    assert job.bytes(action="train", direction="down").payload == 2 * 3 * payload
    assert job.bytes(action="train", round=1).payload == 2 * 3 * payload
    assert job.bytes(action="evaluate").payload == 3 * payload, "evaluation sends tensors and brings none"
    assert job.bytes(action="profile").payload == 0
    assert job.bytes(action="profile").message > 0
    total = job.bytes()
    assert total.message > total.payload + 128 * 2 * 9
    text = (tmp_path / "server" / "ledger.csv").read_text().splitlines()
    assert len(text) == 1 + 6 + 2 * 2 * 3 + 2 * 3
    assert text[1].startswith("0,a0,profile,down,0,")


@pytest.mark.parametrize(
    ("loop", "looked"), [({"rounds": 5, "evaluate_every": 2}, [2, 4, 5]), ({"rounds": 1, "evaluate_every": 8}, [1])]
)
def test_clients_are_judged_at_the_end_whatever_the_number_of_rounds(
    loop: dict[str, Any], looked: list[int], tmp_path: Path
) -> None:
    """Where nobody trains there is one round, and clients' scores are all that it is for."""
    for train in (True, False):
        place = tmp_path / str(train)
        job = federation(Program(zeros()), adders(zeros(), 2, place), place / "server", train=train, **loop)
        assert [one.number for one in job.run() if len(one.scores) == 2] == looked


def test_results_do_not_depend_on_speed(tmp_path: Path) -> None:
    results = []
    for index, seconds in enumerate(((1, 2, 3, 4), (4, 3, 2, 1), (2, 9, 1, 3))):
        devices = {f"a{number}": Device(seconds=time) for number, time in enumerate(seconds)}
        program, folder = Program(zeros()), tmp_path / str(index)
        federation(program, adders(zeros(), 4, folder), folder / "server", devices=devices).run()
        results.append(digest(program.tensors))
    assert results[0] == results[1] == results[2]


def test_a_deadline_bounds_the_round_and_the_late_are_written_down(tmp_path: Path) -> None:
    devices = {"a2": Device(seconds=10.0)}
    program = Program(zeros())
    job = federation(
        program, adders(zeros(), 3, tmp_path), tmp_path / "server", devices=devices, deadline=2.0, rounds=12
    )
    rounds = job.run()
    assert all(one.seconds <= 2.0 for one in rounds)
    assert {one.answered for one in rounds[1:]} == {2}
    events = [(line["event"], line["client"]) for line in job.audit.lines]
    assert events.count(("silent", "a2")) == 12
    assert events.count(("late", "a2")) == 2, "after 10 and 20 seconds, of orders that are 8 and 16 seconds old by then"
    assert not job.audit.strikes, "to be slow is no breach"
    assert len(rounds[12].clients) == 3
    assert job.bytes(client="a2", direction="up", used=False).payload == 2 * 44


def test_late_answers_can_join_the_next_round(tmp_path: Path) -> None:
    devices = {"a1": Device(seconds=3.0)}
    up = replace(TRAIN, up=Codec.parse("delta"))
    program = Program(zeros(), phases=(up,))
    job = federation(
        program, adders(zeros(), 2, tmp_path), tmp_path / "server", devices=devices, deadline=2.0, rounds=2, late="use",
        quorum=0.5,
    )  # fmt: skip
    job.run()
    # Round 1: a0 adds 1. Round 2: a0 adds 2 to it (10 examples), a1's first +2 (20 examples) counts 1/√2 of its weight.
    stale = 20 / 2**0.5
    expected = (10 * 3 + stale * (1 + 2)) / (10 + stale)
    assert torch.allclose(program.tensors["b"], torch.full((5,), expected))


def test_more_are_asked_than_wanted(tmp_path: Path) -> None:
    devices = {f"a{number}": Device(dropout=0.3, spread=0.5) for number in range(10)}
    program = Program(zeros())
    job = federation(
        program, adders(zeros(), 10, tmp_path), tmp_path / "server", devices=devices, sample=0.5, oversample=1.4,
        deadline=60.0, rounds=6,
    )  # fmt: skip
    rounds = job.run()[1:]
    assert {len(one.clients) for one in rounds} == {7}
    assert max(one.answered for one in rounds) == 5
    assert len({one.clients for one in rounds}) > 1
    again = federation(
        Program(zeros()), adders(zeros(), 10, tmp_path / "b"), tmp_path / "b" / "server", devices=devices, sample=0.5,
        oversample=1.4, deadline=60.0, rounds=6,
    )  # fmt: skip
    assert [one.clients for one in again.run()[1:]] == [one.clients for one in rounds], "drawn from the seed alone"


def test_a_round_without_a_quorum_changes_nothing_and_many_end_it(tmp_path: Path) -> None:
    devices = {f"a{number}": Device(dropout=1.0) for number in range(2)}
    program = Program(zeros())
    job = federation(
        program, adders(zeros(), 3, tmp_path), tmp_path / "server", devices=devices, deadline=5.0, quorum=0.5, rounds=9
    )
    with pytest.raises(FederationError, match=r"3 rounds in a row had no quorum \(50% .*audit\.jsonl"):
        job.run()
    assert not program.tensors["w"].any()
    assert [one.ok for one in job.rounds[1:]] == [False] * 3


@pytest.mark.parametrize(("away", "answered"), [(40.0, [3, 3, 3]), (4000.0, [3, 0, 0])])
def test_too_few_are_waited_for_between_rounds(away: float, answered: list[int], tmp_path: Path) -> None:
    """Clients that are gone for a while cost no round; without those who are wanted, a round changes nothing."""
    who = adders(zeros(), 3, tmp_path)

    class Gone(LocalLink):
        """Two are out of reach for some time after the first round."""

        left = float("inf")

        def send(self, orders: Any) -> None:
            if any(one.parcel.head.get("round") == 1 and one.parcel.kind == "train" for one in orders):
                self.left = self.now() + 5.0
            super().send(orders)

        def addresses(self) -> Sequence[str]:
            gone = self.left <= self.now() < self.left + away
            return ("a0",) if gone else super().addresses()

    class Pausing(Program):
        def conclude(self, *given: Any) -> Any:
            link.pause(5.0)
            return super().conclude(*given)

    link, program = Gone(who), Pausing(zeros())
    config = RoundsConfig(rounds=3, evaluate_every=0, least=2)
    job = Federation(program, link, config, folder=tmp_path / "server", identity={})
    job.run()
    assert [one.answered for one in job.rounds[1:]] == answered
    assert [one.ok for one in job.rounds[1:]] == [count > 0 for count in answered]


def test_too_few_clients(tmp_path: Path) -> None:
    job = federation(Program(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "server", clients=3, join=5.0)
    with pytest.raises(FederationError, match="2 of 3 clients joined within 5 s"):
        job.run()


class TwoPhases(Program):
    """Asks for numbers first, and scales what it sends in a second phase by them."""

    def phases(self, round: int) -> Sequence[Phase]:
        return (Phase(action="count", sends=False, merger=None), TRAIN)

    def settings(self, phase: Phase, round: int, client: Any) -> Mapping[str, Any]:
        return {"round": round}

    def weigh(self, phase: Phase, report: Report) -> float:
        return 1.0

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> Mapping[str, float]:
        if phase.action == "count":
            return {"steps": sum(report.metrics["step"] for report in reports)}
        return super().conclude(phase, round, merged, reports)

    def evaluate(self, round: int) -> Mapping[str, float]:
        return {"mean": float(self.tensors["w"].mean())}


def test_phases_follow_each_other(tmp_path: Path) -> None:
    program = TwoPhases(zeros(), outer=Momentum(lr=1.0, momentum=0.0))
    heard: list[Event] = []
    link = LocalLink(adders(zeros(), 2, tmp_path))
    job = Federation(
        program, link, RoundsConfig(rounds=1, evaluate_every=0), folder=tmp_path / "server",
        identity={"federation": "test"}, events=EventStream(heard.append),
    )  # fmt: skip
    rounds = job.run()
    assert rounds[1].metrics["count/steps"] == 3.0
    # Clients count orders: the second one of the round adds twice their number, and everybody weighs the same.
    assert rounds[1].metrics["server/mean"] == pytest.approx((2 * 1 + 2 * 2) / 2)
    assert job.bytes(action="count").payload == 0
    advanced = [event for event in heard if event.kind == "advance"]
    assert advanced[-1].message.startswith("2 of 2 clients, ")
    assert advanced[-1].metrics["server/mean"] == 3.0


def test_static_tensors_are_sent_once_and_again_when_lost(tmp_path: Path) -> None:
    class Static(Program):
        def static(self, client: Any, subnet: Any) -> tuple[str, Mapping[str, Tensor]]:
            return "v1", {"frozen": torch.ones(100)}

    program, clients = Static(zeros()), adders(zeros(), 2, tmp_path)
    job = federation(program, clients, tmp_path / "server", rounds=3)
    job.run()
    assert job.bytes(round=1, direction="down").payload == 2 * (44 + 400)
    assert job.bytes(round=2, direction="down").payload == 2 * 44
    (tmp_path / "a0" / "static" / "v1.safetensors").unlink()
    again = federation(Static(zeros()), clients, tmp_path / "other", rounds=1)
    again._exchange._static.update(a0="v1", a1="v1")
    again.run()
    assert again.bytes(round=1, client="a0", direction="down", action="train").payload == 44 + 444
    assert again.bytes(round=1, client="a1", direction="down", action="train").payload == 44
    assert again.rounds[1].answered == 2


def test_a_checkpoint_of_another_federation_is_refused(tmp_path: Path) -> None:
    federation(Program(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "server").run()
    with pytest.raises(ArtifactError, match=r"another job.*seed"):
        federation(Program(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "server", seed=1).run()


def test_a_finished_federation_is_read_back(tmp_path: Path) -> None:
    program = Program(zeros())
    first = federation(program, adders(zeros(), 2, tmp_path), tmp_path / "server")
    first.run()
    other = Program(zeros())
    again = federation(other, {}, tmp_path / "server")
    assert [one.to_json() for one in again.run()] == [one.to_json() for one in first.rounds]
    assert digest(other.tensors) == digest(program.tensors)
    assert again.bytes() == first.bytes()


def test_the_virtual_clock(tmp_path: Path) -> None:
    link = LocalLink({}, {"x": Device(seconds=2.0)})
    assert link.receive(until=5.0) is None
    assert link.now() == 5.0
    assert link.receive(until=float("inf")) is None
    link.pause(1.5)
    assert link.now() == 6.5


class Shaky:
    """A link on which orders are lost and clients are started anew at another address, as on real machines."""

    patience = 1.0

    def __init__(self, inner: LocalLink, losses: int, moves: Mapping[str, str]) -> None:
        self._inner, self._losses, self._moves = inner, losses, dict(moves)
        self._gone: set[str] = set()
        self._home: dict[str, str] = {}

    def addresses(self) -> list[str]:
        there = [self._moves[name] if name in self._gone else name for name in self._inner.addresses()]
        self._home = {self._moves[name]: name for name in self._gone}
        return there

    def send(self, orders: Sequence[Any]) -> None:
        for order in orders:
            if order.address in self._moves and order.parcel.kind == "train" and order.address not in self._gone:
                self._gone.add(order.address)  # it dies with the order
                continue
            self._inner.send([replace(order, address=self._home.get(order.address, order.address))])

    def receive(self, until: float) -> Incoming | None:
        found = self._inner.receive(until)
        if found is None:
            return None
        back = {home: at for at, home in self._home.items()}
        found = replace(found, address=back.get(found.address, found.address))
        if self._losses and found.parcel is not None and found.parcel.kind == "train":
            self._losses -= 1
            return replace(found, parcel=None, error="lost", lost=True)
        return found

    def pause(self, seconds: float) -> None:
        self._inner.pause(seconds)

    def now(self) -> float:
        return self._inner.now()


def test_who_was_refused_may_mend_it_and_join_later(tmp_path: Path) -> None:
    made = adders(zeros(), 3, tmp_path)
    asked: list[str] = []

    def mended() -> Worker:
        asked.append("a2")
        if len(asked) == 1:
            raise OSError("its rows cannot be read")
        return made["a2"]()

    job = federation(Program(zeros()), {**made, "a2": mended}, tmp_path / "server", rounds=2, clients=2)
    rounds = job.run()
    assert [one.clients for one in rounds[1:]] == [("a0", "a1"), ("a0", "a1", "a2")], "asked again in the first round"
    assert [line["event"] for line in job.audit.lines] == ["refused"]


def test_lost_orders_and_restarted_clients_change_nothing(tmp_path: Path) -> None:
    program, expected = Program(zeros()), Program(zeros())
    link: Any = Shaky(LocalLink(adders(zeros(), 4, tmp_path / "shaky")), 3, {"a1": "b1", "a3": "b3"})
    job = Federation(
        program, link, RoundsConfig(rounds=3, evaluate_every=0), folder=tmp_path / "s", identity={"federation": "test"}
    )
    rounds = job.run()
    federation(expected, adders(zeros(), 4, tmp_path / "firm"), tmp_path / "firm" / "s", rounds=3).run()
    assert digest(program.tensors) == digest(expected.tensors)
    assert {one.answered for one in rounds[1:]} == {4}
    assert not job.audit.strikes
    assert job.bytes(action="train", direction="down").payload > 3 * 4 * 44, "what was sent again is counted"


def test_slow_orders_may_be_sent_again(tmp_path: Path) -> None:
    class Deaf(Shaky):
        """Swallows the first order to train."""

        def send(self, orders: Sequence[Any]) -> None:
            for order in orders:
                if order.parcel.kind == "train" and self._losses:
                    self._losses -= 1
                else:
                    self._inner.send([order])

    program, expected = Program(zeros()), Program(zeros())
    link: Any = Deaf(LocalLink(adders(zeros(), 3, tmp_path / "deaf")), 1, {})
    config = RoundsConfig(rounds=2, evaluate_every=0, resend=5.0)
    Federation(program, link, config, folder=tmp_path / "s", identity={"federation": "test"}).run()
    federation(expected, adders(zeros(), 3, tmp_path / "firm"), tmp_path / "firm" / "s", rounds=2).run()
    assert digest(program.tensors) == digest(expected.tensors)


def test_a_federation_of_which_nothing_can_be_used_is_never_done(tmp_path: Path) -> None:
    """Its model is the given one; the same command must not call that a result the second time either."""
    for _ in range(2):
        job = federation(Program(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "server", deadline=0.5)
        assert not any(one.ok for one in job.run()[1:])
        with pytest.raises(FederationError, match=r"all 2 rounds had no quorum .* name another --out"):
            job.require_a_change()
    zero_shot = federation(Program(zeros()), adders(zeros(), 2, tmp_path), tmp_path / "other", train=False)
    zero_shot.run()
    zero_shot.require_a_change()


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    Audit(file).note("silent", round=1, client="a", action="train", reason="nothing came")
    with file.open("a") as log:
        log.write('{"time": 1')
    Audit(file).note("silent", round=2, client="b", action="train", reason="nothing came")
    assert [line["client"] for line in Audit(file).lines] == ["a", "b"]
