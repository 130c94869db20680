from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ArtifactError, ConfigError, LissomeError
from lissome.core.events import Event, EventStream
from lissome.cost import table as tables
from lissome.cost.measured import Request
from lissome.cost.oracle import SubnetCost
from lissome.cost.probe import PHASES, Samples, block_kind, choose_probes, collect, spread
from lissome.cost.table import LatencyTable, cached_table, latency_table
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.testing.toys import toy_model

pytestmark = pytest.mark.long

REQUEST = Request(prompt=6, new=9)
_OUTSIDE, _BESIDE = 3.0, {"attention+mlp": 0.5, "attention": 0.3, "mlp": 0.25}


def branch_seconds(kind: str, sizes: Mapping[str, int]) -> float:
    """The truth of an imaginary machine; wider branches become a little cheaper per channel."""
    if kind == "attention":
        return 1.0 + 0.2 * sizes["groups"] * sizes["queries"] + 0.1 * sizes["groups"]
    return 0.5 + 0.01 * sizes["width"] + 0.1 * float(np.sqrt(sizes["width"]))


def truth(model: Model, subnet: Mapping[str, int], space: Space) -> float:
    small = extract(model, subnet, space=space)
    blocks = [small.anatomy.of_block(index) for index in range(len(small.anatomy.blocks))]
    sizes = {branch: {dim.name: dim.size for dim in branch.dims} for block in blocks for branch in block}
    beside = sum(_BESIDE[block_kind(block)] for block in blocks)
    return _OUTSIDE + beside + sum(branch_seconds(branch.kind, own) for branch, own in sizes.items())


@pytest.fixture
def imaginary(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let the probes run on an imaginary machine on which decode takes a tenth, and waiting doubles everything."""

    def fake(model: Model, probes: Any, space: Space, request: Request, **_: Any) -> dict[str, Samples]:
        found = {phase: Samples() for phase in PHASES}
        for phase, factor in (("prefill", 1.0), ("decode", 0.1)):
            samples = found[phase]
            for subnet in (space.full, *probes):
                small = extract(model, subnet, space=space)
                for index in range(len(small.anatomy.blocks)):
                    block = small.anatomy.of_block(index)
                    samples.blocks[block_kind(block)].append(factor * _BESIDE[block_kind(block)])
                    for branch in block:
                        sizes = {dim.name: dim.size for dim in branch.dims}
                        took = factor * branch_seconds(branch.kind, sizes)
                        samples.branches[branch.kind, tuple(sizes.items())].append(took)
            samples.outside = [factor * _OUTSIDE]
            whole = factor * truth(model, space.full, space)
            samples.wall = [2 * whole, 2 * whole, 9 * whole]
            samples.pairs = [[(whole, factor * truth(model, subnet, space))] for subnet in probes]
        return found

    monkeypatch.setattr(tables, "collect", fake)
    return 2.0


def test_times_are_additive_and_scaled_to_the_wall(imaginary: float) -> None:
    model = toy_model("llama", intermediate_size=96, num_hidden_layers=8)
    space = model.space(width=8)
    table = latency_table(model, space=space, request=REQUEST)
    sums = tables._sums(model, table)
    full = table.figures_of(sums.total({}))
    expected = imaginary * truth(model, space.full, space)
    assert full["latency"] == pytest.approx(expected * (1 + 0.1 * REQUEST.steps))
    assert full["prefill"] == pytest.approx(REQUEST.prompt / expected)
    assert full["decode"] == pytest.approx(1 / (0.1 * expected))
    assert table.probes == pytest.approx([1.0] * 4, abs=0.02)
    for seed in range(20):
        subnet = space.sample(Random(seed))
        found = table.figures_of(sums.total(subnet))["latency"] / full["latency"]
        assert found == pytest.approx(imaginary * truth(model, subnet, space) / expected, rel=0.02)


def test_a_table_that_errs_on_its_own_probes_says_so(imaginary: float, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = tables.collect
    seen: list[Event] = []
    latency_table(toy_model("llama"), request=REQUEST, events=EventStream(seen.append))
    assert not seen

    def noisy(*args: Any, **kwargs: Any) -> dict[str, Samples]:
        found = honest(*args, **kwargs)
        for samples in found.values():
            samples.pairs[2] = [(whole, 1.5 * small) for whole, small in samples.pairs[2]]
        return found

    monkeypatch.setattr(tables, "collect", noisy)
    latency_table(toy_model("llama"), request=REQUEST, events=EventStream(seen.append))
    (event,) = seen
    assert "busy" in event.message


def test_removing_more_never_takes_longer(imaginary: float) -> None:
    model = toy_model("llama", num_hidden_layers=6)
    space = model.space(width=4)
    cost = SubnetCost(model, table=latency_table(model, space=space, request=REQUEST))
    rng = Random(0)
    for _ in range(50):
        subnet = space.sample(rng)
        axis = rng.choice(space.axes)
        below = axis.below(subnet[axis.name])
        smaller = subnet.replace({axis.name: below}) if below is not None else subnet
        if space.allows(smaller):
            before, after = cost.figures(subnet), cost.figures(space.canonical(smaller))
            assert after["latency"] <= before["latency"] + 1e-12
            assert after["decode"] >= before["decode"] - 1e-12


def test_a_table_is_measured_in_place(tmp_path: Path) -> None:
    model = toy_model("gemma3", num_hidden_layers=6, layer_types=["sliding_attention", "full_attention"] * 3)
    table = latency_table(model, request=REQUEST, seconds=0.2, threads=1)
    cost = SubnetCost(model, table=table)
    full = cost.figures(model.space().full)
    smallest = cost.reachable(model.space())
    assert 0 < smallest["latency"] < full["latency"]
    assert len(table.probes) == 4
    assert all(isfinite(ratio) and ratio > 0 for ratio in table.probes)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table
    assert SubnetCost(model, table=again).figures(model.space().full) == full


def test_original_and_probe_are_timed_together_even_without_time() -> None:
    model = toy_model("llama")
    probes = choose_probes(model, model.space(), 2, Random(0))
    samples = collect(model, probes, model.space(), REQUEST, seconds=0.0)
    assert {phase: [len(pairs) for pairs in samples[phase].pairs] for phase in PHASES} == {
        "prefill": [1, 1],
        "decode": [1, 1],
    }
    assert len(samples["decode"].wall) == 2
    assert all(took > 0 for phase in PHASES for seen in samples[phase].branches.values() for took in seen)


def test_probes_cover_every_size() -> None:
    model = toy_model("llama", num_hidden_layers=12, intermediate_size=120)
    space = model.space(width=10)
    probes = choose_probes(model, space, 4, Random(0))
    assert all(space.check(probe) == probe for probe in probes)
    widths = {probe[f"layers.{index}.mlp.width"] for probe in probes for index in range(12)}
    assert widths >= set(spread(tuple(range(10, 121, 10)), 6))
    kinds = {
        (probe[f"layers.{index}.attention"], probe[f"layers.{index}.mlp"]) for probe in probes for index in range(12)
    }
    assert kinds >= {(1, 1), (0, 1), (1, 0)}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30, unique=True).map(sorted), st.integers(2, 8))
def test_spread_keeps_both_ends(choices: list[int], count: int) -> None:
    picks = spread(choices, count)
    assert len(picks) == min(count, len(choices))
    assert picks == sorted(set(picks))
    assert {picks[0], picks[-1]} == {choices[0], choices[-1]}


def test_slopes_are_not_negative_even_when_noise_says_so() -> None:
    points = [({"width": 1.0}, 1.0), ({"width": 2.0}, 0.9), ({"width": 3.0}, 1.5), ({"width": 4.0}, 1.4)]
    curve = tables.fit_curve(points)
    values = [curve.at({"width": width}) for width in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(0.95, abs=0.02)
    assert values[0] == values[1]
    assert values[-1] == values[-2]


@pytest.fixture
def saved(imaginary: float, tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    latency_table(toy_model("llama"), request=REQUEST).save(path)
    return path


def test_a_table_of_another_model_is_refused(saved: Path) -> None:
    table = LatencyTable.load(saved)
    with pytest.raises(ConfigError, match=r"hidden 24 \(model: 32\).*--save-table"):
        SubnetCost(toy_model("llama", hidden_size=32), table=table)
    with pytest.raises(ConfigError, match="architecture"):
        SubnetCost(toy_model("qwen2"), table=table)
    SubnetCost(toy_model("llama", num_hidden_layers=2), table=table)


def _set(fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda fields: _set(fields, schema=99), "version 99"),
        (lambda fields: _set(fields, fingerprint="0" * 16), "fingerprint"),
        (lambda fields: _set(fields, decoed={}), "decode"),
        (lambda fields: {key: value for key, value in fields.items() if key != "prefill"}, "prefill"),
        (lambda fields: _set(fields, device=_set(fields["device"], threads=0)), "threads"),
        (lambda fields: [fields], "object"),
    ],
)
def test_a_damaged_table_is_refused(change: Any, wanted: str, saved: Path) -> None:
    saved.write_text(json.dumps(change(json.loads(saved.read_text()))))
    with pytest.raises(LissomeError, match=wanted):
        LatencyTable.load(saved)


def test_a_table_is_kept_for_models_of_the_same_shapes(
    imaginary: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path))
    first = cached_table(toy_model("llama"), request=REQUEST)
    monkeypatch.setattr(tables, "latency_table", lambda *_, **__: pytest.fail("measured twice"))
    assert cached_table(toy_model("llama", seed=5), request=REQUEST) == first
    (path,) = (tmp_path / "latency").iterdir()
    path.write_text("{")
    fresh = dataclasses.replace(first, probes=(1.5,))
    monkeypatch.setattr(tables, "latency_table", lambda *_, **__: fresh)
    assert cached_table(toy_model("llama"), request=REQUEST) == fresh
    assert LatencyTable.load(path) == fresh


def test_a_cache_that_cannot_be_written_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("lissome.cost.table.latency_table", pytest.fail)
    with pytest.raises(ConfigError, match=r"file/latency/.*cannot be written \(Not a directory\)"):
        cached_table(toy_model("llama"), request=REQUEST)


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.json"):
        LatencyTable.load(tmp_path / "none.json")


def test_the_time_of_a_mixer_depends_on_what_it_scans() -> None:
    assert tables.amounts("mixer", {"channels": 48, "ssm": 1}) == {"size": 48, "scanned": 48}
    assert tables.amounts("mixer", {"heads": 3, "ssm": 0}) == {"size": 3, "scanned": 0}


def test_tables_are_made_of_models_with_states() -> None:
    model = toy_model("bamba")
    table = latency_table(model, request=REQUEST, seconds=0.1)
    assert set(table.decode.branches) == {"attention", "mixer", "mlp"}
    assert SubnetCost(model, table=table).figures(model.space().full)["latency"] > 0
