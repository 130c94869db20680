"""Secure aggregation: the sum within a step, with and without drop-outs, and what the server does not see."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError
from lissome.core.events import EventStream
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.client import Answer, Work, Worker
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.local import LocalLink
from lissome.engine.federate.merge import Mean
from lissome.engine.federate.method import ClientSite, ServerSite
from lissome.engine.federate.parcel import PROFILE
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.store import ClientStore
from lissome.methods.federate.ffm import FFM
from lissome.models.space import Subnet
from tests.engine.federate.fleet import Adder, encoder, killed_at, lesson

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'lissome[federate]'")

from lissome.engine.federate.secure import masks
from lissome.engine.federate.secure.client import MASKED, SecureClient
from lissome.engine.federate.secure.program import SecureProgram

START = {"w": torch.linspace(-1, 1, 30).view(5, 6), "b": torch.zeros(7)}
LARGEST = 8.0


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 6), st.integers(0, 4), st.randoms())
def test_enough_shares_restore_a_secret_and_fewer_do_not(secret: bytes, needed: int, more: int, rng: Any) -> None:
    shares = masks.split(secret, range(1, needed + more + 1), needed)
    chosen = dict(rng.sample(sorted(shares.items()), needed))
    assert masks.joined(chosen) == secret
    fewer = dict(list(chosen.items())[:-1])
    try:
        assert masks.joined(fewer) != secret
    except FederationError as error:
        assert "do not fit" in str(error)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 8))
def test_steps_sum_to_the_mean_within_one(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    updates = [
        {name: torch.randn(value.shape, generator=generator) for name, value in START.items()} for _ in range(count)
    ]
    weights = (torch.rand(count, generator=generator) * 0.9 + 0.1).tolist()
    words = np.zeros(38, np.uint32)
    for one, weight in zip(updates, weights, strict=True):
        words = words + masks.in_steps(one, weight, LARGEST)
    mean = masks.from_steps(words, START, LARGEST)
    for name in START:
        exact = sum(w * one[name].double() for one, w in zip(updates, weights, strict=True)) / sum(weights)
        assert float((mean[name] - exact).abs().max()) <= count * LARGEST / masks.STEPS / sum(weights)
    with pytest.raises(FederationError, match="no weight"):
        masks.from_steps(np.zeros(38, np.uint32), START, LARGEST)


def test_keys_and_boxes() -> None:
    one, other = bytes(range(32)), bytes(range(1, 33))
    first, second = masks.public_key(one), masks.public_key(other)
    assert masks.agreed(one, second, "x") == masks.agreed(other, first, "x") != masks.agreed(one, second, "y")
    box = masks.sealed(one, b"share")
    assert masks.opened(one, box) == b"share"
    with pytest.raises(FederationError, match="changed on its way"):
        masks.opened(other, box)
    with pytest.raises(FederationError, match="changed on its way"):
        masks.opened(one, box[:-1] + bytes([box[-1] ^ 1]))
    assert np.array_equal(masks.stream(one, 9)[:5], masks.stream(one, 5))


class Seen(LocalLink):
    """Keeps what arrives at the server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.vectors: dict[str, Tensor] = {}

    def receive(self, until: float) -> Any:
        found = super().receive(until)
        if found is not None and found.parcel is not None:
            for name, value in found.parcel.tensors.items():
                if name.startswith(MASKED):
                    self.vectors[found.address] = value
        return found


def program(secure: bool, **options: Any) -> Program:
    inner = Program({name: value.clone() for name, value in START.items()}, phases=(Phase(merger=Mean),))
    return SecureProgram(inner, largest=LARGEST, **options) if secure else inner


def clients(folder: Path, count: int, secure: bool) -> Mapping[str, Any]:
    found = {}
    for index in range(count):
        inner = Adder(f"a{index}", 0.1 * (index + 1), 10 * (index + 1), shapes=START)
        client = SecureClient(inner=inner, largest=LARGEST) if secure else inner
        found[inner.name] = partial(Worker, client, ClientStore(folder / inner.name))
    return found


def run(folder: Path, count: int, *, secure: bool = True, link: Any = None, **loop: Any) -> tuple[Federation, Any]:
    options = {"neighbours": loop.pop("neighbours", 20)} if secure else {}
    made = link or Seen(clients(folder, count, secure), loop.pop("devices", None))
    config = RoundsConfig(**{"rounds": 2, "evaluate_every": 0, **loop})
    job = Federation(program(secure, **options), made, config, folder=folder / "server", identity={})
    job.run()
    return job, made


@pytest.mark.parametrize(("count", "neighbours"), [(3, 20), (5, 20), (9, 4)])
def test_the_sum_is_the_plain_one_within_a_step(count: int, neighbours: int, tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", count, secure=False)
    masked, link = run(tmp_path / "masked", count, neighbours=neighbours)
    assert not masked.audit.lines
    for name in START:
        apart = (masked.program.tensors[name] - plain.program.tensors[name]).abs().max()
        assert float(apart) <= 2 * count * LARGEST / masks.STEPS, "two rounds"
    words = torch.stack(list(link.vectors.values())).double()
    assert float(words.std()) > 0.2 * 2**32, "what arrives is spread over all numbers"
    assert float(words.mean(1).abs().max()) < 0.4 * 2**32
    assert all(one.metrics["unmask/lost"] == 0 for one in masked.rounds[1:])


@pytest.mark.parametrize(
    ("largest", "words"),
    [
        (0.01, r"= 0\.01 does not suit 3 of 3 clients: 100% of the changes are beyond it .*; set secure_largest = 1$"),
        (1e300, r"= 1e\+300 does not suit 3 of 3 clients: a step of it is 1e\+30 times .*; set secure_largest = 1$"),
        (1.0, ""),
    ],
)  # fmt: skip
def test_who_runs_the_server_hears_what_largest_change_suits(largest: float, words: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    for index in range(3):
        inner = Adder(f"a{index}", 0.1 * (index + 1), shapes=START)
        client = SecureClient(inner=inner, largest=largest)
        made[inner.name] = partial(Worker, client, ClientStore(tmp_path / inner.name))
    inner = Program({name: value.clone() for name, value in START.items()}, phases=(Phase(merger=Mean),))
    heard: list[str] = []
    job = Federation(
        SecureProgram(inner, largest=largest), LocalLink(made), RoundsConfig(rounds=2, evaluate_every=0),
        folder=tmp_path / "server", identity={}, events=EventStream(lambda event: heard.append(event.message)),
    )  # fmt: skip
    job.run()
    lines = [line for line in heard if "secure_largest" in line]
    assert len(lines) == bool(words), "once, not in every round"
    assert all(re.search(words, line) for line in lines)
    assert not job.audit.lines


def test_those_who_drop_out_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    plain, _ = run(tmp_path / "plain", 4, secure=False, rounds=1)
    made = clients(folder, 5, True)

    class Dying(Seen):
        """The last client is silent once it has shared its secrets."""

        def send(self, orders: Any) -> None:
            gone = {"train", "unmask"}
            super().send([one for one in orders if one.address != "a4" or one.parcel.head["action"] not in gone])

    job, _ = run(folder, 5, link=Dying(made), rounds=1, deadline=5.0)
    assert {line["client"] for line in job.audit.lines} == {"a4"}
    assert job.rounds[-1].metrics["unmask/lost"] == 0
    for name in START:
        assert float((job.program.tensors[name] - plain.program.tensors[name]).abs().max()) <= 5 * LARGEST / masks.STEPS


def test_too_few_left_change_nothing(tmp_path: Path) -> None:
    made = clients(tmp_path, 5, True)

    class Silent(Seen):
        """Two drop out of the training, and three of the unmasking."""

        def send(self, orders: Any) -> None:
            gone = {"train": {"a3", "a4"}, "unmask": {"a1", "a2", "a3", "a4"}}
            super().send([one for one in orders if one.address not in gone.get(one.parcel.head["action"], set())])

    job, _ = run(tmp_path, 5, link=Silent(made), rounds=1, deadline=5.0, quorum=0.2)
    assert job.rounds[-1].metrics["unmask/lost"] == 1
    assert all(torch.equal(job.program.tensors[name], value) for name, value in START.items())


def test_who_runs_the_server_hears_that_too_few_are_left(tmp_path: Path) -> None:
    class Silent(Seen):
        """One of three never answers."""

        def send(self, orders: Any) -> None:
            super().send([one for one in orders if one.address != "a2" or one.parcel.head["action"] == PROFILE])

    heard: list[str] = []
    job = Federation(
        program(True), Silent(clients(tmp_path, 3, True)), RoundsConfig(rounds=2, evaluate_every=0, deadline=5.0),
        folder=tmp_path / "server", identity={}, events=EventStream(lambda event: heard.append(event.message)),
    )  # fmt: skip
    job.run()
    assert sum("2 clients are left for a secure sum, which needs 3" in line for line in heard) == 1
    assert not any(one.ok for one in job.rounds[1:])


def test_a_round_that_is_repeated_uses_other_masks(tmp_path: Path) -> None:
    vectors = []
    for attempt in (killed_at(1), nullcontext()):
        link = Seen(clients(tmp_path, 3, True))
        with attempt:
            run(tmp_path, 3, link=link, rounds=1)
        vectors.append(dict(link.vectors))
    assert all(not torch.equal(vectors[0][name], vectors[1][name]) for name in vectors[0])


def test_both_secrets_of_a_client_are_never_told(tmp_path: Path) -> None:
    made = clients(tmp_path, 4, True)

    class Greedy(Seen):
        """A server that says that somebody who answered did not."""

        def send(self, orders: Any) -> None:
            for one in orders:
                settings = one.parcel.head.get("settings", {})
                if "gone" in settings:
                    settings["gone"] = [*settings["gone"], "a0"]
            super().send(orders)

    job, _ = run(tmp_path, 4, link=Greedy(made), rounds=1, failures=2)
    assert all("both secrets" in str(line["reason"]) for line in job.audit.lines)
    assert len(job.audit.lines) == 4


@pytest.mark.parametrize(
    ("phase", "words"),
    [(Phase(), "merge"), (Phase(merger=Mean, up=Codec.parse("int8")), "up"), (Phase(merger=None), "each client")],
)
def test_methods_that_need_more_than_a_sum_are_refused(phase: Phase, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SecureProgram(Program(START, phases=(phase,)), largest=1.0)


def test_two_clients_have_nothing_to_hide_in(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="no quorum"):
        run(tmp_path, 2, rounds=3, failures=1, quorum=1.0)


class Meddler(SecureClient):
    """Answers one step of the protocol with something else."""

    step: str
    notes: dict[str, Any]

    def act(self, work: Work) -> Answer:
        answer = super().act(work)
        return replace(answer, notes={**answer.notes, **self.notes}) if work.head.action == self.step else answer


@pytest.mark.parametrize(
    ("step", "notes", "lost", "strikes"),
    [
        ("mask-keys", {"keys": "none"}, 0, 1), ("mask-keys", {"keys": {"channel": 5, "mask": "ab"}}, 0, 1),
        ("mask-keys", {"keys": {"channel": "00" * 32, "mask": "00" * 32}}, 0, 1),
        ("train", {"unsuited": [1]}, 0, 1), ("train", {"unsuited": {"cut": 1.0, "step": "x", "wanted": 1.0}}, 0, 1),
        ("mask-shares", {"shares": [1]}, 0, 1), ("mask-shares", {"shares": {"a0": 7}}, 0, 1),
        ("mask-shares", {"shares": {"a0": "00", "a1": "00", "a2": "ff"}}, 0, 0),
        ("unmask", {"self": 3, "mask": [1]}, 0, 1), ("unmask", {"seed": "zz"}, 0, 1),
        ("unmask", {"self": {"a0": "x", "nobody": 1}, "mask": {"a1": 2**600}}, 0, 0),
        ("unmask", {"seed": "00" * 32}, 1, 0),
    ],
)  # fmt: skip
def test_who_breaks_the_protocol_ends_nothing(
    step: str, notes: dict[str, Any], lost: int, strikes: int, tmp_path: Path
) -> None:
    """Left out where that is possible, and struck where it can be told whose fault it is.

    A lie about a mask loses the round, and changes nothing.
    """
    made = dict(clients(tmp_path, 4, True))
    meddler = Meddler(inner=Adder("a3", 0.4, 40, shapes=START), largest=LARGEST)
    meddler.step, meddler.notes = step, notes
    made["a3"] = partial(Worker, meddler, ClientStore(tmp_path / "a3"))
    job, _ = run(tmp_path, 4, link=Seen(made), rounds=1)
    assert job.rounds[-1].metrics["unmask/lost"] == lost
    assert job.audit.strikes["a3"] == strikes
    assert [(line["event"], line["action"]) for line in job.audit.lines if line["event"] == "rejected"] == [
        ("rejected", step)
    ] * strikes
    assert not lost or all(torch.equal(job.program.tensors[name], value) for name, value in START.items())
    if not lost:  # without a3, unless it takes its part and spoils notes that nobody needs
        expected = 0.3 if step == "unmask" or notes == {"shares": {"a0": "00", "a1": "00", "a2": "ff"}} else 1.4 / 6
        assert float(job.program.tensors["b"].mean()) == pytest.approx(expected, abs=1e-4)


class Nesting(SecureClient):
    """Seals for its neighbours what takes a reader as deep as it likes."""

    def _shares(self, work: Work) -> dict[str, str]:
        peers, nonce = work.head.settings["peers"], self._nonce(work)
        deep = b"[" * 5000
        return {
            name: masks.sealed(self._channel(nonce, peer, work, to=name), deep).hex() for name, peer in peers.items()
        }


def test_what_a_neighbour_sealed_fails_nobody(tmp_path: Path) -> None:
    made = dict(clients(tmp_path, 4, True))
    deep = Nesting(inner=Adder("a3", 0.4, 40, shapes=START), largest=LARGEST)
    made["a3"] = partial(Worker, deep, ClientStore(tmp_path / "a3"))
    job, _ = run(tmp_path, 4, link=Seen(made), rounds=1)
    assert not job.audit.lines
    assert job.rounds[-1].metrics["unmask/lost"] == 0, "it told its own mask itself"


def test_a_server_killed_between_steps_finds_what_clients_kept(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", 3)
    with killed_at(2):
        run(tmp_path / "cut", 3)
    again, _ = run(tmp_path / "cut", 3)
    assert {name: value.tolist() for name, value in again.program.tensors.items() if name in START} == {
        name: value.tolist() for name, value in whole.program.tensors.items() if name in START
    }, "a client that lost its count would add less"


def test_nobody_may_claim_to_outweigh_all_others(tmp_path: Path) -> None:
    made = dict(clients(tmp_path, 4, True))
    liar = SecureClient(inner=Adder("a3", 5.0, 10**9, shapes=START), largest=LARGEST)
    made["a3"] = partial(Worker, liar, ClientStore(tmp_path / "a3"))
    job, _ = run(tmp_path, 4, link=Seen(made), rounds=1)
    heaviest = 10 * 25  # ten times the median of 10, 20, 30 and a billion
    expected = (0.1 * 10 + 0.2 * 20 + 0.3 * 30 + 5.0 * heaviest) / (60 + heaviest)
    assert float(job.program.tensors["b"].mean()) == pytest.approx(expected, abs=1e-3)


def test_a_device_that_sends_less_may_not_join(tmp_path: Path) -> None:
    program = SecureProgram(replaced := Program(START, phases=(Phase(merger=Mean),)), largest=1.0)
    replaced.assign = lambda *_: {"a": Subnet({"x": 1})}  # type: ignore[method-assign]
    program.check(Profile(name="a", examples=1))  # all that is exchanged is whole, whatever it works on
    for less in (Layout({"w": {0: torch.arange(2)}, "b": {}}), Layout.whole("w")):
        replaced.layout = lambda *_, found=less: found  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match="a would get a sub-network"):
            program.check(Profile(name="a", examples=1))


SMALL_STEP = 1.0  # largest change of a number when adapters are trained: a step is 2⁻²⁰ of it


def lora(folder: Path, names: str, gone: Mapping[str, Collection[str]] | None = None) -> Federation:
    """One round of FFM's adapters by the plain mean, of toy encoders; secure where somebody may be gone.

    Args:
        folder: For clients and server.
        names: Of the clients.
        gone: By client, the actions from which on nothing is heard of it; None is without masks.
    """
    model = encoder()
    method = FFM(FFM.Config(lr=0.02, batch=8, rank=4, merge="mean"))
    method.prepare(model, 0)
    site = ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=folder)
    server: Any = method.server(site)
    made: dict[str, Any] = {}
    for name in names:
        facts = Profile(name=name, examples=0)
        client: Any = method.client(ClientSite(facts=facts, model=model, lesson=lesson(ord(name)), seed=0))
        client = client if gone is None else SecureClient(inner=client, largest=SMALL_STEP)
        made[name] = partial(Worker, client, ClientStore(folder / name))

    class Leaving(LocalLink):
        def send(self, orders: Any) -> None:
            left = gone or {}
            super().send([one for one in orders if one.parcel.head["action"] not in left.get(one.address, ())])

    program = server if gone is None else SecureProgram(server, largest=SMALL_STEP)
    config = RoundsConfig(rounds=1, evaluate_every=0, deadline=5.0)
    job = Federation(program, Leaving(made), config, folder=folder / "server", identity={})
    job.run()
    return job


@pytest.mark.parametrize(
    ("left", "counted"),
    [({"mask-shares", "train", "unmask"}, "abde"), ({"train", "unmask"}, "abde"), ({"unmask"}, "abcde")],
)
def test_adapters_are_summed_within_a_step_though_one_leaves(
    left: set[str], counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone after its keys, after its shares, or after its masked vector, which the others' shares take the mask off."""
    # Training is another phase of the round there, so that its order would have another seed.
    monkeypatch.setattr("lissome.engine.federate.exchange.derive", lambda *_: 7)
    plain, masked = lora(tmp_path / "plain", counted), lora(tmp_path / "masked", "abcde", {"c": left})
    assert masked.rounds[-1].metrics["unmask/lost"] == 0
    assert {line["client"] for line in masked.audit.lines} == {"c"}
    assert any(".adapter." in name for name in plain.program.tensors)
    for name, value in plain.program.tensors.items():
        assert float((masked.program.tensors[name] - value).abs().max()) <= SMALL_STEP / masks.STEPS, name
    before, after = (one.metrics["server/loss"] for one in plain.rounds)
    assert after < before - 1e-3, "something was learned that could be lost"


@pytest.mark.parametrize("count", [1, 2])
def test_a_sum_that_hides_nobody_is_never_unmasked(count: int, tmp_path: Path) -> None:
    """All share their secrets and would open the sum, but too few sent a summand: one alone would stand there bare."""
    made = clients(tmp_path, 5, True)
    silent = {f"a{index}" for index in range(count, 5)}

    class Lost(Seen):
        """Orders to train are lost."""

        def send(self, orders: Any) -> None:
            super().send([one for one in orders if one.parcel.head["action"] != "train" or one.address not in silent])

    job, _ = run(tmp_path, 5, link=Lost(made), rounds=1, deadline=5.0, quorum=0.2)
    assert not job.rounds[-1].ok
    assert all(torch.equal(job.program.tensors[name], value) for name, value in START.items())
    lines = [line for line in job.audit.lines if line["event"] == "failed"]
    assert len(lines) == 5
    assert all(f"a sum of {count} hides nobody" in str(line["reason"]) for line in lines)
