"""RaFFM: order keeps the function, sizes fit devices, windows, nested steps, and what merging must not shrink."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.errors import ConfigError
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.bound import Bound, cut_model
from lissome.engine.federate.client import Worker
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Overlap, Piece
from lissome.engine.federate.method import ClientSite, ServerSite
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import TRAIN
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.subnets import share_space
from lissome.engine.paths import Together, at_share
from lissome.methods.federate.raffm import RaFFM, unit_orders
from lissome.models.binding import reorder
from lissome.models.example import example
from lissome.models.model import Model
from lissome.testing.networks import NETWORKS, network_model
from lissome.testing.toys import toy_inputs, toy_model
from tests.engine.federate.fleet import encoder, federation, lesson

KINDS = ("width", "groups")
SHARES = (1.0, 0.75, 0.5, 0.25)


def made(model: Model, folder: Path, **changes: Any) -> Any:
    """The server's side of RaFFM on a prepared model."""
    method = RaFFM(RaFFM.Config(**changes))
    method.prepare(model, 0)
    return method.server(ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=folder))


def profiles(*budgets: str) -> list[Profile]:
    return [Profile(name=f"c{index}", examples=8, budget=budget) for index, budget in enumerate(budgets)]


def output(model: Model, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Any = model.module(**inputs)
    return found if isinstance(found, Tensor) else found[0]


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2", "gpt2", "vit", "bamba"])
@pytest.mark.parametrize("changes", [{"norm": "l1"}, {"norm": "l2"}, {"order": "random"}])
def test_order_keeps_the_function_and_makes_it_salient_first(family: str, changes: dict[str, Any]) -> None:
    model = toy_model(family, seed=len(family))
    inputs = toy_inputs(model, 1)
    before = output(model, inputs)
    weights = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    RaFFM(RaFFM.Config(**changes)).prepare(model, 3)
    assert torch.allclose(output(model, inputs), before, rtol=1e-4, atol=1e-5)
    moved = [name for name, value in model.module.named_parameters() if not torch.equal(value, weights[name])]
    assert moved, "an order that moves nothing would prove nothing"
    if "norm" in changes:
        again = unit_orders(model, norm=int(changes["norm"][1]))
        for axis, order in again.items():
            assert torch.equal(order, torch.arange(order.shape[1]).expand_as(order)), f"{axis} is not in order"


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_of_any_kind_keep_their_function(name: str) -> None:
    model = network_model(name)
    inputs = example(model, batch=2)
    before = output(model, inputs)
    reorder(model, unit_orders(model))
    assert torch.allclose(output(model, inputs), before, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.lists(st.sampled_from(["", "block_params<=70%", "block_params<=40%"]), max_size=6))
def test_sandwich_within_budgets(seed: int, budgets: list[str]) -> None:
    server = made(encoder(), Path())
    clients = profiles(*budgets)
    found = server.assign(1, clients, Random(seed))
    space, planner = server.planner.space, server.planner
    assert set(found) == {one.name for one in clients}
    for one in clients:
        chosen = found[one.name] or space.full
        assert space.check(chosen) == chosen
        assert planner.fits(chosen, Budget.parse(one.budget) if one.budget else Budget())
    sizes = [planner.figures(found[one.name] or space.full)["params"] for one in clients]
    able = [planner.figures(server.largest(one) or space.full)["params"] for one in clients]
    if clients:
        assert max(sizes) == max(able), "one trains the most that anybody can hold"
    if len(clients) > 1:
        assert space.smallest in found.values()
    judged = server.judged(1, clients, found, Random(0))
    assert judged == {one.name: server.largest(one) for one in clients}, "judged by the largest, whatever was trained"


def test_a_plain_mean_takes_no_slices() -> None:
    assert RaFFM.Config(merge="mean", assign="largest").merge == "mean"
    with pytest.raises(ConfigError, match="assign=largest"):
        RaFFM.Config(merge="mean")


def test_arms_of_other_papers(tmp_path: Path) -> None:
    clients = profiles("block_params<=50%", "block_params<=50%", "")
    heterofl = made(encoder(), tmp_path, order="none", assign="largest")
    first, second, whole = heterofl.assign(3, clients, Random(1)).values()
    assert first == second, "static slices"
    assert whole is None
    rolling = made(encoder(), tmp_path, order="none", assign="largest", window="rolling")
    places = [rolling.layout(TRAIN, number, clients[0], first).keys for number in (1, 2, 3)]
    assert len({tuple(sorted(one.items())) for one in places}) == 3, "the window moves every round"
    assert rolling.layout(TRAIN, 1, clients[0], first).keys == heterofl.layout(TRAIN, 1, clients[0], first).keys
    with pytest.raises(ConfigError, match="trains=all"):
        RaFFM.Config(window="rolling", trains="adapters")
    for kept in ({"moments": True}, {"up": "delta+top=5%+feedback"}):
        with pytest.raises(ConfigError, match="fits no other"):
            RaFFM.Config(window="rolling", **kept)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="to be trained"):
        made(encoder(), tmp_path, window="rolling", freeze=("*intermediate*",))
    with pytest.raises(ConfigError, match="the whole"):
        RaFFM.Config(shares=(0.5, 0.25))
    with pytest.raises(ConfigError, match="it has: groups, width"):
        made(encoder(), tmp_path, elastic=("kernel",))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["bert", "llama", "vit", "gpt2"]), st.integers(0, 40), st.integers(0, 999))
def test_a_window_is_the_leading_slice_of_a_model_in_that_order(family: str, first: int, seed: int) -> None:
    model, inputs = toy_model(family), toy_inputs(toy_model(family), 2)
    subnet = share_space(model, ("width", "groups", "queries"), SHARES).sample(Random(seed))
    tensors = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    layout = Layout.of_window(model, subnet, tensors, first)
    small = cut_model(model, subnet)
    Bound.of(model, small, small.module, subnet).load(layout.cut(tensors))
    rolled = {
        branch.axis(dim.name): ((torch.arange(dim.size) + first) % dim.size).expand(dim.lanes, -1)
        for branch in model.anatomy.branches
        for dim in branch.dims
    }
    reorder(model, rolled)
    expected = output(cut_model(model, subnet), inputs)
    assert torch.allclose(output(small, inputs), expected, rtol=1e-4, atol=1e-5)


def test_shares_are_drawn_together_and_within_what_a_device_holds() -> None:
    space = share_space(encoder(), KINDS, SHARES)
    half = at_share(space, 0.5)
    drawn = Together(space, SHARES, within=half)
    assert drawn.space.full == half
    found = {drawn.draw(step, Random(step))[0] for step in range(40)}
    assert found == {half, at_share(space, 0.25)}
    assert {one for step in range(60) for one in Together(space, SHARES).draw(step, Random(step))} == {
        at_share(space, share) for share in SHARES
    }


class _ByAll(Overlap):
    """The published aggregator: zeros where a client holds nothing, and the sum divided by all clients."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__(base)
        self._all = 0.0

    def add(self, piece: Piece) -> None:
        self._all += piece.weight
        super().add(piece)

    def result(self) -> dict[str, Tensor]:
        return {name: (total / self._all).to(self.base[name].dtype) for name, total in self._sums.items()}


def _clients(model: Model, folder: Path, method: RaFFM, budgets: Mapping[str, str]) -> dict[str, Any]:
    sites = {
        name: ClientSite(facts=Profile(name=name, examples=0, budget=budget), model=model, lesson=lesson(index), seed=0)
        for index, (name, budget) in enumerate(budgets.items())
    }
    return {name: partial(Worker, method.client(site), ClientStore(folder / name)) for name, site in sites.items()}


BUDGETS = {"a": "", "b": "block_params<=60%", "c": "block_params<=40%"}


@pytest.mark.parametrize("window", ["leading", "rolling"])
def test_clients_that_learn_nothing_change_nothing(window: str, tmp_path: Path) -> None:
    """Dividing by all clients instead would shrink what few hold, round by round."""
    config = RaFFM.Config(lr=0.0, window=window)  # type: ignore[arg-type]
    kept = {}
    for merger in (Overlap, _ByAll):
        model = encoder()
        server = made(model, tmp_path, lr=0.0, window=window)
        server._phases = (config.phase(merger=merger),)
        start = {name: value.clone() for name, value in server.tensors.items()}
        who = _clients(model, tmp_path / merger.__name__, RaFFM(config), BUDGETS)
        federation(server, who, tmp_path / merger.__name__ / "server", rounds=3).run()
        kept[merger] = [
            float(server.tensors[name].norm() / value.norm()) for name, value in start.items() if value.any()
        ]
    assert set(kept[Overlap]) == {1.0}
    assert min(kept[_ByAll]) < 0.8, "the regression that this guards against"


@pytest.mark.parametrize(
    "changes", [{}, {"nested": True, "order": "none", "assign": "largest"}, {"window": "rolling", "assign": "largest"}]
)
def test_it_learns(changes: dict[str, Any], tmp_path: Path) -> None:
    model = encoder()
    server = made(model, tmp_path, lr=0.01, epochs=3, batch=8, **changes)
    who = _clients(model, tmp_path, RaFFM(RaFFM.Config(lr=0.01, epochs=3, batch=8, **changes)), BUDGETS)
    rounds = federation(server, who, tmp_path / "server", rounds=4).run()
    assert rounds[-1].metrics["server/loss"] < rounds[0].metrics["server/loss"] - 0.1
    assert server.evaluate(4)["accuracy"] > 0.5


def test_adapters_of_slices_travel_alone(tmp_path: Path) -> None:
    model = encoder()
    server = made(model, tmp_path, trains="adapters", rank=4)
    assert all(".adapter." in name or name.startswith("task/") for name in server.tensors)
    half = at_share(server.planner.space, 0.5)
    sizes = {name: shape.numel() for name, shape in server.layout_of(half).templates(server.tensors).items()}
    assert sum(sizes.values()) < sum(value.numel() for value in server.tensors.values())
    who = _clients(model, tmp_path, RaFFM(RaFFM.Config(trains="adapters", rank=4, lr=0.02)), BUDGETS)
    rounds = federation(server, who, tmp_path / "server", rounds=2).run()
    assert rounds[-1].metrics["server/loss"] < rounds[0].metrics["server/loss"]
