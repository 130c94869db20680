"""Many Subnets at once cost exactly what they cost one by one, and what the models cut out of them cost."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import SubnetError
from lissome.cost.counted import COUNTED, Counter
from lissome.cost.oracle import SubnetCost
from lissome.cost.table import LatencyTable, latency_table
from lissome.models.binding import extract
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Axis, Space
from lissome.testing.toys import FAMILIES, toy_model

_MODELS: dict[str, Model] = {}
_COSTS: dict[str, SubnetCost] = {}


def toy(family: str) -> tuple[Model, SubnetCost]:
    if family not in _MODELS:
        _MODELS[family] = toy_model(family)
        _COSTS[family] = SubnetCost(_MODELS[family])
    return _MODELS[family], _COSTS[family]


@pytest.mark.long
@given(
    family=st.sampled_from(FAMILIES),
    finest=st.booleans(),
    seed=st.integers(0, 2**32),
    keep=st.sampled_from([0.3, 0.7, 1.0]),
)
def test_a_batch_costs_what_its_subnets_and_the_models_cut_out_cost(
    family: str, finest: bool, seed: int, keep: float
) -> None:
    model, cost = toy(family)
    space = model.anatomy.space(finest=finest)
    rng = Random(seed)
    subnets = [space.full, space.smallest, *(space.sample(rng, keep=keep) for _ in range(4))]
    codes = Codes(space)
    rows = codes.encode(subnets)
    assert codes.decode(rows) == subnets

    columns = cost.columns(space, rows)
    for index, subnet in enumerate(subnets):
        assert {name: column[index] for name, column in columns.items()} == cost.figures(subnet)
    small = Counter(extract(model, subnets[-1], space=space)).count()
    assert columns["params"][-1] == small.params
    assert columns["block_params"][-1] == small.block_params
    assert columns["macs"][-1] == small.macs
    assert columns["disk"][-1] == pytest.approx(small.disk, rel=0.01), "names of blocks are shorter when fewer are left"


@given(seed=st.integers(0, 2**32))
def test_what_stands_under_a_removed_branch_costs_nothing(seed: int) -> None:
    model, cost = toy("qwen2")
    space = model.space()
    codes = Codes(space)
    rows = np.random.default_rng(seed).integers(0, codes.sizes, (8, len(codes.sizes)))
    rows[:, codes.column["layers.0.attention"]] = 1  # so that a quorum holds
    canonical = codes.encode(codes.decode(rows))
    raw, plain = cost.columns(space, rows), cost.columns(space, canonical)
    assert all(np.array_equal(raw[name], plain[name]) for name in raw)


def test_axes_that_a_space_lacks_are_full_and_those_of_others_are_ignored() -> None:
    model, cost = toy("llama")
    space = Space((Axis("layers.1.mlp", (0, 1)), Axis("buffer", (8, 16, 64)), Axis("layers.2.mlp.width", (8, 40))))
    subnet = space.full.replace({"layers.2.mlp.width": 8, "buffer": 16})
    columns = cost.columns(space, Codes(space).encode([subnet]))
    assert {name: columns[name][0] for name in COUNTED} == Counter(model).count({"layers.2.mlp.width": 8}).figures()


def test_a_latency_table_is_added_up_as_for_one() -> None:
    model, _ = toy("llama")
    table: LatencyTable = latency_table(model, seconds=0.4, threads=1)
    cost, space = SubnetCost(model, table=table), model.space()
    subnets = [space.sample(Random(seed)) for seed in range(12)]
    columns = cost.columns(space, Codes(space).encode(subnets))
    for index, subnet in enumerate(subnets):
        got = {name: column[index] for name, column in columns.items()}
        assert got == pytest.approx(cost.figures(subnet), rel=1e-12)


def test_rows_hold_choices_only() -> None:
    space = Space((Axis("a", (1, 4)), Axis("b", (0, 1))))
    codes = Codes(space)
    with pytest.raises(SubnetError, match=r"a=3 is not a choice; allowed: \(1, 4\)"):
        codes.encode([{"a": 3, "b": 0}])
    with pytest.raises(SubnetError, match="no value for axis b"):
        codes.encode([{"a": 4}])
    assert codes.encode([]).shape == (0, 2)
    assert Codes(Space(())).encode([{}]).shape == (1, 0)
    assert Codes(Space(())).decode(np.empty((1, 0), dtype=np.int64)) == [Space(()).full]


def test_a_batch_is_faster_than_one_after_the_other() -> None:
    """A ratio of processor times; both know the cost of every block already."""
    model = toy_model("llama", num_hidden_layers=30)
    cost, space = SubnetCost(model), model.space()
    codes = Codes(space)
    rows = np.random.default_rng(0).integers(0, codes.sizes, (3000, len(codes.sizes)))
    assert len(np.unique(rows, axis=0)) == len(rows)
    subnets = codes.decode(rows)
    cost.columns(space, rows)
    for subnet in subnets:
        cost.figures(subnet)
    start = time.process_time()
    for subnet in subnets:
        cost.figures(subnet)
    middle = time.process_time()
    cost.columns(space, rows)
    assert time.process_time() - middle < (middle - start) / 2
