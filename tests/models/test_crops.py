"""Learnt maps of kernels: nothing changes at first; masked, cut out and computed by hand agree once they are learnt."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lissome.core.errors import ArtifactError
from lissome.cost.counted import Counter
from lissome.models.adapters import merged_copy
from lissome.models.binding import extract, masked
from lissome.models.crops import FILE, Crops, add_crops, all_crops, drop_crops
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.testing import conformance
from lissome.testing.conformance import outputs
from lissome.testing.networks import network_model

NETWORKS = ("mobilenet", "convnext")


def learnt(name: str, seed: int = 0) -> Model:
    """A network whose maps are no longer the identity."""
    model = network_model(name)
    add_crops(model)
    generator = torch.Generator().manual_seed(seed)
    for crops in all_crops(model.module).values():
        for matrix in crops.maps.values():
            matrix.data += 0.2 * torch.randn(matrix.shape, generator=generator)
    return model


def by_hand(model: Model, subnet: Subnet) -> nn.Module:
    """A network with whole kernels: those that the maps make, among zeros; the other choices zeroed as ever."""
    plain = model.derived(copy.deepcopy(model.module))
    drop_crops(plain.module)
    for path, crops in all_crops(model.module).items():
        size = subnet[f"{path}.kernel"]
        layer: Any = plain.module.get_submodule(path)
        kernel, around = layer.weight.data, (layer.weight.shape[-1] - size) // 2
        while kernel.shape[-1] > size:
            inner = kernel[..., 1:-1, 1:-1]
            matrix = crops.maps[str(inner.shape[-1])].detach()
            kernel = torch.einsum("ij,ocj->oci", matrix, inner.flatten(2)).view(inner.shape)
        layer.weight.data = F.pad(kernel, [around] * 4)
    return conformance.zeroed(plain, subnet)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_first_nothing_changes(name: str) -> None:
    plain, model = network_model(name), network_model(name)
    add_crops(model)
    inputs, space = example(model, batch=2), plain.anatomy.space(finest=True)
    assert all_crops(model.module)
    for seed in range(3):
        subnet = space.sample(Random(seed))
        with masked(plain, subnet), masked(model, subnet):
            assert torch.equal(outputs(model.module, inputs), outputs(plain.module, inputs))


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 999))
@settings(max_examples=4, deadline=None)
def test_masked_is_cut_out_is_by_hand(name: str, seed: int) -> None:
    model = learnt(name, seed)
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    assert torch.equal(outputs(extract(model, space.full).module, inputs), outputs(model.module, inputs))
    subnet = space.sample(Random(seed))
    small = conformance.check_subnet(model, subnet, inputs, reference=by_hand)
    assert not all_crops(small.module)
    conformance.check_counted(merged_copy(model), subnet, small)


def test_the_full_subnet_is_counted_as_the_network() -> None:
    model = learnt("mobilenet")
    plain = merged_copy(model)
    assert not all_crops(plain.module) and all_crops(model.module)
    assert Counter(plain).count() == Counter(network_model("mobilenet")).count()
    assert merged_copy(plain) is plain


@given(size=st.sampled_from([5, 7, 9]), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_steps_are_taken_one_after_another(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    crops, weight = Crops(size), torch.randn(4, 2, size, size)
    for matrix in crops.maps.values():
        matrix.data.normal_()
    with torch.no_grad():
        found = weight
        for each in range(size - 2, 2, -2):
            found = crops(found, each)
            assert found.shape == (4, 2, each, each)
            assert torch.allclose(found, crops(weight, each), rtol=1e-4, atol=1e-3)


def test_a_path_that_stands_follows_what_is_trained() -> None:
    """A kernel that was made when the path was chosen would be of the past after a step."""
    model = learnt("mobilenet")
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    subnet = space.full.replace({axis.name: 3 for axis in space.axes if axis.name.endswith(".kernel")})
    path, crops = next(iter(all_crops(model.module).items()))
    with masked(model, subnet):
        before = outputs(model.module, inputs)
        with torch.no_grad():
            crops.maps["3"].mul_(1.5)
            model.module.get_submodule(path)._modules["crops"].now[0].mul_(0.5)  # type: ignore[union-attr,index]
        now = outputs(model.module, inputs)
    assert not torch.equal(now, before)
    assert conformance.difference(now, outputs(extract(model, subnet).module, inputs)) <= conformance.TOLERANCE


def test_maps_learn_on_paths_that_use_them() -> None:
    model = learnt("mobilenet")
    model.module.requires_grad_(True)
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    five = space.full.replace({axis.name: 5 for axis in space.axes if axis.name.endswith(".kernel")})
    with masked(model, five):
        model.module(**inputs).square().sum().backward()
    known = {
        (path, size): matrix.grad
        for path, crops in all_crops(model.module).items()
        for size, matrix in crops.maps.items()
    }
    used = {place for place, grad in known.items() if grad is not None and bool(grad.abs().sum() > 0)}
    assert used == {place for place in known if place[1] == "5"}
    assert all(
        value.grad is not None for name, value in model.module.named_parameters() if name.endswith("depthwise.weight")
    )


def test_a_super_network_keeps_them(tmp_path: Path) -> None:
    model = learnt("mobilenet")
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    subnet = space.smallest
    with masked(model, subnet):
        expected = outputs(model.module, inputs)
    model.save(tmp_path / "S")
    again = load_model(tmp_path / "S", into=network_model("mobilenet", seed=5).module)
    with masked(again, subnet):
        assert torch.equal(outputs(again.module, inputs), expected)
    assert conformance.difference(outputs(extract(again, subnet).module, inputs), expected) <= conformance.TOLERANCE
    extract(again, subnet).save(tmp_path / "A")
    assert not (tmp_path / "A" / FILE).exists()
    whole = (tmp_path / "S" / FILE).read_bytes()
    (tmp_path / "S" / FILE).write_bytes(whole[:-9])
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path / "S", into=network_model("mobilenet").module)
    other = learnt("mobilenet")
    del other.module.get_submodule(next(iter(all_crops(other.module)))).crops.maps["3"]  # type: ignore[union-attr]
    other.save(tmp_path / "T")
    with pytest.raises(ArtifactError, match="other kernels"):
        load_model(tmp_path / "T", into=network_model("mobilenet").module)
    next(iter(all_crops(model.module).values())).maps["3"].data[0, 0] = torch.nan
    model.save(tmp_path / "N")
    with pytest.raises(ArtifactError, match="NaN"):
        load_model(tmp_path / "N", into=network_model("mobilenet").module)
