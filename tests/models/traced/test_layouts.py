"""How users lay their modules out: in lists of lists, shared between blocks, with tables and sizes of their own."""

# B examples, N tokens, C channels

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing import conformance


class _Attention(nn.Module):
    """Heads that are as many as each of them is wide, and attributes that say both."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.qkv, self.proj = nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        made: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


class _Layers(nn.Module):
    """All layers of a transformer as lists in a list, added up outside of them, without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([_Attention(), nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))])
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, mlp = layer  # type: ignore[misc]
            x = attention(x) + x
            x = mlp(x) + x
        return x


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) if x.ndim == 3 else x.mean((2, 3))


def _listed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), _Layers(), _Mean(), nn.Linear(8, 3))


class _Adding(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.own = inner, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.own(F.relu(self.inner(x)))
        return made


def _with_shared_layer() -> nn.Module:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    blocks = (_Adding(shared), _Adding(shared), _Adding(nn.Conv2d(8, 8, 1)))
    return nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, _Mean(), nn.Linear(8, 3))


def _with_shared_weight() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), *(_Adding(nn.Conv2d(8, 8, 1)) for _ in range(3)), _Mean(), nn.Linear(8, 3)
    )
    first, second = (module.get_submodule(f"{index}.inner") for index in (1, 2))
    second.weight = first.weight
    return module


class _Tabled(nn.Module):
    """A table of whole numbers among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.tensor([1, 0, 2, 3]), requires_grad=False)
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.first(x))[..., self.places].mean((2, 3))
        return made


def _model(module: nn.Module, shape: tuple[int, ...]) -> Model:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return load_model(module, example=shape)


_MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "lists": (_listed, (5, 6), {"1.layers.0.0", "1.layers.1.0", "1.layers.1.1.0.width", "stream.0.width"}),
    "shared layer": (_with_shared_layer, (3, 4, 4), {"stream.0.width", "stream.1.inner.width"}),
    "shared weight": (_with_shared_weight, (3, 4, 4), {"3", "3.inner.width"}),
    "table": (_Tabled, (3, 4, 4), {"stream.first.width"}),
}


@pytest.mark.parametrize("name", _MADE)
def test_what_can_change_is_counted_and_read_back(name: str, tmp_path: Path) -> None:
    make, shape, some = _MADE[name]
    model = _model(make(), shape)
    space, inputs = model.anatomy.space(finest=True), example(model, batch=2)
    assert some <= {axis.name for axis in space.axes}
    for seed in range(5):
        subnet = space.sample(Random(seed))
        small = conformance.check_subnet(model, subnet, inputs)
        conformance.check_counted(model, subnet, small)
        small.save(tmp_path / str(seed))
        read = load_model(tmp_path / str(seed), into=make())
        assert torch.equal(conformance.outputs(read.module, inputs), conformance.outputs(small.module, inputs))


def test_parts_of_a_block_have_names_of_their_own() -> None:
    layers = _model(_listed(), (5, 6)).anatomy.layers()
    assert [part for layer in layers for part in layer if part.startswith("layers")] == [
        "layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1",
    ]  # fmt: skip


def test_a_block_that_shares_a_tensor_stays_and_says_which() -> None:
    for make in (_with_shared_layer, _with_shared_weight):
        rigid: Any = _model(make(), (3, 4, 4)).anatomy.rigid
        assert rigid["1"] == "1.inner.weight is also 2.inner.weight"


def test_the_size_of_a_head_is_not_their_number() -> None:
    assert "1.layers.0.0.qkv.groups" in {axis.name for axis in _model(_listed(), (5, 6)).space().axes}


class _Tokens(nn.Module):
    """Mixes tokens in every channel, and channels in every token, without a norm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        made: Tensor = x + self.channels(x)
        return made


class _Heads(nn.Module):
    """A layer that every head goes through, and products between channels that are cut apart."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.keys, self.values = nn.Linear(8, 12), nn.Linear(8, 20)
        self.each, self.proj = nn.Linear(5, 6), nn.Linear(4 * 6, 8)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.keys, self.values)
        )
        mixed = keys @ (keys.transpose(-1, -2) @ values)
        made: Tensor = x + self.proj(self.each(mixed).transpose(1, 2).flatten(2))
        return made


class _Joined(nn.Module):
    """Values of two layers, joined, are weighed by what no layer cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.one, self.other, self.last = (
            nn.Linear(8, 2), nn.Linear(8, 6), nn.Linear(8, 10), nn.Linear(16, 8),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        weights = (query @ query.transpose(-1, -2)).softmax(-1)
        made: Tensor = x + self.last(weights @ torch.cat([self.one(x), self.other(x)], -1))
        return made


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        (_Tokens, {"stream.0.width", "1", "1.tokens.0.width"}),
        (_Heads, {"stream.0.width", "1", "1.keys.groups"}),
        (_Joined, {"stream.0.width", "1", "1.one.width", "1.other.width"}),
    ],
)
def test_products_that_follow_from_several_sizes_are_counted(kind: type[nn.Module], some: set[str]) -> None:
    model = _model(nn.Sequential(nn.Linear(6, 8), kind(), kind(), _Mean(), nn.Linear(8, 3)), (5, 6))
    space, inputs = model.anatomy.space(finest=True), example(model, batch=2)
    assert some <= {axis.name for axis in space.axes}
    for seed in range(6):
        subnet = space.sample(Random(seed))
        conformance.check_counted(model, subnet, conformance.check_subnet(model, subnet, inputs))
