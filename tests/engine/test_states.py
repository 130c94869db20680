"""The shared loops on models with states: walks, scores, orders, greedy removal and recovery know no family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lissome.cost.counted import Counter
from lissome.engine.calibrate import orders
from lissome.engine.greedy import Greedy, Trace, damage_per, moves
from lissome.engine.scoring import score_text
from lissome.engine.walk import Walk
from lissome.models.adapters import add_lora, load_adapters, merge_lora, save_adapters
from lissome.models.binding import Masking, extract, masked
from lissome.models.model import Model
from lissome.testing.conformance import TOLERANCE, difference, logits
from lissome.testing.toys import STATES, toy_ids, toy_model

KINDS = ("mixer", "ssm", "channels", "heads", "attention", "mlp", "width", "groups", "queries")


def _windows(model: Model) -> Tensor:
    return toy_ids(model, 1, 3, 13)


def _run(family: str, **options: bool) -> tuple[Model, Trace]:
    model = toy_model(family)
    space, counter = model.space(width=8, channels=16), Counter(model)
    masking = Masking(model.binding, space)
    try:
        greedy = Greedy(masking, Walk(model, _windows(model)), **options)
        enough = 0.6 * counter.count(space.full).block_params
        trace = greedy.run(
            KINDS,
            rank=damage_per(lambda subnet: counter.count(subnet).block_params),
            enough=lambda subnet: counter.count(subnet).block_params <= enough,
            goal=lambda subnet: 0.0,
        )
        return model, trace
    finally:
        masking.restore()


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_a_walk_is_a_whole_forward(family: str, batch_tokens: int) -> None:
    model = toy_model(family)
    windows = _windows(model)
    with torch.no_grad():
        rows = model.module(windows).logits[:, :-1].log_softmax(-1)
    expected = -rows.gather(2, windows[:, 1:, None]).double().mean((1, 2))
    walk = Walk(model, windows, batch_tokens=batch_tokens)
    torch.testing.assert_close(walk.plain(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(score_text(model, windows).nll.double().mean(1), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(walk.fill(), walk.plain())
    for cut in ({"layers.2.mixer": 0}, {"layers.2.mixer.ssm": 0}):
        with masked(model, cut):
            assert torch.equal(walk.score(2), walk.plain())


@pytest.mark.parametrize("family", STATES)
def test_greedy_finds_what_it_says(family: str) -> None:
    model, trace = _run(family, lazy=None)
    assert _run(family, lazy=None, cached=False)[1].steps == trace.steps
    space = model.space(width=8, channels=16)
    assert len(trace.steps) >= 2
    for subnet, step in zip(trace.subnets(space)[1:], trace.steps, strict=True):
        alone = Walk(extract(model, subnet, space=space), _windows(model)).plain().mean()
        assert float(alone) == pytest.approx(step.loss, rel=1e-6)


@pytest.mark.parametrize("family", STATES)
def test_a_lost_scan_is_no_move_but_its_mixer_is(family: str) -> None:
    model = toy_model(family)
    space = model.space()
    subnet = space.check({**space.full, "layers.0.mixer.ssm": 0, "layers.2.mixer": 0})
    found = {move.axis for move in moves(space, model.anatomy, subnet, KINDS)}
    assert "layers.0.mixer" in found
    assert found.isdisjoint({"layers.0.mixer.ssm", "layers.2.mixer", "layers.2.mixer.ssm"})


@pytest.mark.parametrize(("family", "unit"), [("mamba", "channels"), ("mamba2", "heads"), ("bamba", "heads")])
@pytest.mark.parametrize("score", ["magnitude", "activation"])
def test_scores_order_what_matters_first(family: str, unit: str, score: str) -> None:
    model = toy_model(family)
    mixer = model.anatomy.by_name["layers.0.mixer"]
    (dim,) = (dim for dim in mixer.dims if dim.name == unit)
    weak, strong = 1, dim.size - 1
    with torch.no_grad():
        for cut in dim.cuts:
            tensor = model.module.get_parameter(cut.parameter)
            if tensor.dim() > 1 and not cut.parameter.endswith("A_log"):
                tensor.index_fill_(cut.dim, cut.units[weak].flatten(), 1e-4)
                rows = tensor.index_select(cut.dim, cut.units[strong].flatten())
                tensor.index_copy_(cut.dim, cut.units[strong].flatten(), 10 * rows)
    ranking = orders(model, [unit], score=score, walk=Walk(model, _windows(model)))
    order = ranking[mixer.axis(unit)]
    assert order.shape == (dim.lanes, dim.size)
    assert (order[:, -1] == weak).all()
    assert score == "activation" or (order[:, 0] == strong).all(), "a channel of large weights may still be gated shut"


@pytest.mark.parametrize("family", STATES)
def test_adapters_fit_what_is_left(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    small = extract(model, {"layers.0.mixer.ssm": 0, "layers.2.mixer": 0})
    ids = toy_ids(model, 0, 2, 9)
    before = logits(small.module, ids)
    add_lora(small, rank=2, alpha=4, seed=0)
    assert difference(logits(small.module, ids), before) <= TOLERANCE
    with torch.no_grad():
        for name, parameter in small.module.named_parameters():
            if name.endswith("adapter.B"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    shaken = logits(small.module, ids)
    assert difference(shaken, before) > 100 * TOLERANCE
    save_adapters(small, tmp_path / "adapters")
    merge_lora(small)
    assert difference(logits(small.module, ids), shaken) <= TOLERANCE
    again = extract(model, {"layers.0.mixer.ssm": 0, "layers.2.mixer": 0})
    load_adapters(again, tmp_path / "adapters")
    assert difference(logits(again.module, ids), shaken) <= TOLERANCE
