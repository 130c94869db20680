"""Clients that train: names, Subnets within budgets, what stays private, moments that go on, and that it helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.errors import BudgetError, BudgetUnmetError, FederationError
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.bound import Bound, cut_model
from lissome.engine.federate.client import Work
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Tokens
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.training import TrainingClient, global_tensors, is_private
from lissome.engine.train import TrainConfig
from lissome.models.adapters import Design, add_adapters
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.testing.toys import toy_ids, toy_model
from tests.engine.federate.fleet import QUICK, digest, encoder, federation, lesson, subnet_program, training_clients


def client(model: Model, **options: object) -> TrainingClient:
    facts = Profile(name="c", examples=0)
    return TrainingClient(facts=facts, base=model, lesson=lesson(1), config=QUICK, **options)  # type: ignore[arg-type]


def order(model: Model, subnet: Subnet | None = None, **changes: object) -> OrderHead:
    fields = {"action": "train", "ticket": "t1", "round": 1, "tick": 100, "seed": 3, **changes}
    return OrderHead(subnet=subnet.to_json() if subnet is not None else None, **fields)  # type: ignore[arg-type]


def test_federated_subnets_learn_within_their_budgets(tmp_path: Path) -> None:
    model = encoder()
    budgets = {"b": "block_params<=50%", "c": "block_params<=25%"}
    config = replace(QUICK, steps=6, lr=5e-3)
    clients = training_clients(model, ["a", "b", "c"], tmp_path, budgets=budgets, config=config)
    program = subnet_program(model)
    job = federation(program, clients, tmp_path / "server", rounds=5, evaluate_every=5)
    rounds = job.run()
    assert rounds[-1].metrics["server/accuracy"] > rounds[0].metrics["server/accuracy"] + 0.3
    assert min(score["accuracy"] for score in rounds[-1].scores.values()) > 0.6
    assert set(rounds[1].subnets) == {"b", "c"}
    planner = program.planner
    assert planner is not None
    for name, budget in budgets.items():
        chosen = Subnet(rounds[1].subnets[name])
        assert planner.fits(chosen, Budget.parse(budget))
        assert planner.use(chosen, Budget.parse(budget)) > 0.8
    sent = {name: job.bytes(client=name, action="train", direction="up").payload for name in "abc"}
    assert sent["a"] > sent["b"] > sent["c"]
    whole = sum(value.numel() * 4 for value in program.tensors.values())
    assert sent["a"] == 5 * whole


def test_what_is_private_never_leaves(tmp_path: Path) -> None:
    model = encoder()
    clients = training_clients(model, ["a", "b"], tmp_path, private=("task/*", "*.bias"))
    tensors = global_tensors(model, lesson(0), ("task/*", "*.bias"))
    program = subnet_program(model)
    program.tensors = dict(tensors)
    before = digest(tensors)
    federation(program, clients, tmp_path / "server", rounds=2, evaluate_every=1).run()
    assert not any(is_private(name, ("task/*", "*.bias")) for name in program.tensors)
    assert digest(program.tensors) != before
    kept = {name: made()._store.before(10_000).tensors for name, made in clients.items()}
    assert all(any(name == "task/head.weight" for name in one) for one in kept.values())
    assert not torch.equal(kept["a"]["task/head.weight"], kept["b"]["task/head.weight"])


@pytest.mark.parametrize("family", ["llama", "bert", "vit", "mamba2"])
def test_parameters_of_a_cut_model_have_their_global_names(family: str) -> None:
    model = toy_model(family)
    subnet = model.space(width=8).sample(Random(1), keep=0.6)
    small = cut_model(model, subnet)
    bound = Bound.of(model, small, small.module, subnet)
    tensors = {name: value.detach() for name, value in model.module.named_parameters()}
    parts = Layout.of_subnet(model, subnet, tensors).cut(tensors)
    assert set(bound.parameters) == set(parts)
    bound.load({name: value + 1 for name, value in parts.items()})
    for name, value in bound.values(list(parts)).items():
        assert torch.equal(value, parts[name] + 1)
    with pytest.raises(FederationError, match="no 'nothing'"):
        bound.load({"nothing": torch.zeros(1)})


def test_frozen_stays_frozen_in_a_cut_model() -> None:
    model = encoder()
    add_adapters(model, Design(ranks=(4, 2)))
    subnet = model.space(width=8).sample(Random(2), keep=1.0)
    small = cut_model(model, subnet)
    trained = {name for name, value in small.module.named_parameters() if value.requires_grad}
    assert trained
    assert all(".adapter." in name for name in trained)
    whole = cut_model(model, None)
    assert sum(value.requires_grad for value in whole.module.parameters()) == len(trained)


def test_moments_go_on_where_they_were() -> None:
    """Two orders of three steps each, the second from what the first gave, are six steps in one go."""
    model, tensors = encoder(), global_tensors(encoder(), lesson(1))
    two, one = client(model, moments=True), client(model, moments=True)
    first = two.act(Work(head=order(model), tensors=tensors))
    assert first.keep is not None
    again = order(model, ticket="t2", tick=200, seed=99)
    second = two.act(Work(head=again, tensors=first.tensors, kept=first.keep))
    long = replace(QUICK, steps=6)
    once = replace(one, config=long).act(Work(head=order(model), tensors=tensors))
    assert digest(second.tensors) == digest(once.tensors)
    fresh = client(model).act(Work(head=again, tensors=first.tensors))
    assert digest(fresh.tensors) != digest(second.tensors)


def test_moments_of_another_subnet_are_left_out() -> None:
    model = encoder()
    worker, tensors = client(model, moments=True), global_tensors(model, lesson(1))
    first = worker.act(Work(head=order(model), tensors=tensors))
    subnet = model.space(width=8).smallest
    part = Layout.of_subnet(model, subnet, tensors).cut(tensors)
    assert first.keep is not None
    answer = worker.act(Work(head=order(model, subnet, ticket="t2", tick=200), tensors=part, kept=first.keep))
    assert {name: value.shape for name, value in answer.tensors.items()} == {n: v.shape for n, v in part.items()}


def test_the_server_may_set_the_rate() -> None:
    model, tensors = encoder(), global_tensors(encoder(), lesson(1))
    still = client(model).act(Work(head=order(model, settings={"train": {"lr": 0.0}}), tensors=tensors))
    assert digest(still.tensors) == digest(tensors)


def test_language_models_learn_the_next_token() -> None:
    model = toy_model("llama", num_hidden_layers=2)
    windows = toy_ids(model, 0, 12, 10) % 4 + 3
    teller = TrainingClient(
        facts=Profile(name="c", examples=0), base=model, lesson=Tokens(windows, windows[:4]),
        config=TrainConfig(steps=12, lr=0.01, batch=8, precision="fp32"),
    )  # fmt: skip
    tensors = global_tensors(model, teller.lesson)
    before = teller.act(Work(head=order(model, action="evaluate"), tensors=tensors)).metrics["loss"]
    answer = teller.act(Work(head=order(model, ticket="t2"), tensors=tensors))
    after = teller.act(Work(head=order(model, action="evaluate", ticket="t3"), tensors=answer.tensors)).metrics["loss"]
    assert after < before - 0.5
    assert answer.weight == 12


MODELS = {family: toy_model(family) for family in ("llama", "bert", "bamba")}
PLANNERS = {
    family: Planner(model.space(width=4), SubnetCost(model), lambda subnet: float(sum(subnet.values())))
    for family, model in MODELS.items()
}


@settings(max_examples=20)
@given(st.sampled_from(sorted(MODELS)), st.integers(50, 100), st.integers(0, 99))
def test_subnets_stay_within_budgets(family: str, percent: int, seed: int) -> None:
    planner, budget = PLANNERS[family], Budget.parse(f"params<={percent}%")
    try:
        largest = planner.largest(budget)
    except BudgetUnmetError as error:
        assert not planner.fits(planner.space.smallest, budget)
        assert "reachable is params" in str(error)
        return
    assert planner.fits(largest, budget)
    assert planner.space.check(largest) == largest
    drawn = planner.random(budget, Random(seed))
    assert planner.fits(drawn, budget)
    assert drawn == planner.random(budget, Random(seed))
    grown = [
        planner.space.canonical(largest.replace({axis.name: axis.choices[axis.choices.index(largest[axis.name]) + 1]}))
        for axis in planner.space.axes
        if largest[axis.name] != axis.full
    ]
    assert not any(planner.fits(one, budget) for one in grown if one != largest), "no axis could be larger"


def test_budgets_of_bytes_per_round() -> None:
    planner = PLANNERS["bert"]
    most = planner.full["uplink"]
    chosen = planner.largest(Budget.parse(f"uplink<={most / 2:.0f}B"))
    assert planner.figures(chosen)["uplink"] <= most / 2
    assert planner.largest(Budget()) == planner.space.full
    assert planner.use(chosen, Budget()) == 1.0
    with pytest.raises(BudgetUnmetError, match="reachable"):
        planner.random(Budget.parse("uplink<=1B"), Random(0))


def test_a_budget_of_what_nobody_counts_says_what_can_be_bounded() -> None:
    model = encoder()
    planner = Planner(model.space(width=8), SubnetCost(model))
    for ask in (planner.largest, lambda budget: planner.random(budget, Random(0))):
        with pytest.raises(BudgetError, match=r"latency.*macs"):
            ask(Budget.parse("latency<=50%"))


def test_profiles_say_how_many_examples_there_are() -> None:
    found: Mapping[str, object] = client(encoder()).profile().to_json()
    assert found["examples"] == 24
