"""Predicted latencies: exact where they can be, ranked well where they cannot, and honest about those never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError
from lissome.cost.measured import Request
from lissome.cost.oracle import SubnetCost
from lissome.cost.predicted import Agreement, Regression, Timed, encoded, held_out, time_subnets, totals
from lissome.models.space import Axis, Space, Subnet
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model

SPACE = Space(
    tuple(
        axis
        for index in range(6)
        for axis in (Axis(f"keep{index}", (0, 1)), Axis(f"size{index}", (8, 16, 24, 32), switch=f"keep{index}"))
    )
)


def seconds(subnet: Subnet) -> float:
    """A time that adds up over the axes."""
    return 0.5 + sum((index + 1) * subnet[f"keep{index}"] * (1 + subnet[f"size{index}"]) for index in range(6)) / 100


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_what_adds_up_over_axes_is_predicted_exactly(seed: int) -> None:
    rng = Random(seed)
    subnets = [SPACE.sample(rng, keep=0.6) for _ in range(60)]
    fitted = Regression(encoded(SPACE), subnets[:40], [seconds(each) for each in subnets[:40]])
    assert fitted(subnets[40:]) == pytest.approx([seconds(each) for each in subnets[40:]], rel=2e-3)


def other(subnet: Subnet) -> float:
    """The time on a device for which large layers are cheap, and which takes longer over every layer."""
    return 0.3 + sum(subnet[f"keep{index}"] * (2 + (index + 1) * subnet[f"size{index}"]) for index in range(6)) / 150


@given(seed=st.integers(0, 99), factor=st.floats(0.05, 20))
@settings(max_examples=10)
def test_a_device_that_is_only_slower_is_known_after_four_subnets(seed: int, factor: float) -> None:
    subnets = [SPACE.sample(Random(seed + place), keep=0.6) for place in range(40)]
    known = [seconds(each) for each in subnets]

    def prior(rows: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
        return np.array([seconds(Subnet(dict(row))) for row in rows])

    fitted = Regression(encoded(SPACE), subnets[:4], [factor * each for each in known[:4]], prior=prior)
    assert fitted(subnets) == pytest.approx([factor * each for each in known], rel=1e-6)


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ten_subnets_correct_another_device_better_than_they_teach_from_nothing(seed: int) -> None:
    rng = Random(seed)
    subnets = [SPACE.sample(rng, keep=0.6) for _ in range(90)]
    features, few, rest = encoded(SPACE), subnets[40:50], subnets[50:]
    proxy = Regression(features, subnets[:40], [seconds(each) for each in subnets[:40]])
    took = [other(each) for each in few]
    truth = [other(each) for each in rest]
    corrected = Agreement.of(Regression(features, few, took, prior=proxy)(rest), truth)
    alone = Agreement.of(Regression(features, few, took)(rest), truth)
    as_it_is = Agreement.of(proxy(rest), truth)
    assert corrected.error < min(alone.error, as_it_is.error)
    assert corrected.spearman > 0.97


def test_agreement_on_those_left_out_tells_noise_from_knowledge() -> None:
    rng = Random(0)
    subnets = [SPACE.sample(rng, keep=0.6) for _ in range(48)]
    known = held_out(encoded(SPACE), subnets, [seconds(each) for each in subnets])
    assert known.spearman > 0.99 and known.kendall > 0.95 and known.hits == 1.0 and known.n == 48
    noise = held_out(encoded(SPACE), subnets, [rng.uniform(1, 2) for _ in subnets])
    assert abs(noise.spearman) < 0.6
    assert noise.error > known.error
    assert "48 sub-networks that it had not seen" in str(noise)


def test_agreement_is_what_it_says() -> None:
    exact = Agreement.of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (exact.spearman, exact.kendall, exact.error, exact.hits) == (1.0, 1.0, 0.0, 1.0)
    turned = Agreement.of([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])
    assert (turned.spearman, turned.kendall, turned.hits) == (-1.0, -1.0, pytest.approx(1 / 3))


def test_few_or_impossible_times_are_refused() -> None:
    subnets = [SPACE.sample(Random(seed)) for seed in range(5)]
    with pytest.raises(ConfigError, match="needs 4 timed Subnets"):
        Regression(encoded(SPACE), subnets[:2], [1.0, 2.0])
    with pytest.raises(ConfigError, match="positive"):
        Regression(encoded(SPACE), subnets, [1.0, 2.0, 0.0, 1.0, 1.0])


def test_a_switched_off_size_is_no_feature() -> None:
    one, other = ({**SPACE.full, "keep0": 0, "size0": size} for size in (8, 32))
    features = encoded(SPACE)([one, other])
    assert np.array_equal(features[0], features[1])
    assert encoded(SPACE)([SPACE.full]).tolist() == [[1.0] * 12]


def test_features_of_a_model_know_its_size_and_its_parts() -> None:
    model = toy_model("llama")
    features, cost, space = totals(model), SubnetCost(model), model.space()
    subnet = space.full.replace({"layers.0.mlp": 0})
    whole, less = features([space.full, subnet])
    assert less[0] == cost.figures(subnet)["macs"]
    assert whole.tolist()[2:] == [4.0, 8.0, 8.0, 4.0, 160.0], "attentions, groups, queries; MLPs, width"
    assert less.tolist()[2:] == [4.0, 8.0, 8.0, 3.0, 120.0]


def test_subnets_are_timed_and_found_again(tmp_path: Path) -> None:
    """Only what holds on any machine, however busy: times are positive, and the file says where they are from."""
    model = toy_model("llama")
    space = model.space()
    subnets = [space.full, space.smallest, space.sample(Random(0))]
    timed = time_subnets(model, space, subnets, request=Request(prompt=8, new=4), rounds=1, threads=1)
    assert timed.subnets == subnets
    assert all(each > 0 for each in timed.seconds)
    timed.save(tmp_path / "timed.json")
    assert Timed.load(tmp_path / "timed.json") == timed
    (tmp_path / "timed.json").write_text("{}")
    with pytest.raises(ArtifactError, match="lacks 'device'"):
        Timed.load(tmp_path / "timed.json")


def test_a_network_of_images_has_features_too() -> None:
    model = network_model("mobilenet")
    space = model.space()
    rows = totals(model)([space.full, space.smallest])
    assert rows.shape[0] == 2 and rows.shape[1] <= 12
    assert (rows[1] <= rows[0]).all() and rows[1, 0] < rows[0, 0]
