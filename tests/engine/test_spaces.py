"""Spaces by rule: which sizes, which blocks; what a stage opens; how many combinations; nothing left is refused."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ConfigError, SubnetError
from lissome.engine.paths import RandomPath, depth_groups, kind_of
from lissome.engine.search.moves import every
from lissome.engine.spaces import Widths, combinations, elastic_space, narrowed
from lissome.models.anatomy import Dim
from lissome.models.binding import masked
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model

RESNET = network_model("resnet")
SMALL = Widths(shares=(1.0, 0.75, 0.5), least=2, multiple=1)


@given(
    size=st.integers(1, 3000),
    shares=st.lists(st.floats(0.05, 1), min_size=1, max_size=5),
    least=st.integers(1, 64),
    multiple=st.sampled_from([1, 8, 64]),
    most=st.sampled_from([None, 1, 3]),
)
def test_shares_of_channels(size: int, shares: list[float], least: int, multiple: int, most: int | None) -> None:
    rule = Widths(shares=tuple(shares), least=least, multiple=multiple, most=most)
    sizes = rule("a.width", Dim("width", size, ()))
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == size
    assert all(least <= each and each % multiple == 0 for each in sizes[:-1])
    assert all(any(-1e-6 <= share * size - each < multiple + 1e-6 for share in shares) for each in sizes[:-1])
    assert most is None or len(sizes) <= most


def test_steps_of_channels_and_single_heads() -> None:
    rule = Widths(step=32, least=32)
    assert rule("a.width", Dim("width", 100, ())) == (36, 68, 100)
    assert rule("a.groups", Dim("groups", 4, ())) == (1, 2, 3, 4)
    assert Widths(shares=(1.0, 0.5))("a.groups", Dim("groups", 5, ())) == (2, 5)
    assert Widths(shares=(0.29,), least=1, multiple=1)("a.width", Dim("width", 100, ())) == (29, 100)
    with pytest.raises(ConfigError, match=r"shares in \(0, 1\]"):
        Widths(shares=(1.5,))


def test_blocks_go_in_chains_and_combinations_are_counted() -> None:
    space = elastic_space(RESNET, SMALL, chains=depth_groups(RESNET.anatomy))
    assert space.chains == (("layer1.0", "layer1.1"), ("layer2.1",))
    some = elastic_space(RESNET, lambda *_: (), kinds=("depth",), chains=depth_groups(RESNET.anatomy))
    assert combinations(some) == len({*every(some)}) == 6
    path = RandomPath(space)
    drawn = [path.one(Random(seed)) for seed in range(60)]
    assert all(space.check(subnet) == subnet for subnet in drawn)
    skipped = [sum(not subnet[name] for name in space.chains[0]) for subnet in drawn]
    assert {0, 1, 2} == set(skipped)
    with masked(RESNET, drawn[0], space=space):
        pass


def test_a_stage_opens_a_part() -> None:
    space = elastic_space(RESNET, SMALL, chains=depth_groups(RESNET.anatomy))
    stage = narrowed(space, ("depth", "width"), choices=2, depth=1)
    assert stage.chains == (("layer1.1",), ("layer2.1",))
    assert "layer1.0" not in stage.by_name
    assert all(len(axis.choices) == 2 for axis in stage.axes)
    assert all(axis.choices[-1] == space.by_name[axis.name].full for axis in stage.axes)
    assert {kind_of(axis) for axis in narrowed(space, ("width",)).axes} == {"width"}


def test_a_quorum_with_a_member_that_stays_is_kept() -> None:
    llama = toy_model("llama")
    groups = depth_groups(llama.anatomy)
    some = elastic_space(llama, SMALL, chains=[group[-2:] for group in groups])
    assert not some.quorums
    whole = elastic_space(llama, SMALL, chains=groups)
    assert whole.quorums
    assert whole.check(whole.smallest) == whole.smallest
    assert whole.smallest["layers.0.attention"] == 1


def test_nothing_to_choose_says_what_there_is() -> None:
    with pytest.raises(SubnetError, match="has depth, width, of which width with these sizes leave one choice"):
        elastic_space(RESNET, Widths(shares=(1.0,)), kinds=("width",))
