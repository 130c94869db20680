"""The claim on BootstrapNAS: its judgement on made-up results, its tables, and its parts on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import _elastic
from benchmarks._elastic import Subject
from benchmarks._pruning import pruned
from benchmarks.bootstrapnas import run, table
from lissome.cost.counted import Counter
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.testing.examples import striped_images
from tests.benchmarks.elastic import SEEDS, all_hold, broken, text, toy


def made_up(net: str, *, half: float = 0.9, macs: float = 0.48, sizes: int = 6, latency: float = 0.8) -> dict[str, Any]:
    front = [{"macs": 0.1 + 0.12 * at, "accuracy": 0.8, "held": 0.8} for at in range(sizes)]
    cut = {f"{share:g}": {"macs": macs, "params": 0.5, "test": text(half)} for share in run.SHARES}
    ends = {"largest": text(0.91), "smallest": text(0.7)}
    orders = {f"{order}-{share:g}": text(0.8 if order == "l1" else 0.5) for order in run.ORDERS for share in run.WIDTHS}
    cells: dict[str, Any] = {
        f"given-{net}": {"test": text(0.9)},
        f"before-{net}": {"orders": orders, "own": text(0.8), "plain": text(0.2)},
    }
    for seed in SEEDS:
        ratio = [latency, latency - 0.02, latency + 0.02]
        cells[f"super-{net}-{seed}"] = {"front": front, "cut": cut, "ends": ends, "least": 0.1, "latency": ratio}
        cells |= {f"{arm}-{net}-{seed}": {"test": text(0.9)} for arm in ("longer", "pruned")}
    return cells


@pytest.mark.parametrize("net", run.NETS)
def test_everything_holds_when_it_does(net: str) -> None:
    assert all_hold(run.judge(net, made_up(net), SEEDS)) == {"zoo-resnet": 9, "zoo-depthwise": 8, "minilm": 7}[net]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"half": 0.88}, "against given"), ({"half": 0.893}, "torch-pruning"), ({"macs": 0.51}, "most"),
        ({"sizes": 4}, "sizes of one front"), ({"latency": 0.99}, "latency"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(changes: dict[str, Any], words: str) -> None:
    assert broken(run.judge("zoo-resnet", made_up("zoo-resnet", **changes), SEEDS), words)


def test_the_tables_show_every_arm() -> None:
    cells = made_up("zoo-resnet") | {"transfer": made_up("x")["super-x-0"]}
    page = table.page([{"cells": cells, "seeds": SEEDS, "environments": [], "inequalities": []}])
    arms = ("given", "torch-pruning to half, tuned", "super-network, at 0.5")
    assert all(f"| zoo-resnet | {arm} |" in page for arm in arms)
    assert "| efficientnet-lite0 | 10% | 80.0 |" in page
    assert "| cut out of it | 48% | 90.00 |" in page
    assert all(f"| zoo-resnet | {order} | 0.5 |" in page for order in run.ORDERS)
    assert "| zoo-resnet | l1, statistics of the whole network | 0.5 | 20.00 |" in page


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
def test_the_parts_on_a_toy(tmp_path: Path) -> None:
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
    assert len(_elastic.latency(it, tmp_path / "cut" / "0.6")) == 3
    assert _elastic.apart([{"macs": 0.1}, {"macs": 0.12}, {"macs": 0.2}]) == 2
