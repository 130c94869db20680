"""The claim on BootstrapNAS: its judgement on made-up results, its tables, and its parts on a toy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _elastic
from benchmarks._elastic import Scale, Subject
from benchmarks._frame import Store
from benchmarks._pruning import pruned
from benchmarks.bootstrapnas import nets, run, switching, table
from lissome.cost.counted import Counter
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.testing.examples import striped_images
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(
    net: str, *, half: float = 0.9, macs: float = 0.48, sizes: int = 6, latency: float = 0.8, used: float = 0.49
) -> dict[str, Any]:
    front = [{"macs": 0.1 + 0.12 * at, "accuracy": 0.8, "held": 0.8} for at in range(sizes)]
    cut = {f"{share:g}": {"macs": macs, "params": 0.5, "test": text(half)} for share in run.SHARES}
    ends = {"largest": text(0.91), "smallest": text(0.7)}
    orders = {
        f"{order}-{share:g}": text(0.5 if order in {"random", "none"} else 0.8)
        for order in run.ORDERS
        for share in run.WIDTHS
    }
    cells: dict[str, Any] = {
        f"given-{net}": {"test": text(0.9)},
        f"before-{net}": {"orders": orders, "own": text(0.8), "plain": text(0.2)},
    }
    for seed in SEEDS:
        ratio = [latency, latency - 0.02, latency + 0.02]
        made = {"front": front, "cut": cut, "ends": ends, "least": 0.1, "rate": 0.02}
        cells |= {f"super-{net}-{seed}": made, f"latency-super-{net}-{seed}": {"latency": ratio}}
        facts = {"test": text(0.9), "macs": used, "rate": 0.02}
        cells |= {f"{arm}-{net}-{seed}": facts for arm in ("longer", "pruned")}
    return cells | {f"random-{net}-{SEEDS[0]}": made, f"uniform-{net}-{SEEDS[0]}": facts}


def switched(share: float) -> dict[str, Any]:
    """Switching that takes so much of a step."""
    return {"switch": share / 5, "step": 0.2, "axes": 9, "branches": 6}


@pytest.mark.parametrize("net", run.NETS)
def test_everything_holds_when_it_does(net: str) -> None:
    assert all_hold(run.judge(net, made_up(net), SEEDS)) == {"zoo-resnet": 11, "zoo-depthwise": 9, "minilm": 8}[net]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"half": 0.88}, "against given"), ({"half": 0.893}, "torch-pruning"), ({"macs": 0.51}, "most"),
        ({"sizes": 4}, "sizes of one front"), ({"latency": 0.99}, "latency"),
        ({"used": 0.48}, "torch-pruning's network uses"), ({"half": 0.899}, "at most 90%"),
        ({"macs": 1.0}, "its multiply-accumulates"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge("zoo-resnet", made_up("zoo-resnet", **changes), SEEDS), words)


def test_the_tables_show_every_arm() -> None:
    cells = made_up("zoo-resnet") | {"transfer": made_up("x")["super-x-0"]}
    cells |= {f"switching-{net}": switched(0.005) for net in run.SWITCHED}
    stored = {"cells": cells, "seeds": SEEDS, "environments": [], "inequalities": []}
    page, line = table.page([stored]), table.summary([stored])
    assert "90.0 % (zoo-resnet; given: 90.00, torch-pruning: 90.0)" in line
    arms = ("given", "torch-pruning to half, tuned", "super-network, at 0.5")
    assert all(f"| zoo-resnet | {arm} |" in page for arm in arms)
    assert "| zoo-resnet | one share of all widths to half, tuned (one seed) | 90.00 |" in page
    assert "| zoo-resnet | one random path at each step, as many passes, at 0.5 (one seed) | 90.00 |" in page
    assert "| smollm2-135m | 1.00 | 200 | 0.50% |" in page
    assert "| efficientnet-lite0 | 10% | 80.0 |" in page
    assert "| cut out of it | 48% | 90.00 |" in page
    assert all(f"| zoo-resnet | {order} | 0.5 |" in page for order in run.ORDERS)
    assert "| zoo-resnet | l1, statistics of the whole network | 0.5 | 20.00 |" in page


@pytest.mark.parametrize(("share", "holds"), [(0.009, True), (0.011, False)])
def test_switching_is_judged_for_every_network(share: float, holds: bool) -> None:
    cells = {key: one for net in run.NETS for key, one in made_up(net).items()}
    cells |= {f"switching-{net}": switched(share) for net in run.SWITCHED}
    cells["transfer"] = made_up("x")["super-x-0"]
    told = run.judged(cells, SEEDS)
    found = [one for one in told if "switching" in one.name]
    assert [one.ok for one in found] == [holds] * len(run.SWITCHED)
    assert any(one.ok and "efficientnet" in one.name for one in told)


def test_arms_beside_the_super_network_have_as_many_settings(tmp_path: Path) -> None:
    tried = nets.sweeps(nets.CLOSELY, Scale(), Store(tmp_path / "results", scratch=tmp_path / "scratch"))
    assert len(tried["super"].changes) == len(tried["pruned"].changes)
    assert all(change.keys() <= sweep.usual.keys() for sweep in tried.values() for change in sweep.changes)


@pytest.mark.long
def test_torch_pruning_cuts_heads_and_neurons_of_an_encoder(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    it = toy(tmp_path)
    whole = Counter(_elastic.original(it)).count().macs
    small = pruned(it, 0.6 * whole, multiple=1)
    assert 0.3 * whole < Counter(small).count().macs <= 0.6 * whole
    for name, branch in _elastic.original(it).anatomy.by_name.items():
        cut = small.anatomy.by_name[name].by_name
        assert all(1 <= cut[kind].size < dim.size for kind, dim in branch.by_name.items())
    assert len(_elastic.packed(small, _elastic.objective(it))) == 12


@pytest.mark.long
def test_the_parts_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    data = striped_images(tmp_path / "x.npz", count=120)
    stages = [{"kind": "residual", "channels": 8 * (1 + at), "blocks": 2, "stride": 1 + at} for at in range(2)]
    config = ConvNetConfig(image_size=16, stem=(8, 1), stages=stages, num_labels=4)
    load_model(ConvNetForImageClassification(config).eval()).save(tmp_path / "net")
    it = Subject("toy", tmp_path / "net", data)
    judge, whole = _elastic.objective(it), Counter(_elastic.original(it)).count().macs
    small = pruned(it, 0.5 * whole, multiple=1)
    assert 0.4 * whole < Counter(small).count().macs <= 0.5 * whole
    tuned = _elastic.tuned(small, judge, steps=2, seed=0, lr=0.01, optimizer="sgd", batch=8)
    assert len(_elastic.packed(tuned, judge)) == 24
    settings = {"steps": 3, "min_width": 2, "multiple": 1, "examples": 16, "batch": 8, "stages": ("depth2", "width")}
    place = _elastic.supernet(it, tmp_path / "made", method="bootstrapnas", settings=settings, trials=6, seed=0)
    found = _elastic.measured(it, place, (0.6,), tmp_path / "cut")
    assert found["cut"]["0.6"]["macs"] <= 0.6 and set(found["ends"]) == {"largest", "smallest"}
    first = run.before(it)
    assert set(first["orders"]) == {f"{order}-{share:g}" for order in run.ORDERS for share in run.WIDTHS}
    assert len(_elastic.latency(it, found["cut"]["0.6"]["subnet"])) == 3
    assert _elastic.apart([{"macs": 0.1}, {"macs": 0.12}, {"macs": 0.2}]) == 2
    half = run._uniform(it)
    assert 0.3 * whole < Counter(half).count().macs <= 0.5 * whole
    assert Counter(run._found(it, found["cut"]["0.6"]["subnet"])).count().macs == pytest.approx(
        found["cut"]["0.6"]["macs"] * whole
    )
    work = _elastic.original(it)
    copied = work.derived(copy.deepcopy(work.module).requires_grad_(True))
    monkeypatch.setattr(switching, "_ready", lambda *_: (copied, judge))
    spent = switching.switching("zoo-resnet", Scale(), Store(tmp_path / "results", scratch=tmp_path / "scratch"))
    assert 0 < spent["switch"] < spent["step"]
    shapes = {name: value.shape for name, value in work.module.state_dict().items()}
    assert all(shapes[name] == value.shape for name, value in copied.module.state_dict().items())
