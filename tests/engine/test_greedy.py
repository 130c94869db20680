"""The removal engine: caching changes no choice, lazy scoring costs little, a stopped run goes on as if never so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.cost.counted import Counter
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.greedy import CAREFUL, QUICK, Greedy, Laziness, Trace, damage_per, lowest_loss, moves
from lissome.engine.judge import Divergence
from lissome.engine.walk import Walk
from lissome.models.binding import Masking, extract
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.testing.toys import TRANSFORMERS, toy_model

KINDS = ("attention", "mlp", "width", "groups", "queries")


def _windows(count: int = 3, length: int = 13) -> torch.Tensor:
    return torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(1))


def _run(
    model: Model,
    share: float = 0.6,
    *,
    stop_after: int | None = None,
    folder: Path | None = None,
    judge: bool = False,
    **options: Any,
) -> Trace:
    space, counter = model.space(width=8), Counter(model)
    cost: Callable[[Subnet], float] = lambda subnet: counter.count(subnet).block_params  # noqa: E731
    limit = share * cost(space.full)
    masking = Masking(model.binding, space)
    checkpoint = Checkpoint(folder, {"job": 1}) if folder else None
    try:
        walk = Walk(model, _windows())
        greedy = Greedy(masking, walk, judge=Divergence(walk) if judge else None, checkpoint=checkpoint, **options)
        enough = lambda subnet: cost(subnet) <= limit or len(greedy.trace.steps) == stop_after  # noqa: E731
        return greedy.run(KINDS, rank=damage_per(cost), enough=enough, goal=lambda subnet: 0.0)
    finally:
        masking.restore()


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_caching_changes_no_choice_and_no_loss(family: str) -> None:
    cached = _run(toy_model(family), lazy=None, cached=True)
    naive = _run(toy_model(family), lazy=None, cached=False)
    assert cached.steps == naive.steps
    assert len(cached.steps) >= 3


def test_lazy_scores_far_fewer_moves_at_little_loss() -> None:
    model = toy_model("llama", num_hidden_layers=8)
    every, lazy = _run(model, lazy=None), _run(model, lazy=CAREFUL)
    assert sum(step.scored for step in lazy.steps) < 0.6 * sum(step.scored for step in every.steps)
    assert lazy.loss <= every.loss * 1.02


@pytest.mark.parametrize("lazy", [CAREFUL, QUICK, None])
def test_judged_by_divergence_it_stays_closer_to_the_original(lazy: Laziness | None) -> None:
    model = toy_model("llama", num_hidden_layers=6)
    original = Divergence(Walk(model, _windows()))
    by_loss, by_divergence = _run(model, lazy=lazy), _run(model, lazy=lazy, judge=True)
    assert by_divergence.start == pytest.approx(0, abs=1e-5)
    space = model.space(width=8)
    left = [Walk(extract(model, trace.subnet, space=space), _windows()) for trace in (by_loss, by_divergence)]
    distances = [float(walk.plain(original).mean()) for walk in left]
    assert distances[1] == pytest.approx(by_divergence.loss, rel=1e-5)
    assert distances[1] < distances[0]
    assert by_divergence.steps[-1].nll == pytest.approx(float(left[1].plain().mean()), rel=1e-6)


def test_the_loss_of_each_step_is_that_of_the_extracted_model() -> None:
    model = toy_model("gemma2")
    trace, space = _run(model), model.space(width=8)
    for subnet, step in zip(trace.subnets(space)[1:], trace.steps, strict=True):
        alone = Walk(extract(model, subnet, space=space), _windows()).plain().mean()
        assert float(alone) == pytest.approx(step.loss, rel=1e-6)
    assert trace.subnet == trace.subnets(space)[-1]


@settings(max_examples=6, deadline=None)
@given(stop=st.integers(1, 5), lazy=st.sampled_from([CAREFUL, QUICK, None]), judge=st.booleans())
def test_a_stopped_run_continues_to_the_same_end(
    stop: int, lazy: Laziness | None, judge: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("greedy")
    whole = _run(toy_model("llama"), lazy=lazy, judge=judge)
    _run(toy_model("llama"), lazy=lazy, judge=judge, folder=folder, stop_after=stop)
    continued = _run(toy_model("llama"), lazy=lazy, judge=judge, folder=folder)
    assert (continued.start, continued.steps, continued.subnet) == (whole.start, whole.steps, whole.subnet)


def test_traces_survive_json_exactly() -> None:
    trace = _run(toy_model("llama"))
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_moves_respect_the_space() -> None:
    model = toy_model("llama")
    space = model.space(width=8)
    gone = {branch.name: 0 for branch in model.anatomy.branches if branch.kind == "attention"}
    gone["layers.2.attention"] = 1
    subnet = space.check({**space.full, **gone})
    found = moves(space, model.anatomy, subnet, KINDS)
    assert "layers.2.attention" not in {move.axis for move in found}, "the last attention must stay"
    assert not any(move.axis.startswith("layers.0.attention") for move in found), "a removed branch has no moves"
    assert {move.kind for move in found} == {"mlp", "width", "groups", "queries"}


def test_ranks() -> None:
    size: Mapping[Subnet, float] = {Subnet({"a": 2}): 2.0, Subnet({"a": 1}): 1.0, Subnet({"a": 0}): 0.0}
    full, small, none = size
    rank = damage_per(lambda subnet: size[subnet])
    assert rank(1.0, full, none) < rank(1.0, full, small), "the same damage for a larger saving is better"
    assert rank(-1.0, full, none) < rank(-1.0, full, small), "so is the same gain"
    assert rank(0.1, full, full) == float("inf"), "a move that saves nothing is never made"
    assert lowest_loss(0.5, full, none) == 0.5
