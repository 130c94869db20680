"""MultiPruner: stages in the paper's order, every budget met, reordering harmless, the curve complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.method import Outcome
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.methods.compress.multipruner import MultiPruner, shares
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.testing.conformance import difference, logits
from lissome.testing.jobs import RandomText, toy_context
from lissome.testing.toys import TRANSFORMERS, toy_model

pytestmark = pytest.mark.long


def _run(model: Model, folder: Path, budget: str = "block_params=70%", confirm: Any = None, **options: Any) -> Outcome:
    context = toy_context(model, folder, budget, confirm=confirm)
    method = MultiPruner(MultiPruner.Config(**{"width_step": 8, "precision": "float32", "recover_steps": 0, **options}))
    return method.run(model, context)


def _kinds(outcome: Outcome) -> list[str]:
    return [point.change.split()[0].rsplit(".", 1)[-1] for point in outcome.curve[1:]]


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("split", ["auto", "44:52:4", "0:100:0"])
def test_the_budget_is_met_and_the_curve_leads_there(family: str, split: str, tmp_path: Path) -> None:
    model = toy_model(family)
    whole = Counter(model).count().block_params
    outcome = _run(model, tmp_path, split=split)
    small: Model = outcome.value
    assert Counter(small).count().block_params <= 0.7 * whole
    assert outcome.space is not None
    space = Space.from_json(outcome.space)
    sizes = [point.figures["block_params"] for point in outcome.curve]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == whole
    last = extract(model, outcome.curve[-1].subnet, space=space)
    ids = RandomText().calibration[:1]
    assert torch.equal(logits(last.module, ids), logits(small.module, ids)), "the curve's last point is the result"
    loss = Walk(last, RandomText().calibration).plain().mean().exp()
    assert outcome.curve[-1].quality["ppl"] == pytest.approx(float(loss), rel=1e-5)


def test_stages_come_in_the_order_of_the_paper(tmp_path: Path) -> None:
    kinds = _kinds(_run(toy_model("llama", num_hidden_layers=8), tmp_path, "block_params=50%", split="30:50:20"))
    stage = {"attention": 0, "mlp": 0, "width": 1, "groups": 2, "queries": 2}
    order = [stage[kind] for kind in kinds]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_blockpruner_is_the_split_100_0_0(tmp_path: Path) -> None:
    assert set(_kinds(_run(toy_model("llama"), tmp_path, split="100:0:0"))) <= {"attention", "mlp"}


@pytest.mark.parametrize(("heads", "allowed"), [("groups", {"groups"}), ("queries", {"queries"}), ("none", set())])
def test_the_head_stage_takes_what_it_is_told(heads: str, allowed: set[str], tmp_path: Path) -> None:
    kinds = set(_kinds(_run(toy_model("llama"), tmp_path, "block_params=60%", heads=heads)))
    assert kinds & {"groups", "queries"} <= allowed


def test_heads_compete_where_every_query_has_its_own_keys(tmp_path: Path) -> None:
    heads = {"groups", "queries"}
    grouped = _run(toy_model("llama"), tmp_path / "grouped", "block_params=50%")
    assert not heads & set(_kinds(grouped))
    alone = toy_model("llama", num_key_value_heads=4, intermediate_size=8)
    assert heads & set(_kinds(_run(alone, tmp_path / "alone", "block_params=50%", width_step=4)))


@pytest.mark.parametrize("score", ["activation", "magnitude", "none"])
def test_the_model_itself_keeps_its_function(score: str, tmp_path: Path) -> None:
    model, ids = toy_model("qwen3"), RandomText().calibration
    before = logits(model.module, ids)
    outcome = _run(model, tmp_path, score=score)
    assert difference(logits(model.module, ids), before) < 1e-5
    assert bool(outcome.tensors) == (score != "none")


def test_a_measurement_that_contradicts_the_prediction_is_followed(tmp_path: Path) -> None:
    seen: list[int] = []

    def confirm(small: Model) -> Mapping[str, float]:
        seen.append(Counter(small).count().params)
        return {"params": 1.4 * seen[0]} if len(seen) == 1 else {}

    _run(toy_model("llama"), tmp_path, "params=80%", confirm)
    assert len(seen) == 2, "the first result was measured as too large, so that the search went on once"
    assert 1.4 * seen[1] <= 0.8 * Counter(toy_model("llama")).count().params < 1.4 * seen[0]


def test_no_moves_left_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BudgetUnmetError, match="no move is left") as caught:
        _run(toy_model("llama"), tmp_path, "block_params=30%", split="0:0:100")
    assert "\n" not in str(caught.value)


@given(st.lists(st.floats(0, 1000), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 1e-6))
def test_shares_sum_to_one(parts: list[float]) -> None:
    found = shares(":".join(map(repr, parts)))
    assert found is not None
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("split", ["", "1:2", "a:b:c", "-1:1:1", "0:0:0", "nan:1:1", "inf:1:1", "Auto"])
def test_splits_that_make_no_sense(split: str) -> None:
    with pytest.raises(ConfigError, match="44:52:4"):
        MultiPruner.Config(split=split)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100))
def test_recovery_keeps_the_shapes_and_lowers_the_loss(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = toy_model("llama", seed=seed)
    plain = _run(toy_model("llama", seed=seed), tmp_path_factory.mktemp("plain"))
    healed = _run(model, tmp_path_factory.mktemp("healed"), recover_steps=20, recover_lr=5e-3)
    before, after = (Walk(outcome.value, RandomText().recovery).plain().mean() for outcome in (plain, healed))
    assert after < before
    shapes = [{name: value.shape for name, value in one.value.module.state_dict().items()} for one in (plain, healed)]
    assert shapes[0] == shapes[1]
