"""Networks that were read from a recording: the identities of `lissome.testing.conformance`, and what stays rigid."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, SubnetError, UnsupportedModelError
from lissome.cost.batch import BatchSum
from lissome.cost.counted import Counter
from lissome.models.binding import extract, masked
from lissome.models.codes import Codes
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.pipeline import inspect
from lissome.testing import conformance
from lissome.testing.networks import NETWORKS, network, network_model


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Model:
    return network_model(request.param)


def check_identities(model: Model, seed: int) -> Model:
    """One random Subnet: masked = extracted = zeroed, and counts are those of the extracted model."""
    space = model.anatomy.space(finest=True)
    subnet = space.sample(Random(seed))
    small = conformance.check_subnet(model, subnet, example(model, batch=2, seed=seed))
    conformance.check_counted(model, subnet, small)
    return small


@pytest.mark.parametrize("seed", range(3))
def test_masked_extracted_zeroed_and_counted_agree(model: Model, seed: int) -> None:
    check_identities(model, seed)


@pytest.mark.slow
def test_a_hundred_subnets_of_every_network(model: Model) -> None:
    for seed in range(100):
        check_identities(model, seed)


def test_the_full_subnet_is_the_model(model: Model) -> None:
    conformance.check_full(model, example(model))
    assert Counter(model).count().macs == conformance.independent_macs(model.module, example(model))


def test_any_reordering_keeps_the_function(model: Model) -> None:
    generator = torch.Generator().manual_seed(1)
    whole = Model(extract(model, model.space().full).module)
    orders = {
        branch.axis(dim.name): torch.randperm(dim.size, generator=generator)
        for branch in whole.anatomy.branches
        for dim in branch.dims
        if not dim.ordered
    }
    conformance.check_reorder(whole, orders, example(whole, batch=2))


def test_a_cut_network_reads_back_and_can_be_cut_again(model: Model, tmp_path: Path) -> None:
    subnet = model.anatomy.space(finest=True).sample(Random(4))
    small = extract(model, subnet)
    assert model.anatomy.space(finest=True).check(
        {**model.anatomy.space(finest=True).full, **model.anatomy.choices(small.anatomy.layers())}
    ) == model.anatomy.space(finest=True).canonical(subnet)
    again = extract(small, small.space().sample(Random(5)))
    inputs = example(model, batch=2)
    again.save(tmp_path / "again")
    read = load_model(tmp_path / "again", into=model.module)
    assert torch.equal(conformance.outputs(read.module, inputs), conformance.outputs(again.module, inputs))


def test_many_are_counted_at_once_as_each_alone(model: Model) -> None:
    space, counter = model.space(), Counter(model)
    subnets = [space.sample(Random(seed)) for seed in range(8)]
    batch = BatchSum(model, space, lambda part: counter.block((part,)), lambda _: (0.0,) * counter.WIDTH, counter.WIDTH)
    columns = counter.columns_of(batch.totals(Codes(space).encode(subnets)))
    for name in ("params", "macs", "disk"):
        assert np.array_equal(columns[name], [getattr(counter.count(subnet), name) for subnet in subnets])


def axes(name: str) -> dict[str, tuple[int, ...]]:
    return {axis.name: axis.choices for axis in Space.of(network_model(name)).axes}


def test_what_is_found_in_a_residual_network() -> None:
    found = axes("resnet")
    assert {name for name, choices in found.items() if choices == (0, 1)} == {"layer1.0", "layer1.1", "layer2.1"}
    assert {name for name in found if name.startswith("stream.")} == {
        "stream.stem.0.width",
        "stream.layer2.0.conv2.width",
    }
    assert "layer2.0.conv1.width" in found


def test_what_is_found_in_a_mobile_network() -> None:
    found = axes("mobilenet")
    assert found["blocks.0.depthwise.kernel"] == (3, 5)
    assert found["blocks.1.depthwise.kernel"] == (3, 5, 7)
    assert "blocks.0.squeeze.reduce.width" in found


def test_what_is_found_in_a_transformer() -> None:
    found, rigid = axes("transformer"), network_model("transformer").anatomy.rigid
    assert found["blocks.0.attention"] == (0, 1)
    assert found["blocks.1.mlp"] == (0, 1)
    assert found["blocks.0.attention.qkv.groups"] == (2, 3, 4)
    assert rigid["patches.width"] == "layer_norm over them in blocks.0.norm1 (LayerNorm)"
    assert rigid["head.width"] == "the model's output"


def test_halves_shuffled_and_grouped_channels_go_together() -> None:
    assert axes("shufflenet")["stream.stem.groups"] == (2, 3, 4)


class _Fixed(nn.Module):
    """Splits its channels at a place that is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.free, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split([4, 4], 1)
        last: Tensor = self.last(self.free(left * right))
        return last


def test_a_size_that_is_written_down_stays_and_says_why() -> None:
    model = load_model(_Fixed().eval(), example=(3, 4, 4))
    assert model.anatomy.rigid["first.groups"].startswith("cutting it fails: split_with_sizes")
    assert [axis.name for axis in model.space().axes] == ["stream.free.width"]


class _Asking(nn.Module):
    """Asks how many channels it got: of one layer, and of one beside another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 24, 1)
        self.last, self.head = nn.Conv2d(24, 24, 1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.shape[1] <= 8:
            raise ValueError("too narrow")
        x = torch.relu(self.next(x))
        y = torch.relu(self.last(x))
        if y.shape[1] > x.shape[1]:
            raise ValueError("it cannot grow")
        made: Tensor = self.head(y.mean((2, 3)))
        return made


def test_what_only_small_or_uneven_cuts_break_says_so() -> None:
    """By half, all at once, each of them holds."""
    model = load_model(_Asking().eval(), example=(3, 4, 4))
    found = {axis.name: axis.choices for axis in model.anatomy.space(finest=True).axes}
    assert model.anatomy.rigid["first.width"] == "below 9, cutting it fails: too narrow"
    assert found["stream.first.width"] == tuple(range(9, 33))
    assert model.anatomy.rigid["next.width"] == "cutting it fails: it cannot grow"
    assert set(found) == {"stream.first.width", "stream.last.width"}
    for seed in range(8):
        check_identities(model, seed)


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_path_that_depends_on_numbers_is_refused_in_one_line() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(_Gate()))
    with pytest.raises(
        UnsupportedModelError, match=r"1\.0 \(_Gate\) cannot be traced: it asks for the numbers"
    ) as error:
        load_model(module).space()
    assert "\n" not in str(error.value)


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 7)


def test_a_forward_that_fails_names_module_and_operation() -> None:
    with pytest.raises(UnsupportedModelError, match=r"1 \(_Broken\) cannot be traced, at view: shape"):
        load_model(nn.Sequential(nn.Linear(4, 4), _Broken())).space()


@pytest.mark.parametrize("wrong", [(), (3, 0), "images", 3])
def test_an_example_must_be_a_shape(wrong: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="is no shape"):
        load_model(network("rows"), example=wrong)


def test_the_input_is_guessed_from_the_first_layer() -> None:
    assert load_model(network("resnet")).anatomy.inputs == {"x": (3, 224, 224)}
    assert load_model(network("rows")).anatomy.inputs == {"input": (10,)}


def test_a_kernel_has_an_order_of_its_own() -> None:
    model = network_model("mobilenet")
    with pytest.raises(SubnetError, match="an order of their own"):
        conformance.reorder(model, {"blocks.0.depthwise.kernel": torch.arange(5)})


def test_switching_takes_views() -> None:
    model = network_model("resnet")
    space = model.space()
    whole = {name: value.data_ptr() for name, value in model.module.named_parameters()}
    narrow = {axis.name: axis.choices[0] for axis in space.axes if axis.choices != (0, 1)}
    subnet = space.full.replace(narrow)
    with masked(model, subnet, space=space) as masking:
        assert masking.views
        assert all(view.data_ptr() == whole[name] for name, view in masking.views.items() if name in whole)


def test_a_folder_of_a_users_class_is_built_by_its_user(tmp_path: Path) -> None:
    model = network_model("rows")
    model.save(tmp_path / "rows")
    with pytest.raises(ArtifactError, match=r"a class of its user.*into=") as error:
        load_model(tmp_path / "rows")
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match="is not the one that the folder was cut from"):
        load_model(tmp_path / "rows", into=network("decoding"))


def test_inspect_says_what_can_change_and_what_cannot() -> None:
    facts = inspect(network_model("transformer")).facts
    assert facts["input"] == "an image of 16×16 pixels, batch 1"
    assert facts["space"]["blocks.0.mlp"] == [0, 1]
    assert re.match("layer_norm", facts["rigid"]["patches.width"])


_STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2]}),
    "mobilenet": ("MobileNetV2", {"image_size": 32, "depth_multiplier": 0.25}),
    "regnet": ("RegNet", {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "groups_width": 8}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}),
    "deit": (
        "DeiT",
        {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 16, "patch_size": 4,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=_STOCK)
def stock(request: pytest.FixtureRequest) -> Model:
    import transformers

    kind, fields = _STOCK[request.param]
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(transformers, f"{kind}ForImageClassification")(config)
        for parameter in module.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return load_model(module, name=request.param)


def test_networks_of_transformers(stock: Model, tmp_path: Path) -> None:
    conformance.check_full(stock, example(stock))
    small = check_identities(stock, 1)
    conformance.check_saved(small, tmp_path / "small", example(stock))
    if stock.name == "deit":
        assert {"deit.layers.0.attention", "deit.layers.1.mlp"} <= {axis.name for axis in stock.space().axes}


@pytest.mark.slow
def test_a_hundred_subnets_of_networks_of_transformers(stock: Model) -> None:
    for seed in range(100):
        check_identities(stock, seed)
