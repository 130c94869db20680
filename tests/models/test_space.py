"""Spaces: what is drawn is allowed, one form for equal choices, JSON there and back, mistakes refused."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ArtifactError, SubnetError
from lissome.models.space import Axis, Space, Subnet


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Layers with keep-axes, sizes under them, sometimes a keep-axis of the whole layer above, and quorums."""
    axes: list[Axis] = []
    keeps: list[str] = []
    for index in range(draw(st.integers(1, 4))):
        layer = f"layers.{index}" if draw(st.booleans()) else None
        if layer:
            axes.append(Axis(layer, (0, 1)))
        for branch in draw(st.lists(st.sampled_from(["attention", "mlp"]), unique=True)):
            name = f"layers.{index}.{branch}"
            axes.append(Axis(name, draw(st.sampled_from([(0, 1), (1,)])), switch=layer))
            keeps.append(name)
            choices = tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=4))))
            axes.append(Axis(f"{name}.width", choices, switch=name))
    axes.append(Axis("rank", tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1))))))
    quorums = (
        draw(st.lists(st.lists(st.sampled_from(keeps), min_size=1, unique=True).map(tuple), max_size=2))
        if keeps
        else []
    )
    order = draw(st.permutations(axes))
    return Space(tuple(order), tuple(quorums))


@given(spaces(), st.integers(0, 99), st.floats(0, 1))
def test_what_is_drawn_is_allowed_and_in_its_one_form(space: Space, seed: int, keep: float) -> None:
    for subnet in (space.sample(Random(seed), keep=keep), space.full, space.smallest):
        assert space.allows(subnet)
        assert space.check(subnet) == subnet
        assert space.canonical(subnet) == subnet
        assert space.check(json.loads(json.dumps(subnet.to_json()))) == subnet


@given(spaces(), st.integers(2, 7))
def test_levels_go_down_on_all_axes_together(space: Space, most: int) -> None:
    found = space.levels(most)
    assert (found[0], found[-1]) == (space.full, space.smallest)
    assert len(found) <= max(2, most)
    assert all(space.check(subnet) == subnet for subnet in found)
    for larger, smaller in pairwise(found[:-1]):
        assert all(smaller[name] <= larger[name] for name in larger)


def test_levels_of_equal_lists_are_those_lists() -> None:
    axes = (Axis("a", (4, 6, 8)), Axis("b", (1, 2, 3)), Axis("c", (5, 9)), Axis("keep", (0, 1)))
    full, middle, smallest = (tuple(subnet.values()) for subnet in Space(axes).levels())
    assert (full, middle, smallest) == ((8, 3, 9, 1), (6, 2, 9, 1), (4, 1, 5, 0))


@given(spaces(), st.integers(0, 99))
def test_the_same_seed_draws_the_same(space: Space, seed: int) -> None:
    assert space.sample(Random(seed)) == space.sample(Random(seed))


@given(spaces(), st.data())
def test_one_form_for_equal_choices(space: Space, data: st.DataObject) -> None:
    """What stands under a removed branch makes no difference, however it is chosen."""
    values = {axis.name: data.draw(st.sampled_from(axis.choices)) for axis in space.axes}
    canonical = space.canonical(Subnet(values))
    assert space.canonical(canonical) == canonical
    for axis in space.axes:
        above: list[str] = []
        switch = axis.switch
        while switch is not None:
            above.append(switch)
            switch = space.by_name[switch].switch
        if not all(values[name] for name in above):
            other = Subnet({**values, axis.name: data.draw(st.sampled_from(axis.choices))})
            assert space.canonical(other) == canonical
        else:
            assert canonical[axis.name] == values[axis.name]


@given(spaces())
def test_json_there_and_back(space: Space) -> None:
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


SPACE = Space(
    (
        Axis("layers.0.attention", (0, 1)),
        Axis("layers.0.mlp", (0, 1)),
        Axis("layers.0.mlp.width", (32, 64, 96), switch="layers.0.mlp"),
        Axis("layers.1.attention", (0, 1)),
    ),
    quorums=(("layers.0.attention", "layers.1.attention"),),
)


def test_the_smallest_keeps_the_last_of_a_quorum() -> None:
    assert SPACE.smallest.to_json() == {
        "layers.0.attention": 0,
        "layers.0.mlp": 0,
        "layers.0.mlp.width": 96,
        "layers.1.attention": 1,
    }


def test_a_kept_branch_below_a_removed_one_fills_no_quorum() -> None:
    space = Space((Axis("layer", (0, 1)), Axis("attention", (0, 1), switch="layer")), (("attention",),))
    assert space.smallest.to_json() == {"layer": 1, "attention": 1}
    with pytest.raises(SubnetError, match="must be kept"):
        space.check({"layer": 0, "attention": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.0.mpl": 1}, "did you mean 'layers.0.mlp'"),
        ({"layers.0.mlp.width": 48}, "allowed: (32, 64, 96)"),
        ({"layers.0.mlp.width": 64.0}, "is not a choice"),
        ({"layers.0.mlp.width": "64"}, "is not a choice"),
        ({"layers.0.mlp.width": [64]}, "is not a choice"),
        ({"layers.0.mlp.width": None}, "is not a choice"),
        ({"layers.0.attention": 0, "layers.1.attention": 0}, "must be kept"),
    ],
)
def test_wrong_choices_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SubnetError) as caught:
        SPACE.check({**SPACE.full, **changes})
    assert message in str(caught.value)


def test_a_missing_choice_is_named() -> None:
    with pytest.raises(SubnetError, match=r"no value for axis layers\.1\.attention"):
        SPACE.check({name: value for name, value in SPACE.full.items() if name != "layers.1.attention"})


def test_numbers_of_other_libraries_become_plain() -> None:
    checked = SPACE.check({name: np.int64(value) for name, value in SPACE.full.items()})
    assert {type(value) for value in checked.values()} == {int}
    assert json.loads(json.dumps(checked.to_json())) == SPACE.full.to_json()


@pytest.mark.parametrize(
    "axes",
    [
        (Axis("a", (0, 1)), Axis("a", (0, 1))),
        (Axis("a", (0, 1), switch="b"),),
        (Axis("a", (0, 1), switch="a"),),
        (Axis("a", (0, 1), switch="b"), Axis("b", (0, 1), switch="a")),
    ],
)
def test_axes_that_make_no_space(axes: tuple[Axis, ...]) -> None:
    with pytest.raises(SubnetError):
        Space(axes)


@pytest.mark.parametrize("quorums", [((),), (("b",),)])
def test_quorums_that_cannot_be_kept(quorums: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(SubnetError):
        Space((Axis("a", (0, 1)),), quorums)


@pytest.mark.parametrize("choices", [(), (2, 1), (1, 1)])
def test_choices_are_ascending(choices: tuple[int, ...]) -> None:
    with pytest.raises(SubnetError, match="distinct and ascending"):
        Axis("a", choices)


@pytest.mark.parametrize(
    "fields",
    [None, {}, {"axes": 3}, {"axes": [{"name": "a"}]}, {"axes": [{"name": "a", "choices": [1.5]}]}, {"axis": []}],
)
def test_damaged_json(fields: Any) -> None:
    with pytest.raises(ArtifactError):
        Space.from_json(fields)


def test_a_subnet_is_a_value() -> None:
    subnet = SPACE.full
    other = subnet.replace({"layers.0.mlp.width": 32})
    assert subnet["layers.0.mlp.width"] == 96, "replace made a new one"
    assert other.differs_from(subnet) == ("layers.0.mlp.width",)
    assert len({subnet, other, SPACE.full, Subnet(dict(reversed(subnet.to_json().items())))}) == 2
    assert copy.deepcopy(other) == other
    assert pickle.loads(pickle.dumps(other))._hash is None, "a hash is of one process"
    assert pickle.loads(pickle.dumps(other)) == other
    with pytest.raises(TypeError):
        subnet["layers.0.mlp"] = 0  # type: ignore[index]
    with pytest.raises(SubnetError, match="unknown axis"):
        subnet.replace({"layers.9.mlp": 0})


def test_the_next_smaller_choice() -> None:
    axis = SPACE.by_name["layers.0.mlp.width"]
    assert [axis.below(value) for value in (96, 64, 32)] == [64, 32, None]


@given(spaces(), st.integers(0, 99))
def test_a_neighbour_is_allowed_and_a_choice_or_so_away(space: Space, seed: int) -> None:
    rng = Random(seed)
    subnet = space.sample(rng)
    other = space.neighbour(subnet, rng)
    assert space.check(other) == other
    movable = space.movable(subnet)
    for axis in movable:
        changed = space.canonical(subnet.replace({axis.name: axis.beside(subnet[axis.name])[0]}))
        assert changed != subnet, "only axes that make another Subnet can move"
    if not movable:
        assert other == subnet


@given(spaces(), st.data())
def test_a_repaired_choice_is_allowed_and_one_that_was_stays(space: Space, data: st.DataObject) -> None:
    values = {axis.name: data.draw(st.sampled_from(axis.choices)) for axis in space.axes}
    repaired = space.repaired(values, Random(0))
    assert space.check(repaired) == repaired
    if space.allows(space.canonical(Subnet(values))):
        assert repaired == space.canonical(Subnet(values))


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 99))
def test_of_a_chain_only_the_last_ones_go(length: int, fixed: int, seed: int) -> None:
    names = tuple(f"block.{index}" for index in range(length))
    axes = tuple(Axis(name, (1,) if index < fixed else (0, 1)) for index, name in enumerate(names))
    space = Space((*axes, Axis("width", (4, 8))), quorums=(names,), chains=(names,))
    rng = Random(seed)
    for subnet in (space.smallest, space.full, space.sample(rng), space.neighbour(space.sample(rng), rng)):
        kept = [subnet[name] for name in names]
        assert kept == sorted(kept, reverse=True)
        assert kept[0] == 1 and space.check(subnet) == subnet
    assert sum(space.smallest[name] for name in names) == max(1, min(fixed, length))
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    if length > 1 and fixed == 0:
        with pytest.raises(SubnetError, match="only the last ones"):
            space.check({**space.full, names[0]: 0})
    with pytest.raises(SubnetError, match="free to go"):
        Space((Axis("a", (0, 1)), Axis("b", (1,))), chains=(("a", "b"),))


@pytest.mark.parametrize("tied", [((3, 3),), ((0, 0), (1, 1), (2, 2), (3, 3)), ((1, 2),)])
@pytest.mark.parametrize("chained", ["a", "ab"])
def test_chains_ties_and_quorums_may_share_axes(tied: tuple[tuple[int, int], ...], chained: str) -> None:
    names = {part: tuple(f"{part}.{index}" for index in range(4)) for part in "ab"}
    space = Space(
        (*(Axis(name, (0, 1)) for part in "ab" for name in names[part]), Axis("b.3.width", (2, 4), switch="b.3")),
        quorums=(names["b"],), chains=tuple(names[part] for part in chained),
        ties=tuple((f"a.{one}", f"b.{other}") for one, other in tied),
    )  # fmt: skip
    for seed in range(40):
        rng = Random(seed)
        for subnet in (space.smallest, space.sample(rng, keep=0.4), space.neighbour(space.smallest, rng)):
            assert space.check(subnet) == subnet and space.allows(subnet)


@given(st.integers(2, 4), st.integers(0, 99))
def test_what_is_tied_goes_together(count: int, seed: int) -> None:
    names = tuple(f"part.{index}" for index in range(count))
    parts, rng = tuple(Axis(name, (0, 1)) for name in names), Random(seed)
    space = Space((*parts, Axis("other", (0, 1))), quorums=(("other", names[-1]),), ties=(names,))
    for subnet in (space.smallest, space.full, space.sample(rng), space.neighbour(space.sample(rng), rng)):
        assert len({subnet[name] for name in names}) == 1
        assert space.check(subnet) == subnet and space.allows(subnet)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    with pytest.raises(SubnetError, match="go together"):
        space.check({**space.full, names[0]: 0})
    with pytest.raises(SubnetError, match="do not have the same choices"):
        Space((Axis("a", (0, 1)), Axis("b", (1,))), ties=(("a", "b"),))
