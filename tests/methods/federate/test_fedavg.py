"""Federated averaging: one round by hand, budgets, and that it is no step of `fit`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lissome.core.budget import Budget
from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.registry import method
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.bound import TASK
from lissome.engine.federate.client import Worker
from lissome.engine.federate.layout import put
from lissome.engine.federate.local import LocalLink
from lissome.engine.federate.method import ClientSite, FederatedMethod, ServerSite
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.releases import Releases
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.store import ClientStore
from lissome.methods.federate.fedavg import FedAvg
from lissome.methods.federate.raffm import RaFFM
from lissome.ops.privacy import epsilon
from tests.engine.federate.fleet import encoder, killed_at, lesson


def test_one_round_is_the_mean_of_what_clients_trained(tmp_path: Path) -> None:
    model = encoder()
    made = FedAvg(FedAvg.Config(lr=0.01, epochs=1, batch=8))
    made.prepare(model, 0)
    server = made.server(ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=tmp_path))
    before = {name: value.clone() for name, value in server.tensors.items()}
    assert not any("embeddings" in name for name in before), "frozen by default"
    assert any(name.startswith(TASK) for name in before)
    lessons = {"a": lesson(1, 16), "b": lesson(2, 48)}
    clients = {
        name: made.client(ClientSite(facts=Profile(name=name, examples=0), model=model, lesson=one, seed=0))
        for name, one in lessons.items()
    }
    workers = {name: partial(Worker, client, ClientStore(tmp_path / name)) for name, client in clients.items()}
    job = Federation(
        server, LocalLink(workers), RoundsConfig(rounds=1, evaluate_every=0), folder=tmp_path / "s", identity={}
    )
    kept = {}

    class Spy(LocalLink):
        def receive(self, until: float):
            found = super().receive(until)
            if found is not None and found.parcel is not None and found.parcel.tensors:
                kept[found.address] = dict(found.parcel.tensors)
            return found

    job._link = job._exchange._link = Spy(workers)
    job.run()
    for name, value in server.tensors.items():
        mean = (16 * kept["a"][name].double() + 48 * kept["b"][name].double()) / 64
        assert torch.equal(value, mean.float()), name
    assert any(not torch.equal(value, before[name]) for name, value in server.tensors.items())


def test_what_freezes_nothing_is_refused() -> None:
    FedAvg(FedAvg.Config()).prepare(encoder(), 0)  # of the usual patterns one fits
    with pytest.raises(ConfigError, match=r"unknown tensor of freeze '\*embedings\*'; did you mean"):
        FedAvg(FedAvg.Config(freeze=("*embedings*",))).prepare(encoder(), 0)


def test_it_is_no_step_of_fit() -> None:
    info = method("fedavg")
    assert info.family == "federate"
    with pytest.raises(ConfigError, match="lissome federate"):
        info.load()(FedAvg.Config()).run(None, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lissome federate"):
        info.load()(FedAvg.Config()).plan(None, Budget())  # type: ignore[arg-type]


def noisy(folder: Path) -> Federation:
    config = FedAvg.Config(lr=0.01, bound=0.5, noise=0.8, noise_clients=2, delta=1e-4)
    model = encoder()
    made = FedAvg(config)
    made.prepare(model, 0)
    server = made.server(ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=folder / "s"))
    who = {
        name: partial(
            Worker,
            made.client(ClientSite(facts=Profile(name=name, examples=0), model=model, lesson=lesson(1), seed=0)),
            ClientStore(folder / name),
        )
        for name in ("a", "b")
    }
    loop = RoundsConfig(rounds=3, evaluate_every=0)
    return Federation(server, LocalLink(who), loop, folder=folder / "s", identity={})


def promised(job: Federation) -> list[float]:
    return [one.metrics["train/epsilon"] for one in job.run()[1:]]


def test_noise_says_what_it_promises(tmp_path: Path) -> None:
    assert promised(noisy(tmp_path)) == [epsilon(0.8, number, 1e-4) for number in (1, 2, 3)]
    for noise in (1e-3, 1e-300):
        with pytest.raises(ConfigError, match="promises nothing"):
            FedAvg.Config(noise=noise, bound=1.0, noise_clients=2)
    given = {"noise": 1.0, "bound": 1.0}
    for changes in ({"noise": 1.0}, given, {**given, "noise_clients": 2, "merge": "mean"}):
        with pytest.raises(ConfigError, match="noise needs"):
            FedAvg.Config(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "exact"),
    [
        (FedAvg(FedAvg.Config(bound=1.0, noise=1.0, noise_clients=4)), True),
        (RaFFM(RaFFM.Config(bound=1.0, noise=1.0, noise_clients=4, assign="largest", window="rolling")), False),
        (RaFFM(RaFFM.Config(bound=1.0, noise=1.0, noise_clients=4)), False),
    ],
)
def test_counts_follow_from_the_kinds_of_devices(made: FederatedMethod, exact: bool, tmp_path: Path) -> None:
    """Of four clients two have half of the model: four hold the first units, two the others."""
    model = encoder()
    made.prepare(model, 0)
    kinds = [("", 1.0), ("block_params<=50%", 1.0)]
    site = ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=tmp_path, kinds=kinds)
    server: Any = made.server(site)
    held, again = server.planned(site, 4), server.planned(site, 4)
    small = server.layout_of(server.largest(Profile(name="a", examples=1, budget=kinds[1][0])))
    for name, value in server.tensors.items():
        count = held.count(name, value.shape)
        assert torch.equal(count, again.count(name, value.shape))
        assert float(count.min()) > 0
        assert float(count.max()) <= 4
        if exact:
            expected = torch.full(value.shape, 2.0, dtype=torch.float64)
            put(expected, small.places[name], 4.0)
            assert torch.equal(count, expected), name
    assert any(bool(key) for key in small.keys.values()), "some tensors are cut"


def test_where_no_kinds_are_planned_all_hold_everything(tmp_path: Path) -> None:
    model = encoder()
    made = FedAvg(FedAvg.Config(bound=1.0, noise=1.0, noise_clients=3))
    site = ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=tmp_path)
    server: Any = made.server(site)
    held = server.planned(site, 3)
    assert all(bool((held.count(name, value.shape) == 3.0).all()) for name, value in server.tensors.items())


def test_noise_of_a_repeated_round_counts_twice(tmp_path: Path) -> None:
    with killed_at(2):
        noisy(tmp_path).run()
    assert promised(noisy(tmp_path)) == [epsilon(0.8, number, 1e-4) for number in (1, 3, 4)]


def test_the_count_of_noise_is_never_taken_for_less(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "releases.json", 0.8, 1e-4)
    assert releases.one_more(5) == epsilon(0.8, 5, 1e-4), "of four rounds before it nothing is known"
    for damaged in ('{"releases": "none"}', "[]", '{"releases": -3}'):
        (tmp_path / "releases.json").write_text(damaged)
        with pytest.raises(ArtifactError, match="how often noise was released"):
            releases.one_more(6)


@pytest.mark.parametrize(("key", "codec"), [("down", "top=5%"), ("up", "top=5%+int8")])
def test_what_is_left_out_of_whole_tensors_would_be_zero(key: str, codec: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: what top leaves out"):
        FedAvg.Config(**{key: codec})
    assert FedAvg.Config(up="delta+top=5%+int8").up == "delta+top=5%+int8"
