"""A model under its masks as something to search: its figures are those of the models cut out."""

from __future__ import annotations

import pytest
import torch

from lissome.core.errors import BudgetUnmetError, UnsupportedModelError
from lissome.cost.counted import Counter
from lissome.cost.oracle import SubnetCost
from lissome.engine.scoring import perplexity, score_text
from lissome.engine.search import Goal, SearchConfig, search
from lissome.engine.search.subject import MaskedText, problem_of
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.testing.toys import toy_ids, toy_model


def subject(model: Model) -> MaskedText:
    windows = {
        "search": toy_ids(model, 0, 3, 12),
        "selection": toy_ids(model, 1, 3, 12),
        "test": torch.empty(0, 12, dtype=torch.long),
    }
    return MaskedText(model, windows, SubnetCost(model), identity={"model": model.name})


def test_figures_are_those_of_the_models_cut_out() -> None:
    model = toy_model("llama")
    asked = subject(model)
    original = asked.costs(asked.space.full)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    problem = problem_of(asked, Goal.of(["ppl", "params"], "params<=90%", original=original), original=original)
    found = search(problem, SearchConfig(trials=14, population=4), seed=2)
    assert found.chosen is not None
    for place in found.front:
        small = extract(model, found.subnet(place), space=found.space)
        point = found.points[place]
        assert point.figures["params"] == Counter(small).count().params <= 0.9 * original["params"]
        for split, figures in (("search", point.figures), ("selection", point.selection)):
            scores = score_text(small, toy_ids(model, int(split != "search"), 3, 12))
            assert figures["ppl"] == pytest.approx(perplexity(list(scores.nll)), rel=1e-5)
        assert not point.test, "there is no test split"
    assert found.provenance["params"] == "counted" and found.provenance["ppl"] == "measured"
    assert found.splits == {"search": "3 windows of 12 tokens", "selection": "3 windows of 12 tokens"}
    assert all(
        "ppl" not in point.figures for point in found.points if point.figures["params"] > 0.9 * original["params"]
    )
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_costs_alone_take_no_quality() -> None:
    model = toy_model("qwen2")
    asked = subject(model)
    original = asked.costs(asked.space.full)
    found = search(problem_of(asked, Goal.of(["params", "macs"]), original=original), SearchConfig(trials=8))
    assert all("ppl" not in point.figures for point in found.points)
    assert found.splits == {}


def test_a_budget_out_of_reach_is_refused_with_the_range() -> None:
    asked = subject(toy_model("llama"))
    original = asked.costs(asked.space.full)
    goal = Goal.of(["ppl"], "params<=1%", original=original)
    with pytest.raises(BudgetUnmetError, match=r"params<=.* cannot be met: reachable is .*of the original"):
        search(problem_of(asked, goal, original=original))


def test_only_language_models_have_a_perplexity() -> None:
    model = toy_model("vit")
    with pytest.raises(UnsupportedModelError, match="a search for perplexity"):
        MaskedText(model, {}, SubnetCost(model), identity={})
