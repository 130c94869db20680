"""Rounds whose result cannot be used: they change nothing, say who took part, and find who spoils them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lissome.core.errors import FederationError, NumericsError
from lissome.engine.federate.client import Worker
from lissome.engine.federate.lengths import Lengths
from lissome.engine.federate.merge import Bounded, Piece
from lissome.engine.federate.outer import Momentum
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.program import Phase, Program
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.store import ClientStore
from tests.engine.federate.fleet import (
    Adder,
    digest,
    encoder,
    federation,
    killed_at,
    subnet_program,
    training_clients,
    whole,
)


class Spoiler:
    """A client whose tensors are finite, none of their numbers beyond what one may be; no model works with them."""

    def __init__(self, honest: Callable[[], Worker], size: float) -> None:
        self._honest, self._size = honest, size

    def handle(self, parcel: Parcel) -> Parcel:
        answer, generator = self._honest().handle(parcel), torch.Generator().manual_seed(5)
        spoilt = {
            name: self._size * torch.randn(value.shape, generator=generator).sign()
            for name, value in answer.tensors.items()
        }
        return replace(answer, tensors=spoilt)


def spoilt(folder: Path, size: float, names: str = "abcd", phase: Phase | None = None, **settings: Any) -> Federation:
    """A federation of a small encoder in which client c spoils what it sends."""
    model = encoder()
    clients: dict[str, Any] = training_clients(model, list(names), folder)
    clients["c"] = partial(Spoiler, clients["c"], size)
    program = subnet_program(model, phases=(phase or Phase(),))
    return federation(program, clients, folder / "server", **{"rounds": 4, **settings})


def events(job: Federation) -> list[tuple[object, object, object]]:
    return [(line["round"], line["event"], line["client"]) for line in job.audit.lines]


@pytest.mark.parametrize("names", ["abcd", "bc"])
def test_values_that_no_model_works_with_are_refused_from_the_first_round(names: str, tmp_path: Path) -> None:
    job = spoilt(tmp_path, 9e5, names)
    rounds = job.run()
    assert all(one.ok for one in rounds)
    assert [one.answered for one in rounds[1:]] == [len(names) - 1] * 4
    assert events(job) == [(1, "rejected", "c"), (2, "rejected", "c"), (3, "rejected", "c"), (3, "banned", "c")]
    assert rounds[-1].metrics["server/loss"] < rounds[0].metrics["server/loss"]


def test_the_first_round_with_an_update_far_beyond_the_others_is_void(tmp_path: Path) -> None:
    """No longer than a thousand times what was sent, so that it is known only once the others are there."""
    job = spoilt(tmp_path, 30.0)
    start = digest(job.program.tensors)
    with killed_at(1, recorded=True):
        job.run()
    assert digest(job.program.tensors) == start, "nothing of a void round is kept"
    assert (job.rounds[1].ok, job.rounds[1].answered) == (False, 0)
    assert job.rounds[1].metrics["server/loss"] == job.rounds[0].metrics["server/loss"]
    job = spoilt(tmp_path, 30.0)
    rounds = job.run()
    assert [one.ok for one in rounds] == [True, False, True, True, True]
    assert [one.answered for one in rounds[2:]] == [3, 3, 3]
    assert [len(one.clients) for one in rounds[1:]] == [4, 4, 4, 3], "three strikes"
    took_part = [(1, "void", name) for name in "abcd"]
    assert events(job) == [
        *took_part, (1, "rejected", "c"), (2, "rejected", "c"), (3, "rejected", "c"), (3, "banned", "c")
    ]  # fmt: skip
    assert rounds[-1].metrics["server/loss"] < rounds[0].metrics["server/loss"]


def test_a_server_killed_after_a_void_round_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    undisturbed = spoilt(tmp_path / "whole", 30.0)
    undisturbed.run()
    with killed_at(2):
        spoilt(tmp_path / "cut", 30.0).run()
    again = spoilt(tmp_path / "cut", 30.0)
    again.run()
    assert digest(again.program.tensors) == digest(undisturbed.program.tensors)
    assert again.audit.strikes == undisturbed.audit.strikes


class Steep(Program):
    """Judged by exp(w), which is infinite beyond 88."""

    def evaluate(self, round: int) -> dict[str, float]:
        return {"loss": float(self.tensors["w"].exp().mean())}


def steep(folder: Path, steps: Mapping[str, float], **settings: Any) -> Federation:
    start = {"w": torch.zeros(3)}
    clients = {
        name: partial(Worker, Adder(name, step, shapes=start), ClientStore(folder / name))
        for name, step in steps.items()
    }
    outer = Momentum(lr=1.0, momentum=0.5)
    return federation(Steep(start, outer=outer), clients, folder / "server", rounds=6, **settings)


def test_who_stands_out_in_rounds_that_cannot_be_judged_is_struck_and_they_are_no_failures(tmp_path: Path) -> None:
    honest = {"a": 0.5, "b": 0.6, "d": 0.7}
    job = steep(tmp_path, {**honest, "c": 300.0}, strikes=2, failures=1)
    rounds = job.run()
    assert [one.ok for one in rounds[1:]] == [False, False, True, True, True, True]
    assert [line["client"] for line in job.audit.lines if line["event"] == "rejected"] == ["c", "c"]
    assert job.audit.count("void") == 8
    assert job.bytes(round=1).payload > 0, "what was sent is counted all the same"


def test_where_nobody_can_tell_who_lies_the_federation_ends_and_can_be_continued(tmp_path: Path) -> None:
    """Of two, either may be the liar: rounds are void, and what was good stays."""
    job = steep(tmp_path, {"a": 0.01, "b": 400.0})
    with pytest.raises(FederationError, match=r"3 rounds in a row gave nothing that can be used .*loss is inf"):
        job.run()
    assert job.program.tensors["w"].tolist() == [0.0, 0.0, 0.0]
    assert not job.program.outer.state(), "the optimizer of the server is taken back too"
    assert {event for _, event, _ in events(job)} == {"void"}
    again = steep(tmp_path, {"a": 0.01, "b": 0.02})
    assert [one.ok for one in again.run()] == [True, False, False, False, True, True, True]


def test_a_model_that_cannot_be_judged_at_the_start_is_said_at_once(tmp_path: Path) -> None:
    job = steep(tmp_path, {"a": 0.01})
    job.program.tensors["w"] += 100.0
    with pytest.raises(NumericsError, match="loss is inf"):
        job.run()


def test_a_merge_that_shortens_updates_needs_no_such_care(tmp_path: Path) -> None:
    job = spoilt(tmp_path, 9e5, phase=Phase(merger=partial(Bounded, norm=0.1)))
    assert all(one.ok for one in job.run())
    assert not job.audit.lines


def _piece(name: str, length: float) -> Piece:
    tensors = {"w": torch.tensor([length])}
    return Piece(client=name, weight=1.0, layout=whole(tensors), tensors=tensors)


def test_what_is_far_beyond_the_median_and_all_that_was_sent() -> None:
    base = {"w": torch.zeros(1)}
    lengths = Lengths()
    lengths.begin("train", base)
    for name, length in (("a", 1.0), ("b", 5e5)):
        lengths.check(_piece(name, length))
    lengths.settle()
    assert not lengths.suspects(), "two have no median"
    lengths.check(_piece("c", 2.0))
    with pytest.raises(NumericsError, match="5e"):
        lengths.settle()
    assert lengths.suspects() == {"b": 5e5 / 2.0}
    again = Lengths()
    again.restore(lengths.state())
    again.begin("train", base)
    again.check(_piece("a", 1999.0))
    with pytest.raises(FederationError, match="where 2 is usual"):
        again.check(_piece("b", 2001.0))
    assert list(again.found) == ["a"]
    again.begin("another action", base)
    again.check(_piece("b", 2001.0))
    sent = {"w": torch.tensor([3000.0])}
    again.begin("train", sent)
    again.check(_piece("b", 500.0))  # an update of 2,500: long, but shorter than what was sent
    again.begin("the first of its kind", sent)
    again.check(_piece("b", 3e6))
    with pytest.raises(FederationError, match=r"all that was sent 3e\+03"):
        again.check(_piece("b", 3.1e6))
    again.begin("train", None)
    again.check(_piece("b", 1e9))
    again.settle()
    assert not again.suspects()
    assert again.state() == lengths.state(), "nobody looked"
