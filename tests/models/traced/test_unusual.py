"""Networks that no rule was written for: what is found in them holds and is counted, and the rest says why."""

# B examples, N tokens, C channels

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.cost.counted import Counter
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing import conformance


class _Blurred(nn.Module):
    """Filters that are buffers, one saved and one not, and a scale that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.register_buffer("kept", torch.rand(8, 1, 3, 3))
        self.register_buffer("lost", torch.rand(12, 1, 3, 3), persistent=False)
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale
        x = F.relu(self.last(F.conv2d(x, self.kept, stride=2, groups=x.shape[1])))
        made: Tensor = self.head(F.conv2d(x, self.lost, groups=x.shape[1]).mean((2, 3)))
        return made


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / deviation, self.bias, self.stride, self.padding)


def _standardised() -> nn.Module:
    return nn.Sequential(
        _Standardised(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), _Standardised(6, 4, 3), nn.Flatten(),
        nn.Linear(4 * 36, 3),
    )  # fmt: skip


def _with_lengths() -> nn.Module:
    norm: Any = nn.utils.parametrizations.weight_norm
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), norm(nn.Conv2d(8, 12, 1)), nn.Flatten(), nn.Linear(768, 3))


class _Split(nn.Module):
    """Attention over two pieces of the channels, and a gate of halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.gated = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.less, self.more, self.head = nn.Linear(8, 6), nn.Linear(6, 16), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pieces = F.relu(self.conv(x)).unflatten(1, (2, -1))
        weights = self.more(F.relu(self.less(pieces.sum(1).mean((2, 3))))).view(len(x), 2, -1, 1, 1).softmax(1)
        made: Tensor = self.head(F.glu(self.gated(x + (pieces * weights).sum(1)), 1).mean((2, 3)))
        return made


class _Biased(nn.Module):
    """Attention with norms of queries, and a bias of positions that is looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 4 * 10), nn.Linear(16, 16)
        self.num_heads, self.norm, self.table = 4, nn.LayerNorm(3), nn.Parameter(torch.randn(5, 4))
        self.register_buffer("places", (torch.arange(5)[:, None] - torch.arange(5)).abs(), persistent=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).split([3, 3, 4], -1)
        seen = (self.norm(q) @ k.transpose(-1, -2) + self.table[self.places].permute(2, 0, 1)).softmax(-1) @ v
        made: Tensor = self.head((x + self.out(seen.transpose(1, 2).flatten(2))).mean(1))
        return made


class _Encoder(nn.Module):
    """torch's own encoder, which asks its first layer how it is made."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.inner = nn.Linear(6, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.encoder(self.inner(x)).mean(1))
        return made


class _Windowed(nn.Module):
    """One convolution that sees pieces of an image as a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pieces = x.unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        made: Tensor = self.head(F.relu(self.conv(pieces)).mean((2, 3)).unflatten(0, (-1, 2)).sum(1))
        return made


_MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "blurred": (_Blurred, (3, 8, 8), {"last.width": "", "first.width": ""}),
    "standardised": (_standardised, (3, 8, 8), {"0.width": "", "2.width": "std_mean over them in 3"}),
    "lengths": (_with_lengths, (3, 8, 8), {"0.width": "the weight of 2"}),
    "split": (_Split, (3, 8, 8), {"stem.width": "", "less.width": "", "gated.groups": ""}),
    "biased": (_Biased, (5, 6), {"inner.width": "", "qkv.groups": "", "norm.width": "-"}),
    "encoder": (
        _Encoder, (5, 6),
        {"encoder.layers.1": "", "encoder.layers.0": "leaving it out fails: 'Skipped' object has no attribute"},
    ),
    "windowed": (_Windowed, (3, 8, 8), {"stem.width": "", "conv.width": ""}),
}  # fmt: skip
"""Networks, what they read, and of some axes why they stay (nothing: they do not)."""


@pytest.fixture(scope="module", params=_MADE)
def made(request: pytest.FixtureRequest) -> tuple[Model, dict[str, str]]:
    build, shape, expected = _MADE[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return load_model(module, example=shape), expected


def _check(model: Model, seed: int) -> None:
    subnet = model.anatomy.space(finest=True).sample(Random(seed))
    small = conformance.check_subnet(model, subnet, example(model, batch=2, seed=seed))
    conformance.check_counted(model, subnet, small)


def test_what_is_found_holds_and_is_counted(made: tuple[Model, dict[str, str]]) -> None:
    model, _ = made
    conformance.check_full(model, example(model))
    assert Counter(model).count().macs == conformance.independent_macs(model.module, example(model))
    for seed in range(4):
        _check(model, seed)


@pytest.mark.slow
def test_a_hundred_subnets_of_networks_without_a_rule(made: tuple[Model, dict[str, str]]) -> None:
    for seed in range(100):
        _check(made[0], seed)


def test_what_stays_says_why(made: tuple[Model, dict[str, str]]) -> None:
    model, expected = made
    found = {axis.name.removeprefix("stream.") for axis in model.anatomy.space(finest=True).axes}
    for axis, why in expected.items():
        if why == "-":
            assert axis not in found
        elif why:
            assert why in model.anatomy.rigid[axis]
        else:
            assert axis in found, model.anatomy.rigid


def test_a_recurrent_layer_is_counted() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.head(self.layer(x)[0][:, -1])
            return made

    model = load_model(Recurrent(), example=(5, 6))
    assert Counter(model).count().macs == 5 * 4 * 8 * (6 + 8) + 8 * 3
    assert "unsafe_split" in model.anatomy.rigid["layer.weight_ih_l0.width"]


class _Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.expert(x[self.router(x)[:, 0] > 0])
        return made


def test_rows_that_numbers_choose_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"0 \(_Routed\) cannot be traced: it asks for the numbers.*index"):
        load_model(nn.Sequential(_Routed()), example=(4,)).space()


def test_a_compiled_part_is_refused_by_name() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        part: Any = torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedModelError, match=r"0 \(\w+Module\) cannot be traced: it was compiled by torch.jit"):
        load_model(nn.Sequential(part, nn.Linear(4, 2)), example=(4,)).space()


class _Helped(nn.Module):
    """A second head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 3)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        made = self.head(F.relu(self.conv(x)).mean((2, 3)))
        return (made, self.second(x.mean((2, 3)))) if self.training else made


def test_what_runs_in_training_alone_keeps_the_channels_that_it_reads() -> None:
    model = load_model(_Helped(), example=(3, 4, 4))
    assert [axis.name for axis in model.space().axes] == ["stream.conv.width"]
    assert model.anatomy.rigid["stem.width"].startswith("cutting it fails in training: mat1 and mat2")
    assert model.anatomy.rigid["second.width"] == "it does not run in evaluation"
