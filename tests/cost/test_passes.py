"""A table of passes: exact where times add up, complete on real networks, and a file that says whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.events import Event, EventStream
from lissome.cost import passes
from lissome.cost.counted import Counter
from lissome.cost.device import Device
from lissome.cost.measured import Request
from lissome.cost.oracle import SubnetCost
from lissome.cost.passes import PassTable, layers_of, pass_table, read_table
from lissome.cost.table import latency_table, warn_if_doubtful
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model

QUICK = Request(prompt=8, new=2)


def model_of(name: str) -> Model:
    return toy_model(name) if name in {"bert", "bert-labels", "vit-labels"} else network_model(name)


def made_up(model: Model, subnets: list[Subnet]) -> tuple[PassTable, list[float]]:
    """A table from times that add up, and the times of the whole passes: of the original first."""
    counter, branches = Counter(model), {branch.name: branch for branch in model.anatomy.branches}

    def layers(subnet: Subnet) -> dict[str, float]:
        took: dict[str, float] = {}
        for row in counter.table(subnet):
            if row.name in branches:  # all of a branch's time is in its last layer
                took |= dict.fromkeys(layers_of(branches[row.name]), 0.0)
                took[layers_of(branches[row.name])[-1]] = 1e-5 + 1e-9 * row.macs
        return took

    space = model.space()
    wholes = [2e-3 + 1.3 * sum(layers(each).values()) for each in (space.full, *subnets)]
    laps = [
        passes._Lap(layers=(layers(space.full), layers(each)), whole=(wholes[0], whole), wall=wholes[0] / 2)
        for each, whole in zip(subnets, wholes[1:], strict=True)
    ]
    return passes._fitted(model, space, subnets, laps, Device.here(), QUICK), wholes


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet", "transformer", "bert", "vit-labels"])
def test_times_that_add_up_are_predicted_exactly(name: str) -> None:
    model = model_of(name)
    space, rng = model.space(), Random(1)
    subnets = [space.smallest, *(space.sample(rng) for _ in range(9))]
    table, wholes = made_up(model, subnets)
    cost = SubnetCost(model, table=table)
    found = [cost.figures(each)["latency"] for each in (space.full, *subnets)]
    assert found == pytest.approx([whole / 2 for whole in wholes], rel=0.02), "by the clock it takes half of that"
    assert found[0] == pytest.approx(wholes[0] / 2, rel=1e-6)
    assert table.probes == pytest.approx([1.0] * 10, rel=0.02)
    new = space.sample(rng)
    exact = made_up(model, [new])[1][1] / 2
    assert cost.figures(new)["latency"] == pytest.approx(exact, rel=0.1)
    rows = Codes(space).encode([space.full, *subnets])
    assert np.allclose(cost.columns(space, rows)["latency"], found)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "bert-labels", "vit-labels", "rows"])
def test_networks_are_timed_and_left_as_they_were(name: str, tmp_path: Path) -> None:
    """Only what holds on any machine, however busy."""
    model = model_of(name)
    table = pass_table(model, request=QUICK, threads=1, seconds=0.2)
    cost, space = SubnetCost(model, table=table), model.space()
    whole, least = (cost.figures(each)["latency"] for each in (space.full, space.smallest))
    assert 0 < least <= whole, "curves never fall"
    assert len(table.probes) == 13 and all(ratio > 0 for ratio in table.probes)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    table.save(tmp_path / "table.json")
    assert PassTable.load(tmp_path / "table.json") == read_table(tmp_path / "table.json") == table
    assert "prefill" not in cost.figures(space.full)


def test_what_a_table_is_not_of_is_refused(tmp_path: Path) -> None:
    model = network_model("resnet")
    table = made_up(model, [model.space().smallest])[0]
    table.require(model)
    with pytest.raises(ConfigError, match="another model"):
        SubnetCost(network_model("mobilenet"), table=table)
    with pytest.raises(ConfigError, match="writes text"):
        pass_table(toy_model("llama"))
    path = tmp_path / "table.json"
    table.save(path)
    fields = json.loads(path.read_text())
    for changes, words in (
        ({"schema": 9}, "version 9"),
        ({"fingerprint": "x"}, "changed by hand|the file was changed"),
    ):
        path.write_text(json.dumps(fields | changes))
        with pytest.raises(ArtifactError, match=words):
            read_table(path)
    path.write_text(json.dumps({name: value for name, value in fields.items() if name != "outside"}))
    with pytest.raises(ArtifactError, match="outside"):
        read_table(path)
    latency_table(toy_model("llama"), request=QUICK, seconds=0.1, threads=1).save(path)
    assert not isinstance(read_table(path), PassTable)
    with pytest.raises(ArtifactError, match="no latency table of a model that reads"):
        PassTable.load(path)


def test_a_table_that_errs_on_its_own_probes_says_so() -> None:
    heard: list[Event] = []
    for probes in ((1.0, 0.95), (1.02, 0.7)):
        warn_if_doubtful(probes, EventStream(heard.append))
    (event,) = heard
    assert "errs by up to 30%" in event.message


def test_a_table_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path))
    model, calls = network_model("resnet"), []
    table = made_up(model, [model.space().smallest])[0]
    monkeypatch.setattr(passes, "pass_table", lambda *_, **__: calls.append(1) or table)
    assert passes.table_here(model) == passes.table_here(model) == table
    assert len(calls) == 1
    (file,) = (tmp_path / "latency").iterdir()
    file.write_text("{")
    assert passes.table_here(model) == table and len(calls) == 2
