"""Layouts: what is cut out can be put back, and is what an extracted model has, under the names it has there."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import SubnetError
from lissome.engine.federate.layout import FLAT, Layout, add, cut, local_names, put, shape_of
from lissome.models.binding import extract
from lissome.testing.toys import FAMILIES, toy_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_cut_is_what_an_extracted_model_holds(family: str, keep: float) -> None:
    model = toy_model(family)
    tensors = {name: value.detach() for name, value in model.module.named_parameters()}
    for seed in range(3):
        subnet = model.space(width=3).sample(Random(seed), keep=keep)
        parts = Layout.of_subnet(model, subnet, tensors).cut(tensors)
        small = extract(model, subnet)
        held = dict(small.module.named_parameters())
        names = local_names(model, small, subnet)
        assert {names[local] for local in held} == set(parts)
        for local, value in held.items():
            assert torch.equal(value, parts[names[local]]), local


@st.composite
def places(draw: st.DrawFn) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape) + 1
    if draw(st.booleans()):
        kept = draw(st.sets(st.integers(0, tensor.numel() - 1), min_size=1))
        return tensor, {FLAT: torch.tensor(sorted(kept))}
    found = {}
    for dim, size in enumerate(shape):
        if draw(st.booleans()):
            found[dim] = torch.tensor(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))))
    return tensor, found


@given(places())
def test_put_after_cut_changes_nothing_and_add_is_its_adjoint(
    given: tuple[torch.Tensor, dict[int, torch.Tensor]],
) -> None:
    tensor, place = given
    part = cut(tensor, place).clone()
    assert tuple(part.shape) == shape_of(tuple(tensor.shape), place)
    again = tensor.clone()
    put(again, place, part)
    assert torch.equal(again, tensor)
    total = torch.zeros_like(tensor)
    add(total, place, part, 2.0)
    held = torch.zeros_like(tensor)
    add(held, place, 1.0)
    assert torch.equal(total, 2 * tensor * held)
    other = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    assert torch.isclose((total * other).sum(), (2 * part * cut(other, place)).sum(), rtol=1e-4)


def test_a_layout_shares_no_memory_and_names_what_is_missing() -> None:
    tensors = {"a": torch.ones(4), "b": torch.ones(2)}
    layout = Layout({"a": {0: torch.tensor([0, 1])}})
    part = layout.cut(tensors)
    part["a"].zero_()
    assert torch.equal(tensors["a"], torch.ones(4))
    assert layout.templates(tensors)["a"].shape == (2,)
    assert Layout.whole(tensors).only(["b"]).places == {"b": {}}
    with pytest.raises(SubnetError, match="unknown tensor 'a'"):
        layout.cut({"aa": torch.ones(4)})


def test_equal_places_have_one_key() -> None:
    one, two = Layout({"a": {0: torch.arange(2)}}), Layout({"a": {0: torch.arange(2)}})
    assert one.keys == two.keys
    assert Layout({"a": {1: torch.arange(2)}}).keys != one.keys
    assert Layout({"a": {}}).keys == {"a": ""}
    with pytest.raises(SubnetError, match=r"unknown axis 'layers\.0\.mpl'"):
        Layout.of_subnet(toy_model("bert"), {"layers.0.mpl": 0}, [])
