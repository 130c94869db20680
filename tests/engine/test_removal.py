"""Stages of removal: shares follow each other, unlike kinds compete, and nothing beyond the cliff is made."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ConfigError
from lissome.engine.greedy import lowest_loss, within
from lissome.engine.removal import in_turn, shares
from lissome.models.space import Subnet

_GROUPS = (("mixer", "attention"), ("width",), ("ssm",))
_PARTS = st.lists(st.floats(0, 1000), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 1e-6)


def test_auto_is_one_stage_in_which_all_compete() -> None:
    (stage,) = in_turn(_GROUPS, "auto")
    assert stage.kinds == ("mixer", "attention", "width", "ssm") and stage.thrifty and stage.share == 1


@given(_PARTS)
def test_shares_are_gone_through_in_order(parts: list[float]) -> None:
    split = ":".join(map(repr, parts))
    stages = in_turn(_GROUPS, split)
    assert [stage.kinds for stage in stages] == list(_GROUPS)
    ends = [stage.share for stage in stages]
    assert ends == sorted(ends) and ends[-1] == pytest.approx(1)
    assert ends[0] == pytest.approx((shares(split) or (math.nan,))[0])
    assert not any(stage.thrifty or stage.count for stage in stages)


@pytest.mark.parametrize("split", ["", "1:2", "a:b:c", "-1:1:1", "0:0:0", "inf:1:1", "Auto"])
def test_splits_that_make_no_sense(split: str) -> None:
    with pytest.raises(ConfigError, match="44:52:4"):
        in_turn(_GROUPS, split)


@given(st.floats(-5, 5), st.floats(0, 5))
def test_a_move_beyond_the_cliff_has_no_rank(damage: float, most: float) -> None:
    before = Subnet({"a": 1})
    rank = within(most, lowest_loss)(damage, before, before)
    assert rank == (damage if damage <= most else math.inf)
