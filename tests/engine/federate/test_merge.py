"""Merges: identities over random Subnets, the defect of dividing by all, liars, and orders of arrival."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome import load
from lissome.core.errors import ConfigError, FederationError, LissomeError
from lissome.engine.federate.layout import Layout, add
from lissome.engine.federate.merge import (
    Bounded,
    Damped,
    Holders,
    Mean,
    Merger,
    Overlap,
    Piece,
    Private,
    Trimmed,
    update_norm,
)
from lissome.engine.federate.outer import Adam, Momentum, Replace
from lissome.engine.federate.shelf import Intake
from lissome.models.model import Model
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model

MODELS = {family: toy_model(family) for family in ("llama", "gemma2", "bert", "vit", "bamba")} | {
    "minilm": toy_model(
        "bert", hidden_size=24, num_attention_heads=12, intermediate_size=96, num_hidden_layers=6
    ),
    "smollm2": toy_model(
        "llama", hidden_size=36, num_attention_heads=9, num_key_value_heads=3, head_dim=4, intermediate_size=96,
        tie_word_embeddings=True,
    ),
    "resnet": network_model("resnet"),
    "mobilenet": network_model("mobilenet"),
}  # fmt: skip
"""Toys of every family, those of MiniLM and SmolLM2 with as many blocks or heads, and convolutional networks."""


def tensors_of(model: Model, seed: int | None = None) -> dict[str, Tensor]:
    found = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        found = {name: torch.randn(value.shape, generator=generator) for name, value in found.items()}
    return found


def pieces(model: Model, values: Sequence[dict[str, Tensor]], seed: int, keep: float) -> list[Piece]:
    """One piece per value, each of a random Subnet and with a random number of examples."""
    rng, found = Random(seed), []
    for index, value in enumerate(values):
        subnet = model.space(width=3).sample(rng, keep=keep)
        layout = Layout.of_subnet(model, subnet, value)
        found.append(Piece(client=f"c{index}", weight=rng.randint(1, 1000), layout=layout, tensors=layout.cut(value)))
    return found


def merged(merger: Merger, base: dict[str, Tensor], given: Sequence[Piece]) -> dict[str, Tensor]:
    merge = merger(base)
    for piece in given:
        merge.add(piece)
    return merge.result()


def reference(base: dict[str, Tensor], given: Sequence[Piece]) -> dict[str, Tensor]:
    """The formula, coordinate by coordinate."""
    sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in base.items()}
    counts = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in base.items()}
    for piece in given:
        for name, place in piece.layout.places.items():
            add(sums[name], place, piece.tensors[name].double(), piece.weight)
            add(counts[name], place, piece.weight)
    return {
        name: torch.where(counts[name] > 0, sums[name] / counts[name].clamp(min=1), value.double()).float()
        for name, value in base.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(0, 999), st.integers(1, 5), st.sampled_from([1.0, 0.6]))
def test_equal_weights_come_back_bit_for_bit(family: str, seed: int, count: int, keep: float) -> None:
    model = MODELS[family]
    base = tensors_of(model)
    given = pieces(model, [base] * count, seed, keep)
    for merger in (Overlap, partial(Trimmed, share=0.2), partial(Bounded, norm=1.0)):
        for name, value in merged(merger, base, given).items():
            assert torch.equal(value, base[name]), f"{merger}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2-135m", "zoo-resnet", "efficientnet-lite0"])
def test_equal_real_weights_come_back_bit_for_bit(name: str) -> None:
    """Weights of many sizes, some of them far from zero, under weights of clients that no binary fraction holds."""
    try:
        model = load(name)
    except LissomeError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")
    base = tensors_of(model)
    for seed in range(3):
        found = merged(Overlap, base, pieces(model, [base] * 3, seed, 0.7))
        assert found and all(torch.equal(value, base[key]) for key, value in found.items())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(0, 999), st.integers(1, 4))
def test_overlap_is_the_formula_and_keeps_what_nobody_holds(family: str, seed: int, count: int) -> None:
    model = MODELS[family]
    base = tensors_of(model)
    given = pieces(model, [tensors_of(model, seed + index) for index in range(count)], seed, 0.7)
    expected = reference(base, given)
    found = {**base, **merged(Overlap, base, given)}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@given(family=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 10_000), count=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_damped_moves_a_coordinate_as_far_as_its_holders_weigh(family: str, seed: int, count: int) -> None:
    model = MODELS[family]
    base = tensors_of(model, seed)
    given_ = pieces(model, [tensors_of(model, seed + 1 + index) for index in range(count)], seed, 0.7)
    plain, damped, held = merged(Overlap, base, given_), merged(Damped, base, given_), Holders()
    for piece in given_:
        held.add(piece.layout, piece.weight)
    everybody = sum(piece.weight for piece in given_)
    assert set(plain) == set(damped)
    for name, value in damped.items():
        share = held.count(name, value.shape) / everybody
        expected = base[name].double() + share * (plain[name].double() - base[name].double())
        assert torch.allclose(value.double(), expected, atol=1e-6)
    whole = [Piece(client="a", weight=3, layout=Layout.whole(base), tensors=tensors_of(model, seed + 9))]
    assert all(torch.equal(merged(Damped, base, whole)[name], value) for name, value in whole[0].tensors.items())


def test_dividing_by_all_clients_shrinks_what_one_holds() -> None:
    """The defect of a published aggregator: one whole client, nine of half the width, all with the same weights."""
    base = {"w": torch.ones(8, 4)}
    half = Layout({"w": {0: torch.arange(4)}})
    given = [Piece(client="c", weight=1.0, layout=Layout.whole(base), tensors=base)]
    given += [Piece(client=f"c{index}", weight=1.0, layout=half, tensors=half.cut(base)) for index in range(9)]
    wrong = torch.zeros(8, 4)
    for piece in given:
        add(wrong, piece.layout.places["w"], piece.tensors["w"] / len(given))
    assert torch.allclose(wrong, torch.tensor([1.0] * 4 + [0.1] * 4)[:, None].expand(8, 4))
    assert torch.equal(merged(Overlap, base, given)["w"], base["w"])


@pytest.mark.parametrize("merger", [Overlap, partial(Trimmed, share=0.3), partial(Bounded, norm=0.5, inner=Trimmed)])
def test_arrival_does_not_matter(merger: Merger, tmp_path: Path) -> None:
    model = MODELS["bert"]
    base = tensors_of(model)
    given = pieces(model, [tensors_of(model, index) for index in range(4)], 3, 1.0)
    results = []
    for order in itertools.islice(itertools.permutations(given), 0, 24, 5):
        intake = Intake(merger(base), [one.client for one in (*given, given[0])] + ["absent"], tmp_path / "shelf")
        for piece in order:
            intake.add(piece)
        results.append(intake.result())
        intake.close()
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])
    assert not (tmp_path / "shelf").exists()


def test_an_answer_whose_turn_it_is_waits_for_nobody(tmp_path: Path) -> None:
    base = {"w": torch.zeros(2)}
    intake = Intake(Overlap(base), ["a", "b", "c", "d"], tmp_path / "shelf")

    def piece(name: str, value: float) -> Piece:
        return Piece(client=name, weight=1.0, layout=Layout.whole(base), tensors={"w": torch.full((2,), value)})

    intake.add(piece("a", 1.0))
    assert not (tmp_path / "shelf").exists()
    intake.add(piece("c", 3.0))
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["c.safetensors"]
    intake.gone("b")
    intake.add(piece("d", 5.0))
    assert not (tmp_path / "shelf" / "d.safetensors").exists()
    assert intake.result()["w"].tolist() == [3.0, 3.0]


def test_a_plain_mean_takes_whole_tensors_of_one_kind() -> None:
    base = {"w": torch.zeros(4), "v": torch.zeros(2)}
    mean = Mean(base)
    mean.add(Piece(client="a", weight=1.0, layout=Layout.whole(base), tensors=base))
    with pytest.raises(FederationError, match="same tensors"):
        mean.add(Piece(client="b", weight=1.0, layout=Layout.whole(["w"]), tensors=base))
    half = Layout({"w": {0: torch.arange(2)}, "v": {}})
    with pytest.raises(FederationError, match="slices"):
        mean.add(Piece(client="c", weight=1.0, layout=half, tensors=half.cut(base)))
    mean.add(Piece(client="d", weight=3.0, layout=Layout.whole(base), tensors={"w": torch.ones(4), "v": torch.ones(2)}))
    assert mean.result()["w"].tolist() == [0.75] * 4


def test_whole_numbers_stay_whole() -> None:
    base = {"steps": torch.tensor([4])}
    given = [
        Piece(client=str(value), weight=1.0, layout=Layout.whole(base), tensors={"steps": torch.tensor([value])})
        for value in (5, 6, 9)
    ]
    assert merged(Overlap, base, given)["steps"].dtype == torch.int64
    assert merged(Overlap, base, given)["steps"].tolist() == [7]


def test_a_liar_moves_a_trimmed_mean_and_a_bounded_one_little() -> None:
    base = {"w": torch.zeros(3)}
    whole = Layout.whole(base)
    honest = [
        Piece(client=f"h{index}", weight=1.0, layout=whole, tensors={"w": torch.full((3,), 1.0 + index / 10)})
        for index in range(4)
    ]
    liar = Piece(client="x", weight=1.0, layout=whole, tensors={"w": torch.full((3,), 1e6)})
    given = [*honest, liar]
    assert merged(Overlap, base, given)["w"][0] > 1e5
    trimmed = merged(partial(Trimmed, share=0.2), base, given)["w"]
    assert torch.allclose(trimmed, torch.full((3,), 1.2)), "the mean of the middle three"
    bounded = Bounded(base, norm=2.0)
    for piece in given:
        bounded.add(piece)
    # Those of norm √3 · 1, 1.1 pass; the others are brought to 2, each coordinate to 2/√3.
    assert torch.allclose(bounded.result()["w"], torch.full((3,), (1.0 + 1.1 + 3 * 2 / 3**0.5) / 5))
    assert update_norm(liar, base) == pytest.approx(3**0.5 * 1e6)
    for share in (-0.1, 0.5):
        with pytest.raises(ConfigError, match=r"\[0, 0\.5\)"):
            Trimmed(base, share)
    with pytest.raises(ConfigError, match="above 0"):
        Bounded(base, norm=0.0)


def _piece(name: str, value: float, weight: float = 1.0) -> Piece:
    tensors = {"w": torch.full((3,), value), "v": torch.zeros(2000)}
    return Piece(client=name, weight=weight, layout=Layout.whole(tensors), tensors=tensors)


def test_private_sums_are_clipped_divided_by_a_fixed_number_and_noisy() -> None:
    base = {"w": torch.zeros(3), "v": torch.zeros(2000)}

    def found(given: Sequence[Piece], noise: float) -> dict[str, Tensor]:
        return merged(
            partial(Private, clip=1.0, noise=noise, clients=4, generator=torch.Generator().manual_seed(1)), base, given
        )

    quiet = found([_piece("a", 0.1), _piece("b", 1e6, weight=1e9)], 1e-9)
    assert torch.allclose(quiet["w"], torch.full((3,), (0.1 + 3**-0.5) / 4)), "a long update has norm 1, and no weight"
    with_one, without = (found(given, 2.0) for given in ([_piece("a", 0.1), _piece("b", 9.0)], [_piece("a", 0.1)]))
    moved = torch.cat([(with_one[name] - without[name]).flatten() for name in base])
    assert float(moved.norm()) <= 1 / 4 + 1e-5, "one client moves the result by at most C over the fixed number"
    assert float(with_one["v"].std()) == pytest.approx(2.0 / 4, rel=0.1), "z·C over it, in every coordinate"
    half = Layout({"w": {0: torch.arange(1)}})
    sliced = Piece(client="c", weight=1.0, layout=half, tensors={"w": torch.tensor([0.5])})
    assert torch.allclose(found([sliced], 1e-9)["w"], torch.tensor([0.125, 0.0, 0.0]), atol=1e-6)
    assert found([], 1.0) == {}
    one, other = (merged(partial(Private, clip=1.0, noise=1.0, clients=1), base, [_piece("a", 0.0)]) for _ in range(2))
    assert not torch.equal(one["v"], other["v"]), "no seed of ours gives the noise away"
    twice = Private(base, clip=1.0, noise=1.0, clients=1)
    twice.add(_piece("a", 0.1))
    with pytest.raises(FederationError, match="already"):
        twice.add(_piece("a", 0.1))
    with pytest.raises(ConfigError, match="above 0"):
        Private(base, clip=0.0, noise=1.0, clients=1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(0, 999), st.integers(1, 5))
def test_what_few_are_planned_to_hold_moves_as_far_as_the_rest(family: str, seed: int, count: int) -> None:
    """One update of all clients, nothing shortened and next to no noise: every coordinate moves by it."""
    model = MODELS[family]
    base, moved = tensors_of(model), tensors_of(model, seed)
    whole = Piece(client="whole", weight=1.0, layout=Layout.whole(base), tensors=moved)
    given = [whole, *pieces(model, [moved] * count, seed, 0.7)]
    planned = Holders()
    for piece in given:
        planned.add(piece.layout, 1.0)
    merger = partial(Private, clip=1e6, noise=1e-15, clients=count + 1, planned=lambda: planned)
    for name, value in merged(merger, base, given).items():
        assert torch.allclose(value, moved[name], rtol=1e-5, atol=1e-6), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(2, 6), st.floats(0.01, 100.0))
def test_one_client_moves_the_sum_by_no_more_than_the_clip(seed: int, count: int, clip: float) -> None:
    model = MODELS["bert"]
    base = {name: torch.zeros_like(value) for name, value in tensors_of(model).items()}
    given = pieces(model, [tensors_of(model, seed + index) for index in range(count)], seed, 0.7)
    planned = Holders()
    for piece in given[:2]:  # others come than were planned
        planned.add(piece.layout, 1.5)

    def found(some: Sequence[Piece]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        merger = partial(Private, clip=clip, noise=1e-9, clients=3, planned=lambda: planned, generator=generator)
        return merged(merger, base, some)

    with_all, without = found(given), found(given[:-1])
    apart = [(with_all[name] - without[name]).double() * planned.count(name, base[name].shape) for name in base]
    assert float(torch.cat([one.flatten() for one in apart]).norm()) <= clip * (1 + 1e-5)


def test_noise_is_that_of_the_sum_over_the_planned_count() -> None:
    base = {"v": torch.zeros(6000)}
    planned = Holders()
    planned.add(Layout({"v": {0: torch.arange(4000)}}), 4.0)
    planned.add(Layout({"v": {0: torch.arange(2000)}}), 4.0)
    merger = partial(
        Private, clip=2.0, noise=1.5, clients=8, planned=lambda: planned, generator=torch.Generator().manual_seed(1)
    )
    whole = Piece(client="a", weight=1.0, layout=Layout.whole(base), tensors={"v": torch.zeros(6000)})
    found = merged(merger, base, [whole])["v"]
    assert float(found[:2000].std()) == pytest.approx(3.0 / 8, rel=0.05)
    assert float(found[2000:4000].std()) == pytest.approx(3.0 / 4, rel=0.05)
    assert float(found[4000:].abs().max()) == 0.0, "nobody is planned there"


def test_trimming_counts_those_who_hold_a_coordinate() -> None:
    base = {"w": torch.zeros(2)}
    given = [
        Piece(client=f"c{value}", weight=1.0, layout=Layout.whole(base), tensors={"w": torch.full((2,), float(value))})
        for value in range(5)
    ]
    first = Layout({"w": {0: torch.tensor([0])}})
    given += [Piece(client=f"d{v}", weight=1.0, layout=first, tensors={"w": torch.tensor([9.0])}) for v in range(5)]
    # First coordinate: 0 1 2 3 4 9 9 9 9 9 without two at either end; second: 0 1 2 3 4 without one.
    assert merged(partial(Trimmed, share=0.2), base, given)["w"].tolist() == [(2 + 3 + 4 + 9 * 3) / 6, 2.0]


def test_optimizers_of_the_server() -> None:
    old, new = (
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([1])},
        {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor([3])},
    )
    assert Replace().step(old, new)["w"].tolist() == [0.0, 2.0]
    plain = Momentum(lr=1.0, momentum=0.0)
    assert plain.step(old, new)["w"].tolist() == [0.0, 2.0], "a step of one without momentum is averaging"
    nesterov = Momentum(lr=0.7, momentum=0.9)
    reference_parameter = torch.nn.Parameter(old["w"].clone())
    stock = torch.optim.SGD([reference_parameter], lr=0.7, momentum=0.9, nesterov=True)
    value = dict(old)
    for _ in range(3):
        reference_parameter.grad = reference_parameter.detach() - new["w"]
        stock.step()
        value |= nesterov.step(value, new)
    assert torch.allclose(value["w"], reference_parameter.detach())
    assert value["n"].tolist() == [3]
    for outer in (Momentum(), Adam()):
        value = outer.step(old, new)
        again = type(outer)()
        again.restore(outer.state())
        assert torch.equal(outer.step(value, new)["w"], again.step(value, new)["w"]), "what is stored is enough"
    moved = Adam(lr=0.1).step(old, new)["w"]
    assert moved[0] < 1.0
    assert moved[1] == 2.0


def test_a_late_answer_that_is_not_wanted_breaks_no_rule(tmp_path: Path) -> None:
    """Beside one in time it would count twice; the one in time stays."""
    merge = Private({"w": torch.zeros(3), "v": torch.zeros(2000)}, clip=1.0, noise=0.1, clients=1)
    intake = Intake(merge, ["a"], tmp_path / "waiting")
    intake.add(_piece("a", 1.0))
    intake.add_stale(_piece("a", 2.0))
    intake.result()
    assert not intake.refused
    assert "already" in intake.too_late["a"]
