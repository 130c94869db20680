"""Paths: drawn outside of the forward from (seed, step) alone, logged, and chosen from afterwards."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.errors import ConfigError
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Batch, Task
from lissome.engine.recover import token_loss
from lissome.engine.supernet import Found, Log, Paths, Remembered, best_of, candidates, climb, heuristic
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import Design, adapters, add_adapters, rank_space
from lissome.models.model import Model
from lissome.models.space import Axis, Space, Subnet
from lissome.testing.toys import toy_ids, toy_model

SPACE = Space(tuple(Axis(f"layers.{index}.rank", (16, 24, 32)) for index in range(12)))


def elastic() -> Model:
    model = toy_model("llama")
    add_adapters(model, Design(ranks=(6, 4, 2)), seed=0)
    return model


class StopError(Exception):
    """Stands for a crash."""


def run(
    model: Model, paths: Paths, *, stop: int | None = None, checkpoint: Checkpoint | None = None, **changes: Any
) -> None:
    ids = toy_ids(model, 0, 12, 9)
    plain = paths.noted(token_loss(model))

    def loss(module: Any, batch: Batch) -> Tensor:
        if batch.step == stop:
            raise StopError
        return plain(module, batch)

    fields = {"steps": 6, "batch": 2, "accumulation": 2, "precision": "fp32", "checkpoint_steps": 2, **changes}
    config = TrainConfig.from_mapping(fields)
    train(Task(module=model.module, loss=loss, data=ids), config, seed=5, hooks=paths, checkpoint=checkpoint)


def weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


def test_one_path_per_micro_batch_and_all_are_as_likely() -> None:
    model = elastic()
    paths = Paths(model, rank_space(model), accumulation=2)
    run(model, paths, steps=40)
    log = paths.log
    assert len(log.paths) == len(log.losses) == 80
    assert len(set(log.paths)) == 80, "12 groups are drawn independently"
    counts = Counter(value for path in log.paths for value in path.values())
    assert all(count / 960 == pytest.approx(1 / 3, abs=0.05) for count in counts.values())
    assert {adapter.rank for adapter in adapters(model.module).values()} == {6}, "the model is whole afterwards"


def test_drawn_together_all_have_the_same_rank() -> None:
    model = elastic()
    paths = Paths(model, rank_space(model), accumulation=2, together=True)
    run(model, paths, steps=20)
    drawn = [set(path.values()) for path in paths.log.paths]
    assert all(len(ranks) == 1 for ranks in drawn)
    assert set().union(*drawn) == {2, 4, 6}
    uneven = Space((Axis("a", (1, 2)), Axis("b", (1, 2, 3))))
    with pytest.raises(ConfigError, match="equally many"):
        Paths(model, uneven, together=True)


def test_a_recomputed_forward_sees_the_same_path() -> None:
    """The published layers draw inside of the forward: with activation checkpointing they train another sub-network."""
    states = []
    for recompute in (False, True):
        model = elastic()
        run(model, Paths(model, rank_space(model), accumulation=2), gradient_checkpointing=recompute)
        states.append(weights(model))
    assert max(float((one - states[1][name]).abs().max()) for name, one in states[0].items()) < 1e-6


def test_only_adapters_learn() -> None:
    model = elastic()
    before = weights(model)
    run(model, Paths(model, rank_space(model), accumulation=2))
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".adapter." in name for name in changed)


def test_continued_equals_undisturbed(tmp_path: Path) -> None:
    whole, parts = elastic(), elastic()
    first = Paths(whole, rank_space(whole), accumulation=2)
    run(whole, first)
    with pytest.raises(StopError):
        run(parts, Paths(parts, rank_space(parts), accumulation=2), stop=3, checkpoint=Checkpoint(tmp_path, {}))
    fresh = elastic()
    last = Paths(fresh, rank_space(fresh), accumulation=2)
    run(fresh, last, checkpoint=Checkpoint(tmp_path, {}))
    assert all(torch.equal(value, weights(fresh)[name]) for name, value in weights(whole).items())
    assert last.log == first.log, "the log goes on where it was"


def test_passes_that_only_took_the_time_are_not_logged() -> None:
    model = elastic()
    paths = Paths(model, rank_space(model), accumulation=2)
    run(model, paths, steps=3, max_seconds=1e6)
    assert len(paths.log.paths) == 6


def test_the_heuristic_is_the_middle_of_the_descending_list() -> None:
    for choices, expected in (((32, 24, 16), 24), ((32, 16), 32), ((8,), 8), ((8, 6, 4, 2), 6), ((5, 4, 3, 2, 1), 3)):
        space = Space((Axis("a", tuple(reversed(choices))),))
        assert heuristic(space)["a"] == choices[(len(choices) - 1) // 2] == expected


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_candidates_of_a_log(seed: int, count: int) -> None:
    rng = random.Random(seed)
    small = Space(SPACE.axes[:3])
    drawn = [Subnet({axis.name: rng.choice(axis.choices) for axis in small.axes}) for _ in range(count)]
    losses = [rng.random() for _ in drawn]
    found = candidates(Log(tuple(drawn), tuple(losses)), small)
    assert 1 <= len(found) <= 7
    assert len(set(found.values())) == len(found), "each path once"
    means = {
        path: sum(loss for one, loss in zip(drawn, losses, strict=True) if one == path) / drawn.count(path)
        for path in drawn
    }
    lowest = sorted(means.values())[:5]
    assert set(sorted(means, key=means.get)[:5]) <= set(found.values())
    named = {name: path for name, path in found.items() if name.startswith("lowest")}
    assert all(means[path] in lowest for path in named.values())
    for axis in small.axes:
        seen = sorted(path[axis.name] for path in drawn)
        assert found["median"][axis.name] == seen[(len(seen) - 1) // 2]
        modes = Counter(seen)
        mode = found.get("most frequent", found["median"])
        assert modes[mode[axis.name]] == max(modes.values()) or "most frequent" not in found


def test_an_empty_log_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="choose=heuristic"):
        candidates(Log((), ()), SPACE)


def test_climbing_ends_at_the_best_within_its_budget() -> None:
    target = Subnet({axis.name: 16 if index % 2 else 32 for index, axis in enumerate(SPACE.axes)})
    asked: list[Subnet] = []

    def distance(path: Subnet) -> float:
        asked.append(path)
        return float(sum(abs(path[name] - target[name]) for name in path))

    def size(path: Subnet) -> float:
        return float(sum(path.values()))

    found = climb(distance, SPACE, heuristic(SPACE), size=size, budget=400, rng=random.Random(0))
    assert found[-1].path == target
    assert found[0].name == "start" and found[0].path == heuristic(SPACE)
    assert [one.value for one in found] == sorted((one.value for one in found), reverse=True)
    assert len(asked) == len(set(asked)) <= 400
    again = climb(distance, SPACE, heuristic(SPACE), size=size, budget=400, rng=random.Random(0))
    assert again == found


def test_ties_go_to_the_smaller_path() -> None:
    def size(path: Subnet) -> float:
        return float(sum(path.values()))

    found = climb(lambda _: 1.0, SPACE, SPACE.full, size=size, budget=200, rng=random.Random(1))
    sizes = [size(one.path) for one in found]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] < 0.8 * sizes[0]
    tiny = Space((Axis("a", (4,)),))
    assert climb(lambda _: 1.0, tiny, tiny.full, size=size, budget=9, rng=random.Random(0)) == [
        Found("start", tiny.full, 1.0)
    ]


def test_what_was_evaluated_is_remembered(tmp_path: Path) -> None:
    asked: list[Subnet] = []

    def evaluate(path: Subnet) -> float:
        asked.append(path)
        return float(sum(path.values()))

    file = tmp_path / "known.json"
    for key, calls in (("a", 1), ("a", 1), ("b", 2)):
        value = Remembered(evaluate, file, key)(SPACE.full)
        assert value == 12 * 32
        assert len(asked) == calls
    assert best_of([Found("a", SPACE.full, 2.0), Found("b", SPACE.full, 1.0), Found("c", SPACE.full, 1.0)]).name == "b"
