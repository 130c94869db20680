"""The search itself: what it returns, what it never does twice, what bounds do, and what is refused before any work."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.budget import Budget
from lissome.core.errors import BudgetError, BudgetUnmetError, NumericsError, SubnetError, UnknownNameError
from lissome.core.events import Event, EventStream
from lissome.engine.search import Bound, Found, Goal, Objective, Point, Problem, SearchConfig, search
from lissome.engine.search import samplers as every_sampler
from lissome.engine.search.history import History, Seen
from lissome.engine.search.moves import crossed, differed, draw, every, nudged, polls, redrawn
from lissome.engine.search.pareto import dominates
from lissome.engine.search.samplers.ensemble import Ensemble, credit, score
from lissome.engine.search.samplers.nsga2 import Generations
from lissome.models.space import Axis, Space, Subnet
from tests.engine.search.landscapes import layers, problem, separable, spaces

SAMPLERS = every_sampler.names()
FEW = settings(max_examples=12)


def test_each_sampler_is_a_file() -> None:
    assert set(SAMPLERS) == {"climb", "ensemble", "nsga2", "random", "tpe"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_trial_is_another_subnet_and_the_same_seed_finds_the_same(sampler: str) -> None:
    config = SearchConfig(trials=40, sampler=sampler)
    found = search(problem(), config, seed=3)
    assert len({point.choices for point in found.points}) == len(found.points) == 40
    assert [found.subnet(place) for place in (0, 1)] == [found.space.full, found.space.smallest]
    again = search(problem(), config, seed=3)
    assert [point.choices for point in again.points] == [point.choices for point in found.points]
    assert search(problem(), config, seed=4).points[5:] != found.points[5:]


@given(space=spaces(), sampler=st.sampled_from(SAMPLERS), seed=st.integers(0, 99))
@FEW
def test_a_front_has_no_dominated_point_in_any_space(space: Space, sampler: str, seed: int) -> None:
    """Evaluated once each, allowed, canonical; nothing beats the front; the volume never falls."""
    calls: Counter[Subnet] = Counter()

    def evaluate(subnet: Subnet) -> dict[str, float]:
        calls[subnet] += 1
        assert space.check(subnet) == subnet
        rng = Random(f"{seed}{sorted(subnet.items())}")
        return {"loss": rng.random(), "cycles": float(sum(subnet.values()))}

    goal = Goal.of(["loss", "min cycles"])
    if not any(len(axis.choices) > 1 for axis in space.axes):
        with pytest.raises(SubnetError, match="leaves nothing to choose"):
            search(Problem(space=space, goal=goal, evaluate=evaluate))
        return
    found = search(Problem(space=space, goal=goal, evaluate=evaluate), SearchConfig(trials=25, sampler=sampler))
    assert max(calls.values()) == 1
    assert len(found.points) == min(25, len(set(every(space))))
    values = [goal.values(point.figures) for point in found.points]
    for place in found.front:
        assert not any(dominates(value, values[place]) for value in values)
    assert {values[place] for place in found.front} == {
        value for value in values if not any(dominates(other, value) for other in values)
    }
    volumes = [found.hypervolume(trials=count) for count in range(len(found.points) + 1)]
    assert all(before <= after + 1e-12 for before, after in pairwise(volumes))
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found


def between(sampler: str) -> tuple[Found, list[float]]:
    """A search in which both Subnets to start from break a bound, and the losses of those that hold both."""
    space = layers(8)
    goal = Goal((Objective("loss", "lower"),), (Bound("macs", "<=", 0.5), Bound("macs", ">=", 0.4)))
    asked = Problem(space=space, goal=goal, evaluate=lambda subnet: separable(space, subnet))
    found = search(asked, SearchConfig(trials=60, sampler=sampler))
    return found, [point.figures["loss"] for point in found.points if 0.4 <= point.figures["macs"] <= 0.5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bounds_guide_the_search(sampler: str) -> None:
    found, losses = between(sampler)
    assert found.chosen is not None
    best = found.points[found.chosen]
    assert 0.4 <= best.figures["macs"] <= 0.5
    assert found.front == (found.chosen,), "of one objective the front is the best"
    assert best.figures["loss"] == min(losses)
    if sampler != "random":
        assert len(losses) > 2 * len(between("random")[1]), "breaches lead to where bounds hold"


def test_what_costs_too_much_is_not_evaluated_but_guides() -> None:
    space = layers(6)
    asked: list[Subnet] = []

    def quality(subnet: Subnet) -> dict[str, float]:
        asked.append(subnet)
        return {"loss": separable(space, subnet)["loss"]}

    given_problem = Problem(
        space=space,
        goal=Goal((Objective("loss", "lower"),), (Bound("macs", "<=", 0.3),)),
        evaluate=quality,
        costs=lambda subnet: {"macs": separable(space, subnet)["macs"]},
    )
    found = search(given_problem, SearchConfig(trials=50))
    assert all(separable(space, subnet)["macs"] <= 0.3 for subnet in asked)
    broken = [point for point in found.points if point.figures["macs"] > 0.3]
    assert broken and all("loss" not in point.figures for point in broken)
    assert len(asked) + len(broken) == 50
    assert not set(found.front) & {found.points.index(point) for point in broken}


@pytest.mark.parametrize("bound", [None, 0.6])
def test_informed_samplers_leave_more_behind_than_drawing(bound: float | None) -> None:
    """Hypervolume at equal evaluations, five seeds, on a landscape of 20 axes that adds up over them."""
    asked, volumes = problem(10, bound=bound), {}
    for sampler in ("random", "climb", "ensemble", "nsga2"):
        runs = [search(asked, SearchConfig(trials=150, sampler=sampler), seed=seed) for seed in range(5)]
        volumes[sampler] = mean(found.hypervolume((0.6, 1.05)) for found in runs)
    assert volumes["ensemble"] > volumes["random"]
    assert volumes["climb"] > volumes["random"]
    assert volumes["nsga2"] > volumes["random"]


def test_one_objective_is_brought_further_than_by_drawing() -> None:
    asked = problem(10, bound=0.5, objectives=("loss",))
    losses = {}
    for sampler in ("random", "climb", "ensemble", "nsga2"):
        runs = [search(asked, SearchConfig(trials=150, sampler=sampler), seed=seed) for seed in range(5)]
        losses[sampler] = mean(found.points[found.chosen or 0].figures["loss"] for found in runs)
    assert max(losses["climb"], losses["ensemble"], losses["nsga2"]) < losses["random"]


def test_three_splits_three_purposes() -> None:
    """The front is compared on the second split, and only the chosen one and the original are seen on the third."""
    plain = problem(6, bound=0.6)
    noisy: dict[str, list[Subnet]] = {"selection": [], "test": []}

    def on(split: str, noise: float) -> object:
        def evaluate(subnet: Subnet) -> dict[str, float]:
            noisy[split].append(subnet)
            rng = Random(f"{split}{sorted(subnet.items())}")
            return {"loss": separable(plain.space, subnet)["loss"] + noise * rng.random()}

        return evaluate

    asked = replace(
        plain,
        selection=on("selection", 0.5),
        test=on("test", 0.0),
        splits={"search": "a", "selection": "b", "test": "c"},
    )
    config = SearchConfig(trials=80, compared=6)
    found = search(asked, config)
    assert found.chosen is not None
    chosen = found.points[found.chosen]
    compared = [point for point in found.points if point.selection]
    assert chosen.selection["loss"] == min(
        point.selection["loss"] for point in compared if point.figures["macs"] <= 0.6
    )
    assert noisy["test"] == [found.subnet(found.chosen), plain.space.full]
    assert [point for point in found.points if point.test] == [found.points[0], chosen]
    assert len(noisy["selection"]) == len(set(noisy["selection"])) <= 7
    assert found.points[found.front[0]].figures["loss"] <= chosen.figures["loss"], "the search split alone would differ"


def test_the_smallest_that_is_good_enough_is_good_enough_on_the_selection_split_too() -> None:
    """On the second split everything is worse, so that the first choices do not hold the bound there."""
    plain, most = problem(6), 0.3
    asked = replace(
        plain,
        goal=Goal((Objective("macs", "lower"),), (Bound("loss", "<=", most),)),
        selection=lambda subnet: {"loss": 1.05 * separable(plain.space, subnet)["loss"] + 0.001},
    )
    found = search(asked, SearchConfig(trials=150, sampler="ensemble", compared=12))
    assert found.chosen is not None
    chosen, full = found.points[found.chosen], separable(plain.space, plain.space.full)
    assert chosen.figures["macs"] < 0.9 * full["macs"], "not the original for want of others that were compared"
    assert chosen.selection["loss"] <= most
    compared = [point for point in found.points if point.selection]
    assert 2 < len(compared) <= 13, "the smallest on the search split did not hold"


def test_without_a_bound_several_objectives_name_no_winner() -> None:
    found = search(problem(4), SearchConfig(trials=30))
    assert found.chosen is None
    assert len(found.front) > 3
    assert search(problem(4, objectives=("loss",)), SearchConfig(trials=30)).chosen is not None


def test_another_budget_chooses_from_what_was_evaluated() -> None:
    space = layers(6)
    original = separable(space, space.full)
    found = search(replace(problem(6), original=original), SearchConfig(trials=60))
    place = found.choose(Budget.parse("macs<=50%"))
    holding = [point for point in found.points if point.figures["macs"] <= 0.5]
    assert found.points[place].figures["loss"] == min(point.figures["loss"] for point in holding)
    with pytest.raises(BudgetUnmetError, match=r"macs<=1% cannot be met: .*reachable is"):
        found.choose(Budget.parse("macs<=1%"))
    with pytest.raises(BudgetError, match=r"unknown figure 'latency'"):
        found.choose(Budget.parse("latency<=1s"))


def test_a_budget_on_what_was_not_taken_is_named_even_where_nothing_was_judged() -> None:
    space = Space((Axis("a", (1, 2, 3)),))
    points = tuple(Point(number=at, choices=(at + 1,), figures={"macs": at + 1.0}) for at in range(3))
    found = Found(space=space, goal=Goal.of(("accuracy", "macs"), "macs<=0.5"), points=points, original={"macs": 3.0})
    with pytest.raises(BudgetError, match="unknown figure 'latency'; known: macs"):
        found.choose(Budget.parse("latency<=50%"))
    with pytest.raises(BudgetUnmetError, match="no evaluated Subnet holds macs<=50%; search on"):
        found.choose(Budget.parse("macs<=50%"))


def test_a_small_space_is_gone_through_and_then_it_ends() -> None:
    space = Space((Axis("a", (1, 2, 4)), Axis("b", (0, 1)), Axis("c", (1, 2), switch="b")))
    heard: list[Event] = []
    found = search(
        Problem(space=space, goal=Goal.of("min a"), evaluate=lambda subnet: {"a": float(subnet["a"])}),
        SearchConfig(trials=50),
        events=EventStream(heard.append),
    )
    assert {found.subnet(place) for place in range(len(found.points))} == set(every(space))
    assert len(found.points) == 9, "c is no choice where b is 0"
    assert any(event.message == "all 9 Subnets of the Space were evaluated" for event in heard)


def test_progress_counts_trials() -> None:
    heard: list[Event] = []
    search(problem(4), SearchConfig(trials=12), events=EventStream(heard.append))
    steps = [event.step for event in heard if event.stage == "search"]
    assert steps == [*range(13), 12]
    assert {"front", "loss", "macs"} <= set(heard[5].metrics)


def test_what_has_no_figures_fails_alone() -> None:
    space = layers(4)

    def evaluate(subnet: Subnet) -> dict[str, float]:
        figures = separable(space, subnet)
        if figures["macs"] < 0.3:
            raise NumericsError("the loss is\n NaN.")
        return figures

    found = search(Problem(space=space, goal=Goal.of(["loss", "macs"]), evaluate=evaluate), SearchConfig(trials=40))
    assert found.failed["the loss is NaN."] == 40 - len(found.points) > 0
    nan = replace(problem(4), evaluate=lambda subnet: {"loss": float("nan"), "macs": 1.0})
    assert search(nan, SearchConfig(trials=3)).failed == {"the figure loss of a Subnet is nan.": 3}


def test_what_cannot_be_searched_is_refused_before_any_work() -> None:
    def never(_: Subnet) -> dict[str, float]:
        raise AssertionError

    space = layers(4)
    goal = Goal((Objective("loss", "lower"),), (Bound("params", "<=", 3.0),))
    with pytest.raises(SubnetError, match=r"leaves nothing to choose \(0 axes"):
        search(Problem(space=Space(()), goal=goal, evaluate=never))
    with pytest.raises(UnknownNameError, match="unknown sampler 'ngsa2'; did you mean 'nsga2'"):
        search(Problem(space=space, goal=goal, evaluate=never), SearchConfig(sampler="ngsa2"))
    with pytest.raises(SubnetError, match="is not a choice"):
        search(Problem(space=space, goal=goal, evaluate=never, start=(space.full.replace({"l0.width": 7}),)))
    costs = {space.full: {"params": 100.0}, space.smallest: {"params": 20.0}}
    reach = Problem(
        space=space, goal=goal, evaluate=never, costs=costs.__getitem__, monotone=True, original={"params": 200.0}
    )
    with pytest.raises(
        BudgetUnmetError, match=r"params<=3 cannot be met: reachable is 20 to 100 \(10.0% to 50.0% of the original\)"
    ):
        search(reach)


def test_a_figure_that_is_not_taken_is_named() -> None:
    with pytest.raises(BudgetError, match="unknown figure 'latency'"):
        search(replace(problem(4), goal=Goal.of(["loss", "latency"])))


@given(spaces(), st.integers(0, 99))
@FEW
def test_every_move_gives_an_allowed_subnet_in_its_one_form(space: Space, seed: int) -> None:
    rng = Random(seed)
    some = [draw(space, rng) for _ in range(4)]
    made = [
        *some, redrawn(space, some[0], rng), nudged(space, some[0], rng), crossed(space, some[0], some[1], rng),
        differed(space, some, rng), *polls(space, some[0], rng),
    ]  # fmt: skip
    for subnet in made:
        assert space.check(subnet) == subnet
    if space.movable(some[0]):
        assert some[0] not in polls(space, some[0], rng)


def test_credit_is_the_area_under_the_curve_of_gains() -> None:
    assert credit([]) == 0.0
    assert credit([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert credit([1.0, 0.0]) == pytest.approx(1 / 3)
    assert credit([0.0, 1.0]) == pytest.approx(2 / 3), "a late gain counts more"
    assert score([], 10) == float("inf"), "who was never asked is asked"
    assert score([0.0], 100) > score([0.0] * 50, 100), "who is rarely asked is asked again"


def test_the_bandit_prefers_who_gains() -> None:
    """Of two techniques only one ever finds something better; it gets most of the trials."""
    space = Space(tuple(Axis(f"a{index}", tuple(range(20))) for index in range(4)))
    goal = Goal.of("min cost")
    history = History(space, goal)
    history.add(Seen(number=0, subnet=space.full, figures={"cost": 76.0}))

    def better(space: Space, best: list[Subnet], *_: object) -> Subnet | None:
        name = next((name for name, value in best[0].items() if value), None)
        return best[0].replace({name: best[0][name] - 1}) if name else None

    def worse(space: Space, best: list[Subnet], _: object, rng: Random) -> Subnet:
        return Subnet({name: rng.choice(range(15, 20)) for name in best[0]})

    bandit = Ensemble({"better": better, "worse": worse})
    uses: Counter[str] = Counter()
    for number in range(1, 60):
        proposal = bandit.propose(history, Random(number))
        uses[proposal.by] += 1
        history.add(
            Seen(
                number=number, subnet=proposal.subnet, figures={"cost": float(sum(proposal.subnet.values()))},
                by=proposal.by, notes=proposal.notes,
            )
        )  # fmt: skip
    assert uses["better"] > 3 * uses["worse"] > 0


def test_subnets_to_start_from_become_parents() -> None:
    """They count as members of the first generation of NSGA-II, not as strangers to it."""
    made = problem(6)
    history = History(made.space, made.goal)
    sampler = Generations(every_sampler.Options(made.space, made.goal, population=4))
    assert sampler.adopt(history) == sampler.adopt(history)
    assert list(sampler.adopt(history).values()) == [0]
    for number, subnet in enumerate([made.space.full, made.space.smallest]):
        history.add(Seen(number=number, subnet=subnet, figures=made.evaluate(subnet), notes=sampler.adopt(history)))
    for number in range(2, 5):
        proposal = sampler.propose(history, Random(number))
        assert list(proposal.notes.values()) == [0 if number < 4 else 1]
        history.add(
            Seen(number=number, subnet=proposal.subnet, figures=made.evaluate(proposal.subnet), notes=proposal.notes)
        )


def test_it_is_found_again_in_a_file(tmp_path: Path) -> None:
    found = search(problem(4), SearchConfig(trials=10))
    found.save(tmp_path / "found.json")
    assert Found.load(tmp_path / "found.json") == found
