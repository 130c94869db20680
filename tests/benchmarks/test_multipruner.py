"""The claim's own parts on toy models; its figures come from real ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.multipruner import baselines, efficiency, measuring
from benchmarks.multipruner.texts import Texts
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.models.binding import masked
from lissome.models.space import Subnet
from lissome.testing.toys import toy_model


def toy_texts() -> Texts:
    ids = torch.randint(0, 61, (6, 12), generator=torch.Generator().manual_seed(0))
    return Texts(calibration=ids[:2], selection=ids[:0], recovery=ids[:2], test=ids[2:], source="noise")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("arm", sorted(baselines.BASELINES))
def test_every_baseline_brackets_both_targets(arm: str, family: str) -> None:
    if arm.startswith("taylor"):
        pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    data = toy_texts()
    found = baselines.BASELINES[arm](toy_model(family), data, 0)
    assert set(found) == {"0.9", "0.8"}
    for target, point in found.items():
        above, below = point["between"]
        slack = 0.05 if arm.startswith("taylor") else 0.0  # whole channels of a toy are coarse
        assert below - slack <= float(target) <= above + slack
        assert len(point["nll"]) == len(data.test)
        assert all(map(math.isfinite, point["nll"]))


def test_taylor_cuts_channels_that_the_loss_does_not_feel_first() -> None:
    pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
    model, data = toy_model("llama"), toy_texts()
    weights = model.module.model.layers[1].mlp
    weights.down_proj.weight.data[:, 3] = 0  # then neither the channel nor its rows have any first-order effect
    gradients = baselines.calibration_gradients(model, data.calibration)
    width = weights.down_proj.weight.shape[1]
    small = baselines.taylor_cut(model, gradients, 1 / width, everywhere=False)
    left = small.module.model.layers[1].mlp
    kept = [index for index in range(width) if index != 3]
    assert torch.equal(left.gate_proj.weight, weights.gate_proj.weight[kept])
    assert torch.equal(left.down_proj.weight, weights.down_proj.weight[:, kept])
    assert Counter(small).count().block_params < Counter(model).count().block_params


def test_block_influence_is_0_where_a_block_does_nothing() -> None:
    model = toy_model("llama")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.module.model.layers[2].get_submodule(name).weight.data.zero_()
    influence = baselines.block_influence(Walk(model, toy_texts().calibration))
    assert influence[2] == pytest.approx(0, abs=1e-5)
    assert min(influence[:2] + influence[3:]) > 1e-4


@pytest.mark.parametrize(("target", "expected"), [(1.0, 2.0), (0.95, 3.0), (0.9, 4.0), (0.86, 5.6), (0.85, 6.0)])
def test_loss_is_interpolated_between_the_points_around_the_target(target: float, expected: float) -> None:
    losses = torch.tensor([[2.0], [4.0], [6.0], [99.0]])

    def loss(index: int) -> Tensor:
        assert index != 3  # a point beyond the bracket is never run
        return losses[index]

    found = measuring.interpolated([1.0, 0.9, 0.85, 0.5], loss, target)
    assert found["nll"] == pytest.approx([expected])


def test_a_curve_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="ends at 90"):
        measuring.interpolated([1.0, 0.9], lambda _: torch.zeros(1), 0.8)


def test_a_point_on_the_curve_has_the_loss_of_the_masked_model() -> None:
    model, data = toy_model("llama"), toy_texts()
    space, counted = model.space(), measuring.Counted(model)
    cut = space.canonical(Subnet({**space.full, "layers.1.mlp": 0}))
    share = counted.share(cut)
    found = measuring.at_targets(model, space, [(1.0, space.full), (share, cut)], data.test, [share])[f"{share:g}"]
    with masked(model, cut, space=space):
        expected = Walk(model, data.test).plain()
    assert found["nll"] == pytest.approx(expected.tolist())


def test_searches_take_turns_and_only_their_work_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "load", lambda _: toy_model("llama"))
    monkeypatch.setitem(efficiency.SEARCH, "steps", 3)
    runs = efficiency.compare_searches("toy", toy_texts())["runs"]
    assert runs["naive"]["moves"] == runs["cached"]["moves"]
    assert [len(run["moves"]) for run in runs.values()] == [3, 3, 3]
    assert runs["naive"]["scored"] == runs["cached"]["scored"]
    assert sum(runs["lazy"]["scored"]) < sum(runs["naive"]["scored"])
    assert all(0 < run["block_cpu"] <= run["cpu"] for run in runs.values())
