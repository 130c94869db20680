"""Clients that break the rules: each is left out and written down, and the round goes on as if it were not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissome.core.errors import ArtifactError, DataError, FederationError, NumericsError
from lissome.core.events import EventStream
from lissome.engine.federate.audit import Audit
from lissome.engine.federate.client import Answer, Work, Worker
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.link import Incoming
from lissome.engine.federate.local import LocalLink
from lissome.engine.federate.members import Members
from lissome.engine.federate.orders import AnswerHead, OrderHead
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import TRAIN, Program
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.store import ClientStore
from tests.engine.federate.fleet import (
    Adder,
    adders,
    digest,
    encoder,
    federation,
    subnet_program,
    training_clients,
)

Spoil = Callable[[Parcel], Parcel]


def zeros() -> dict[str, Tensor]:
    return {"w": torch.zeros(3, 2), "b": torch.zeros(5)}


class Liar:
    """A client whose answers are spoilt, and who otherwise is an honest one."""

    def __init__(self, honest: Callable[[], Worker], spoil: Spoil) -> None:
        self._honest, self._spoil = honest, spoil

    def handle(self, parcel: Parcel) -> Parcel:
        answer = self._honest().handle(parcel)
        return answer if parcel.kind == "query" else self._spoil(answer)


def tensors(**changes: Tensor) -> Spoil:
    return lambda parcel: replace(parcel, tensors={**parcel.tensors, **changes})


def head(**changes: Any) -> Spoil:
    return lambda parcel: replace(parcel, head={**parcel.head, **changes})


def numbers(**changes: Any) -> Spoil:
    return lambda parcel: replace(
        parcel, numbers={**parcel.numbers, **{k.replace("_", "-"): v for k, v in changes.items()}}
    )


def crash(parcel: Parcel) -> Parcel:
    raise RuntimeError("out of battery\nsecond line \x1b[31m" + "x" * 500)


SPOILT: dict[str, tuple[Spoil, str, str]] = {
    "nan": (tensors(w=torch.full((3, 2), torch.nan)), "rejected", "'w' holds NaN"),
    "beyond all weights": (tensors(w=torch.full((3, 2), 1e30)), "rejected", r"'w' holds numbers beyond ±1e\+06"),
    "infinity": (tensors(b=torch.tensor([0, 1, torch.inf, 0, 0])), "rejected", "'b' holds NaN or infinity"),
    "wrong shape": (tensors(w=torch.zeros(2, 3)), "rejected", r"float32\[2, 3\], but float32\[3, 2\]"),
    "wrong type": (tensors(w=torch.zeros(3, 2).double()), "rejected", "float64"),
    "unknown key": (tensors(other=torch.zeros(1)), "rejected", "unknown tensor 'other'"),
    "missing key": (lambda parcel: replace(parcel, tensors={"w": torch.zeros(3, 2)}), "rejected", "'b' is missing"),
    "nothing": (lambda parcel: replace(parcel, tensors={}), "rejected", "missing"),
    "huge": (tensors(w=torch.zeros(100, 1000)), "rejected", "400.* bytes, at most"),
    "huge head": (head(notes={"text": "x" * 50_000}), "rejected", "bytes, at most"),
    "stale": (head(tick=7), "rejected", "another order"),
    "another ticket": (head(ticket="1.100.a0.1"), "rejected", "another order"),
    "no head": (lambda parcel: replace(parcel, head={}), "rejected", "lacks 'ticket'"),
    "a head of the future": (head(version=99), "rejected", "version 99"),
    "unknown words": (head(colour="red"), "rejected", "unknown key 'colour'"),
    "weight of nothing": (numbers(num_examples=0), "rejected", "num-examples is 0"),
    "negative weight": (numbers(num_examples=-5), "rejected", "num-examples is -5"),
    "huge weight": (numbers(num_examples=1e9), "rejected", r"at most 20"),
    "weight that is no number": (numbers(num_examples=float("nan")), "rejected", "not finite"),
    "metric that is no number": (numbers(loss=float("inf")), "rejected", "'loss' is not finite"),
    "metric beyond all sums": (numbers(loss=1e308), "rejected", "'loss' is not finite"),
    "metric beyond all losses": (numbers(loss=3e7), "rejected", "'loss' is not finite, or not from"),
    "share above the whole": (numbers(accuracy=1.5), "rejected", "'accuracy' is not finite, or not from 0 to 1"),
    "share of a slice below nothing": (numbers(**{"slice_1/recall": -0.1}), "rejected", "not from 0 to 1"),
    "what the server promises": (numbers(epsilon=0.1), "rejected", "'epsilon' is not for clients to say"),
    "a name of several words": (numbers(**{"worst decile": 0.1}), "rejected", "no name of a number"),
    "metric of 400 digits": (numbers(loss=10**400), "rejected", "'loss' is not finite"),
    "metric whose name is an escape": (numbers(**{"\x1b[2J": 1.0}), "rejected", "no name of a number"),
    "metric of text": (numbers(loss="low"), "rejected", "'loss' is not finite"),
    "too many metrics": (numbers(**{f"m{k}": 1.0 for k in range(99)}), "rejected", "at most 64"),
    "it says that it cannot": (head(error="no space"), "failed", "no space"),
    "it never has what it needs": (head(lacks=True), "failed", "does not keep"),
    "it crashes": (crash, "failed", "RuntimeError: out of battery second line"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_who_breaks_the_rules_is_left_out(case: str, tmp_path: Path) -> None:
    spoil, event, reason = SPOILT[case]
    honest, expected = Program(zeros()), Program(zeros())
    clients: dict[str, Any] = adders(zeros(), 4, tmp_path / "with")
    clients["a1"] = lambda inner=clients["a1"]: Liar(inner, spoil)
    job = federation(honest, clients, tmp_path / "with" / "server", rounds=1)
    rounds = job.run()
    others = {name: one for name, one in adders(zeros(), 4, tmp_path / "without").items() if name != "a1"}
    federation(expected, others, tmp_path / "without" / "server", rounds=1).run()
    assert digest(honest.tensors) == digest(expected.tensors)
    assert (rounds[1].answered, rounds[1].ok) == (3, True)
    lines = [json.loads(line) for line in (tmp_path / "with" / "server" / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["client"], line["round"]) for line in lines] == [(event, "a1", 1)]
    assert re.search(reason, lines[0]["reason"])
    assert len(lines[0]["reason"]) <= 200
    assert lines[0]["reason"].isprintable()


def test_who_breaks_them_again_and_again_is_asked_no_more(tmp_path: Path) -> None:
    clients: dict[str, Any] = adders(zeros(), 3, tmp_path)
    clients["a2"] = lambda inner=clients["a2"]: Liar(inner, tensors(w=torch.full((3, 2), torch.nan)))
    job = federation(Program(zeros()), clients, tmp_path / "server", rounds=5, strikes=2)
    assert [len(one.clients) for one in job.run()[1:]] == [3, 3, 2, 2, 2]
    assert [line["event"] for line in job.audit.lines] == ["rejected", "rejected", "banned"]


class Twice:
    """A link on which every answer comes twice, and some come to nobody's order."""

    def __init__(self, inner: LocalLink) -> None:
        self._inner, self._again = inner, list[Incoming]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def receive(self, until: float) -> Incoming | None:
        if self._again:
            return self._again.pop()
        found = self._inner.receive(until)
        if found is not None and found.parcel is not None:
            self._again = [found, replace(found, ticket="1.100.a9.77"), replace(found, address="a0")]
        return found


def test_whoever_runs_the_server_hears_of_it_once(tmp_path: Path) -> None:
    said: list[str] = []
    job = federation(Program({"w": torch.zeros(2)}), {}, tmp_path)
    job._events.listen(lambda event: said.append(event.message))
    for event, number in (("rejected", 1), ("silent", 1), ("rejected", 2), ("refused", 2)):
        job.audit.note(event, round=number, client="mallory", action="train", reason="NaN")  # type: ignore[arg-type]
    assert said == ["mallory rejected in round 1: NaN", "mallory refused in round 2: NaN"]


def test_an_answer_counts_once(tmp_path: Path) -> None:
    """Replayed, invented or claimed by another: only the first answer from the address that was asked counts."""
    program, expected = Program(zeros()), Program(zeros())
    config = RoundsConfig(rounds=2, evaluate_every=0, strikes=1000)
    link: Any = Twice(LocalLink(adders(zeros(), 3, tmp_path / "with")))
    job = Federation(program, link, config, folder=tmp_path / "server", identity={})
    job.run()
    federation(expected, adders(zeros(), 3, tmp_path / "without"), tmp_path / "plain").run()
    assert digest(program.tensors) == digest(expected.tensors)
    assert job.audit.count("rejected") >= 6
    assert job.bytes(direction="up", used=False).payload > 0, "what was not used was sent all the same"


@pytest.mark.parametrize("codec", ["int8", "delta+top=20%+fp16", "pack+bf16", "delta+int8+pack"])
def test_every_codec_is_guarded(codec: str, tmp_path: Path) -> None:
    def spoil(parcel: Parcel) -> Parcel:
        broken = {
            name: torch.full_like(value, torch.nan) if value.is_floating_point() else torch.full_like(value, -1)
            for name, value in parcel.tensors.items()
        }
        return replace(parcel, tensors=broken)

    phase = replace(TRAIN, up=Codec.parse(codec))
    clients: dict[str, Any] = adders(zeros(), 3, tmp_path)
    clients["a0"] = lambda inner=clients["a0"]: Liar(inner, spoil)
    program = Program(zeros(), phases=(phase,))
    job = federation(program, clients, tmp_path / "server", rounds=1)
    job.run()
    assert all(value.isfinite().all() for value in program.tensors.values())
    assert job.rounds[1].answered + job.audit.count("rejected") == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "../etc", "examples": 1}, "not a name"), ({"name": "a", "examples": -1}, "cannot be"),
        ({"name": "a", "examples": 10**400}, "cannot be"),
        ({"name": "a"}, "lacks 'examples'"), ({"name": "a", "examples": 1, "budget": "memroy<=1"}, "did you mean"),
        ({"name": "a", "examples": 1, "facts": {"speed": "fast"}}, "finite number"), ([], "must be an object"),
        ({"name": "a", "examples": 1, "root": True}, "unknown key"),
    ],
)  # fmt: skip
def test_profiles_that_cannot_be_used(fields: Any, words: str) -> None:
    with pytest.raises(FederationError, match=words):
        Profile.from_json(fields)


def test_two_of_one_name_and_who_says_nothing_usable(tmp_path: Path) -> None:
    clients: dict[str, Any] = adders(zeros(), 3, tmp_path)
    clients["twin"] = adders(zeros(), 1, tmp_path / "elsewhere")["a0"]
    clients["zz"] = lambda: Worker(Adder("A1", shapes=zeros()), ClientStore(tmp_path / "zz"))

    class Mute:
        def handle(self, parcel: Parcel) -> Parcel:
            return replace(clients["a1"]().handle(parcel), head=AnswerHead(ticket="x", tick=0).to_json())

    clients["mute"] = Mute
    job = federation(Program(zeros()), clients, tmp_path / "server", rounds=1)
    rounds = job.run()
    assert rounds[1].clients == ("a0", "a1", "a2")
    refused = {line["client"]: line["reason"] for line in job.audit.lines if line["event"] == "refused"}
    assert "there already" in str(refused["twin"])
    assert "A1 differs from a1 in case alone" in str(refused["zz"])
    assert "mute" in refused


def test_who_belongs_to_another_federation_says_so_when_it_joins(tmp_path: Path) -> None:
    clients: dict[str, Any] = adders(zeros(), 2, tmp_path)
    clients["stranger"] = lambda: Worker(Adder("s"), ClientStore(tmp_path / "s"), federation="another")
    job = federation(Program(zeros()), clients, tmp_path / "server", rounds=1)
    assert job.run()[1].clients == ("a0", "a1")
    assert {str(line["reason"]) for line in job.audit.lines} == {"this client belongs to another, the order to test"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("/home/ann/mails.jsonl:3: unknown label 'cancer'; known: flu."), "its data cannot be used; its own"),
        (ArtifactError("/home/ann/model is damaged."), r"it failed \(ArtifactError\); its own log says why"),
        (PermissionError(13, "denied", "/home/ann/mails.jsonl"), r"it failed \(PermissionError\); its own log"),
        (NumericsError("the loss is nan at step 3."), "the loss is nan at step 3."),
    ],
)  # fmt: skip
def test_what_is_private_to_a_client_stands_in_its_own_log_alone(error: Exception, told: str, tmp_path: Path) -> None:
    made, heard = adders(zeros(), 3, tmp_path), list[str]()

    class Failing(Adder):
        def act(self, work: Work) -> Answer:
            raise error

    def failing() -> Worker:
        worker = Worker(Failing("a1", shapes=zeros()), ClientStore(tmp_path / "a1"))
        worker.events = EventStream(lambda event: heard.append(event.message))
        return worker

    job = federation(Program(zeros()), {**made, "a1": failing}, tmp_path / "server", rounds=1)
    assert job.run()[1].answered == 2
    (line,) = job.audit.lines
    assert re.search(told, str(line["reason"]))
    assert "/home" not in (tmp_path / "server" / "audit.jsonl").read_text()
    assert str(error) in heard[-1]


def test_a_budget_that_nothing_meets_ends_nothing(tmp_path: Path) -> None:
    """Whoever brings one is refused with the reason, and the others go on."""
    model = encoder()
    budgets = {"b": "params<=1", "c": "latency<=5ms"}
    clients = training_clients(model, ["a", "b", "c"], tmp_path, budgets=budgets)
    job = federation(subnet_program(model), clients, tmp_path / "server", rounds=1, clients=1)
    assert job.run()[-1].clients == ("a",)
    refused = {line["client"]: str(line["reason"]) for line in job.audit.lines if line["event"] == "refused"}
    assert "reachable is" in refused["b"]
    assert "bound macs" in refused["c"]


def test_who_has_no_examples_is_not_asked_to_train(tmp_path: Path) -> None:
    clients: dict[str, Any] = adders(zeros(), 2, tmp_path)
    idle = Adder("z", examples=0, shapes=zeros())
    clients["z"] = lambda: Worker(idle, ClientStore(tmp_path / "z"))
    job = federation(Program(zeros()), clients, tmp_path / "server", rounds=4, evaluate_every=1)
    rounds = job.run()
    assert [one.answered for one in rounds[1:]] == [2] * 4
    assert not job.audit.lines, "having nothing breaks no rule"
    assert {one.action for one in idle.seen} == {"evaluate"}


def test_nobody_may_claim_to_have_almost_all_examples() -> None:
    crowd = [Profile(name=f"c{k}", examples=100) for k in range(9)] + [Profile(name="x", examples=10**9)]
    members = Members(Audit(), strikes=3)
    for profile in crowd:
        head = AnswerHead(ticket=profile.name, tick=0, notes=profile.to_json())
        members.join(profile.name, Parcel(kind="query", head=head.to_json()), 0)
    assert members.heaviest() == 1000


def test_a_profile_is_short() -> None:
    members = Members(Audit(), strikes=3)
    members.see(["a", "b", "c"], 1)
    honest = AnswerHead(ticket="x", tick=0, notes=Profile(name="a", examples=1).to_json()).to_json()
    long = AnswerHead(ticket="x", tick=0, notes=Profile(name="b", examples=1, kind="k" * 20_000).to_json()).to_json()
    members.join("a", Parcel(kind="query", head=honest), 1)
    members.join("b", Parcel(kind="query", head=long), 1)
    members.join("c", Parcel(kind="query", head=honest, tensors={"w": torch.zeros(10_000)}), 1)
    assert [one.name for one in members.present()] == ["a"]
    assert [(line["event"], line["client"]) for line in members._audit.lines] == [("refused", "b"), ("refused", "c")]
    assert all("at most 16384 were agreed" in str(line["reason"]) for line in members._audit.lines)


@pytest.mark.parametrize("count", [100, 100_000])
def test_who_honestly_has_most_examples_counts_as_ten_others(count: int, tmp_path: Path) -> None:
    clients: dict[str, Any] = adders(zeros(), 3, tmp_path)  # of 10, 20 and 30 examples, who add 1, 2 and 3
    big = Adder("big", 10.0, count, shapes=zeros())
    clients["big"] = lambda: Worker(big, ClientStore(tmp_path / "big"))
    program = Program(zeros())
    job = federation(program, clients, tmp_path / "server", rounds=1)
    job.run()
    weight = min(count, 10 * 25)
    assert not job.audit.lines, "to have many is no lie"
    assert program.tensors["b"][0] == pytest.approx((10 * 1 + 20 * 2 + 30 * 3 + weight * 10) / (60 + weight))


def test_who_has_nothing_to_be_judged_by_breaks_no_rule(tmp_path: Path) -> None:
    class Blind(Adder):
        def act(self, work: Work) -> Answer:
            return Answer(weight=0) if work.head.action == "evaluate" else super().act(work)

    clients: dict[str, Any] = adders(zeros(), 2, tmp_path)
    blind = Blind("blind", shapes=zeros())
    clients["blind"] = lambda: Worker(blind, ClientStore(tmp_path / "blind"))
    job = federation(Program(zeros()), clients, tmp_path / "server", rounds=5, evaluate_every=1)
    rounds = job.run()
    assert not job.audit.lines
    assert {len(one.clients) for one in rounds[1:]} == {3}
    assert rounds[-1].scores["blind"] == {}
    alone = federation(Program(zeros()), {"blind": clients["blind"]}, tmp_path / "alone", rounds=1, evaluate_every=1)
    assert alone.run()[1].ok


def test_clients_cap_what_they_accept(tmp_path: Path) -> None:
    (make,) = adders(zeros(), 1, tmp_path).values()
    program = make()._program
    worker = Worker(program, ClientStore(tmp_path / "c"), federation="mine", largest=2000)

    def ask(**changes: Any) -> AnswerHead:
        fields = {"action": "train", "ticket": "t", "round": 1, "tick": 100, "seed": 0, **changes}
        given = fields.pop("tensors", zeros())
        parcel = Parcel(kind="train", head=OrderHead(**fields).to_json(), tensors=given)
        return AnswerHead.from_json(worker.handle(parcel).head)

    assert not ask().error
    assert "belongs to mine" in ask(federation="theirs").error
    assert "takes 2000" in ask(tensors={"w": torch.zeros(1000), "b": torch.zeros(5)}).error
    assert "agreed" in ask(tensors={"w": torch.zeros(2, 2), "b": torch.zeros(5)}).error
    assert "NaN" in ask(tensors={"w": torch.full((3, 2), torch.nan), "b": torch.zeros(5)}).error
    assert ask(static="v9").lacks
    with pytest.raises(FederationError, match="the order"):
        worker.handle(Parcel(kind="train", head={"action": 3}))


def test_the_audit_log_survives_odd_text(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.note("rejected", round=1, client="x\n{}", action="train", reason="a\tb\x00c\u202e" + "y" * 1000)
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(json.loads(line)["reason"]) == 200


@pytest.mark.parametrize("tag", ["../../evil", "/tmp/evil", "a/b", "..", "x" * 81, "a\\b", "a\n"])
def test_a_server_names_no_file_outside_of_a_clients_folder(tag: str, tmp_path: Path) -> None:
    worker = Worker(Adder("a0", shapes=zeros()), ClientStore(tmp_path / "deep" / "down"))
    order = OrderHead(action="train", ticket="t", round=1, tick=100, seed=0)
    parcel = Parcel(
        kind="train", head={**order.to_json(), "static": tag}, tensors={**zeros(), "static|w": torch.ones(2)}
    )
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(FederationError, match="is no tag"):
        worker.handle(parcel)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
