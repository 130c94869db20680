"""Personal models: what a client evaluates is a mixture of what came and of what it made of it, and costs no byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lissome.engine.federate.client import Work
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.training import MINE, TrainingClient, global_tensors
from lissome.models.model import Model
from tests.engine.federate.fleet import QUICK, digest, encoder, federation, lesson, subnet_program, training_clients


def client(model: Model, common: float) -> TrainingClient:
    facts = Profile(name="c", examples=0)
    return TrainingClient(facts=facts, base=model, lesson=lesson(1), config=QUICK, common=common)


def order(action: str, tick: int) -> OrderHead:
    return OrderHead(action=action, ticket=str(tick), round=1, tick=tick, seed=3)


@pytest.mark.parametrize("common", [0.0, 0.3])
def test_what_is_evaluated_is_the_mixture(common: float) -> None:
    model = encoder()
    tensors = global_tensors(model, lesson(0))
    one = client(model, common)
    answer = one.act(Work(head=order("train", 100), tensors=tensors))
    assert answer.keep is not None
    assert {name.removeprefix(MINE) for name in answer.keep.tensors} == set(tensors)
    later = {name: value + 0.01 * torch.randn_like(value) for name, value in tensors.items()}
    found = one.act(Work(head=order("evaluate", 101), tensors=later, kept=answer.keep))
    by_hand = {name: common * value + (1 - common) * answer.tensors[name] for name, value in later.items()}
    wanted = client(model, 1.0).act(Work(head=order("evaluate", 102), tensors=by_hand))
    assert found.metrics["loss"] == pytest.approx(wanted.metrics["loss"], rel=1e-5)
    plain = client(model, 1.0).act(Work(head=order("evaluate", 103), tensors=later))
    assert found.metrics["loss"] != pytest.approx(plain.metrics["loss"], rel=1e-3)


def test_the_global_model_and_the_bytes_are_as_without(tmp_path: Path) -> None:
    found = {}
    for common in (1.0, 0.5):
        model, folder = encoder(), tmp_path / str(common)
        clients = training_clients(model, ["a", "b"], folder, budgets={"b": "block_params<=50%"}, common=common)
        program = subnet_program(model)
        job = federation(program, clients, folder / "server", evaluate_every=1)
        scores = job.run()[-1].scores
        kept = {name: made()._store.before(10_000) for name, made in clients.items()}
        assert all(bool(one.tensors) == (common < 1) for one in kept.values())
        assert ("subnet" in kept["b"].facts) == (common < 1)
        found[common] = (digest(program.tensors), job.bytes(), scores)
    assert found[1.0][:2] == found[0.5][:2]
    assert all(found[0.5][2][name]["loss"] != found[1.0][2][name]["loss"] for name in "ab")
