from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.budget import TERMS, Budget
from lissome.core.errors import BudgetUnmetError, MemoryLimitError
from lissome.core.method import ModelCard
from lissome.core.protocols import CostOracle
from lissome.cost.counted import COUNTED, Counter
from lissome.cost.memory import Sizes, predict_fit, predict_inference, predict_sparse, require_memory
from lissome.cost.oracle import SubnetCost
from lissome.models.adapters.elastic import linear_shapes
from lissome.models.model import Model
from lissome.testing.toys import toy_model

MB = 1e6


def card(model: Model, cost: SubnetCost) -> ModelCard:
    return ModelCard(
        name=model.name,
        family="decoder",
        architecture="llama",
        tags=frozenset(),
        figures=cost.figures(model.space().full),
        reachable=cost.reachable(model.space()),
        hidden=model.anatomy.hidden,
        layers=len(model.anatomy.blocks),
        vocabulary=model.anatomy.vocabulary,
    )


def test_figures_are_budget_terms_and_say_how_they_came_about() -> None:
    model = toy_model("llama")
    cost: CostOracle = SubnetCost(model)
    figures = cost.figures(model.space().full)
    assert set(figures) == {*COUNTED, "memory"}
    assert set(figures) <= set(TERMS)
    assert {name: cost.provenance(name) for name in figures} == {
        **dict.fromkeys(COUNTED, "counted"),
        "memory": "predicted",
    }
    counted = Counter(model).count().figures()
    assert {name: figures[name] for name in COUNTED} == counted


@given(seed=st.integers(0, 2**32))
def test_nothing_is_smaller_than_what_is_reachable(seed: int) -> None:
    model = toy_model("qwen3")
    space, cost = model.space(), SubnetCost(model)
    sample, least, most = cost.figures(space.sample(Random(seed))), cost.reachable(space), cost.figures(space.full)
    assert all(least[name] <= sample[name] <= most[name] for name in sample)


def test_a_budget_out_of_reach_can_be_told_from_the_smallest() -> None:
    model = toy_model("llama")
    space, cost = model.space(), SubnetCost(model)
    with pytest.raises(BudgetUnmetError, match=r"params<=1% NOT met: "):
        Budget.parse("params=1%").require(cost.reachable(space), cost.figures(space.full))


def test_memory_of_a_run_is_a_sum_of_named_terms() -> None:
    sizes = Sizes(weights=400 * MB, params=100e6, block_params=80e6, hidden=500, layers=20, vocabulary=40_000)
    plan = predict_inference(sizes, cache=10 * MB)
    assert plan.total == pytest.approx(sum(plan.parts.values()))
    assert plan.parts["weights"] == 400 * MB
    assert plan.total == pytest.approx(1.03 * (400 * MB + sum(plan.parts[name] for name in (
        "tokenizer and code", "cache", "activations", "logits"))))  # fmt: skip
    assert sizes.features == 8000


def test_memory_follows_the_subnet_by_its_bytes() -> None:
    model = toy_model("llama")
    space, cost = model.space(), SubnetCost(model)
    whole, small = cost.figures(space.full), cost.figures(space.smallest)
    assert whole["memory"] > small["memory"]
    assert whole["memory"] - small["memory"] > whole["disk"] - small["disk"]


def test_memory_of_fit_grows_with_what_is_asked_for() -> None:
    model = toy_model("llama", vocab_size=500)
    facts = card(model, SubnetCost(model))
    plain = predict_fit(facts, windows=(4, 64))
    more, healed = predict_fit(facts, windows=(400, 64)), predict_fit(facts, windows=(4, 64), recover=True)
    assert set(healed.stages) - set(plain.stages) == {"recovery"}
    assert more.stages["search"]["hidden states"] == 100 * plain.stages["search"]["hidden states"]
    assert more.total > plain.total
    assert healed.total >= plain.total
    assert plain.worst in plain.stages
    assert plain.parts == plain.stages[plain.worst]
    same = predict_fit(facts, windows=(4, 64), work_item=4)  # no second copy where float32 is fastest
    assert "working copy" not in same.stages["search"]
    assert "working copy" in predict_fit(facts, windows=(4, 64), work_item=2).stages["search"]


def test_what_will_not_fit_is_refused_before_the_work() -> None:
    require_memory(None, 1e12)
    require_memory(2e9, 1e9)
    with pytest.raises(MemoryLimitError, match=r"about 3000 MB, but may take 1000 MB; .*--max-memory"):
        require_memory(1e9, 3e9)


def test_sparse_adapters_cost_what_they_hold_while_they_are_trained() -> None:
    model = toy_model("llama", vocab_size=500)
    facts = replace(card(model, SubnetCost(model)), tags=frozenset({"causal-lm"}), linears=linear_shapes(model))
    alone, plain = predict_sparse(facts, windows=(4, 64)), predict_sparse(facts, windows=(4, 64), rank=8)
    masked = predict_sparse(facts, windows=(4, 64), rank=8, merged=True)
    rounded = predict_sparse(facts, windows=(4, 64), rank=8, merged=True, exact=True)
    assert "training" not in alone.stages
    assert {name: stage for name, stage in plain.stages.items() if name != "training"} == alone.stages
    inside = sum(one.outputs * one.inputs for one in facts.linears.values())
    assert inside
    assert masked.stages["training"]["products"] >= 3 * inside  # a mask, and a product or a copy in half precision
    assert rounded.stages["training"]["weights"] >= masked.stages["training"]["weights"]
    assert "fast copies of frozen weights" not in rounded.stages["training"]  # what is rounded needs them exactly
    wide = predict_sparse(facts, windows=(4, 64), rank=8, step_tokens=2048).stages["training"]
    name = "activations for the backward pass"
    assert wide[name] == pytest.approx(8 * plain.stages["training"][name])
    encoder = predict_sparse(replace(facts, tags=frozenset({"encoder"})), rank=8)
    assert not [name for stage in encoder.stages.values() for name in stage if name == "logits"]
    assert plain.stages["training"]["logits"] > 0
