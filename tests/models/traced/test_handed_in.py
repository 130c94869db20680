"""Networks written as their users write them: what is found, trained and stored of them is right."""

# B images, N tokens, C channels

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.binding import extract, masked
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing import conformance


class _DropPath(nn.Module):
    """Stochastic depth, which asks what it gets for its batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(0.9) / 0.9


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        made: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


class _Weighed(_Attention):
    """As transformers has it: returns a tuple."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class _Scaled(nn.Module):
    """A block whose parts are scaled, and dropped in training, by modules of their own."""

    def __init__(self, width: int, *, weighed: bool = False) -> None:
        super().__init__()
        attention = _Weighed if weighed else _Attention
        self.norm1, self.attn, self.ls1, self.drop_path1 = (
            nn.LayerNorm(width), attention(width, 4), _Scale(width), _DropPath(),
        )  # fmt: skip
        self.norm2, self.mlp, self.ls2, self.drop_path2 = (
            nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)), _Scale(width),
            _DropPath(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        seen = self.attn(self.norm1(x))
        x = x + self.drop_path1(self.ls1(seen[0] if isinstance(seen, tuple) else seen))
        made: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return made


def _vit() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), _Scaled(8), _Scaled(8, weighed=True), nn.Flatten(), nn.Linear(8 * 5, 3))


class _Ghost(nn.Module):
    """Half of the channels are made cheaply of the other half, so that pairs of them go together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cheap = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return x + torch.cat([y, self.cheap(y)], 1)


class _Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3, padding=1), _Ghost(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.block(self.stem(x)).mean((2, 3)))
        return made


class _Tied(nn.Module):
    """One weight in two layers, and one table of positions in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        table = torch.rand(5, 8)
        self.one.register_buffer("positions", table)
        self.other.register_buffer("positions", table)
        self.free, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in (self.one, self.other):
            positions: Any = layer.positions
            x = F.relu(layer(x + positions))
        made: Tensor = self.head(F.relu(self.free(x)).mean(1))
        return made


class _Aided(nn.Module):
    """Batch norms, and a second head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)
        self.head, self.second = nn.Linear(12, 3), nn.Linear(12, 3)
        self.conv, self.bn = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.last(F.relu(self.norm(self.stem(x)))))
        made = self.head(F.relu(self.bn(self.conv(x))).mean((2, 3)))
        return (made, self.second(x.mean((2, 3)))) if self.training else made


def _model(module: nn.Module, shape: tuple[int, ...]) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.data.copy_(0.3 * torch.randn_like(parameter))
    return load_model(module, example=shape)


def _axes(model: Model) -> set[str]:
    return {axis.name for axis in model.anatomy.space(finest=True).axes}


def test_a_part_goes_with_what_scales_it() -> None:
    model = _model(_vit(), (5, 6))
    assert {"1.attn", "1.mlp", "2.attn", "2.mlp"} < _axes(model)
    assert not {"1.ls1", "1.ls2", "2.ls1", "2.ls2"} & (_axes(model) | model.anatomy.rigid.keys())
    for seed in range(4):
        subnet = model.anatomy.space(finest=True).sample(Random(seed))
        small = conformance.check_subnet(model, subnet, example(model, batch=2))
        conformance.check_counted(model, subnet, small)
    left = extract(model, {**model.anatomy.space(finest=True).full, "1.attn": 0}).module
    assert not [name for name, _ in left.named_parameters() if name.startswith(("1.attn", "1.ls1", "1.norm1"))]


def test_heads_of_a_scaled_attention_are_stored(tmp_path: Path) -> None:
    model, inputs = _model(_vit(), (5, 6)), {"input": torch.randn(2, 5, 6)}
    for block in (1, 2):  # the one that returns a tuple is no different
        small = extract(model, {f"{block}.attn.qkv.groups": 2, "1.mlp": 0})
        small.save(tmp_path / str(block))
        read = load_model(tmp_path / str(block), into=_vit())
        assert torch.equal(conformance.outputs(read.module, inputs), conformance.outputs(small.module, inputs))


def test_a_part_that_is_gone_trains_with_stochastic_depth() -> None:
    model = _model(_vit(), (5, 6))
    model.module.train()
    with masked(model, {"1.attn": 0, "2.mlp": 0}):
        assert model.module(**example(model, batch=2)).shape == (2, 3)


def test_what_a_removed_block_held_together_is_stored_and_cut_again(tmp_path: Path) -> None:
    model = _model(_Paired(), (3, 4, 4))
    assert {"block", "stream.stem.groups"} <= _axes(model)
    small = extract(model, {**model.anatomy.space(finest=True).full, "block": 0, "stream.stem.groups": 3})
    assert "stream.stem.width" in _axes(small)
    smaller = extract(small, {**small.anatomy.space(finest=True).full, "stream.stem.width": 5})
    inputs = example(model, batch=2)
    for name, each in (("small", small), ("smaller", smaller)):
        each.save(tmp_path / name)
        read = load_model(tmp_path / name, into=_Paired())
        assert torch.equal(conformance.outputs(read.module, inputs), conformance.outputs(each.module, inputs))


def test_tensors_that_are_one_are_read_back_as_one(tmp_path: Path) -> None:
    model = _model(_Tied(), (5, 6))
    small = extract(model, {**model.anatomy.space(finest=True).full, "stream.free.width": 7})
    small.save(tmp_path / "small")
    read, inputs = load_model(tmp_path / "small", into=_Tied()), example(model, batch=2)
    assert torch.equal(conformance.outputs(read.module, inputs), conformance.outputs(small.module, inputs))
    layers: Any = read.module
    assert layers.other.weight is layers.one.weight
    assert layers.other.positions is layers.one.positions


def test_a_weight_of_two_layers_stays_and_says_whose_it_is() -> None:
    model = _model(_Tied(), (5, 6))
    assert model.anatomy.rigid["stem.width"] == "one.weight is also other.weight"
    assert _axes(model) == {"stream.free.width"}


def test_a_trial_in_training_leaves_running_statistics_alone() -> None:
    model = _model(_Aided(), (3, 4, 4))
    assert {"stream.stem.width", "stream.conv.width"} <= _axes(model)
    assert model.anatomy.rigid["last.width"].startswith("cutting it fails in training: mat1 and mat2")


def test_layers_beside_a_layer_norm_stay_for_its_sake() -> None:
    rigid = _model(_vit(), (5, 6)).anatomy.rigid
    assert {why for why in rigid.values() if "what no layer makes" in why} == set()
    assert rigid["0.width"] == "layer_norm over them in 1.norm1 (LayerNorm)"


class _Keeping(nn.Module):
    """Keeps what it gave last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [self.conv(x)]
        made: Tensor = self.head(self.kept[0].mean((2, 3)))
        return made


def test_a_network_that_keeps_activations_is_read_and_cut() -> None:
    module = _Keeping()
    module(torch.randn(1, 3, 4, 4))
    model = load_model(module, example=(3, 4, 4))
    model.module(**example(model))
    assert extract(model, {"stream.conv.width": 4}).module.get_parameter("conv.weight").shape == (4, 3, 1, 1)
    assert module.kept[0].grad_fn is not None


def test_lazy_layers_are_refused_until_they_have_run() -> None:
    module = nn.Sequential(nn.LazyConv2d(8, 1), nn.Conv2d(8, 3, 1))
    with pytest.raises(UnsupportedModelError, match=r"0\.weight has no shape yet; let the module read one input"):
        load_model(module, example=(3, 4, 4))
    module(torch.zeros(1, 3, 4, 4))
    assert _axes(load_model(module, example=(3, 4, 4))) == {"stream.0.width"}


class _Centred(nn.Module):
    """Double precision, a buffer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.conv(x - self.mean).mean((2, 3)))
        return made


def test_a_network_of_double_precision_is_read() -> None:
    model = _model(_Centred(), (3, 4, 4))
    conformance.check_subnet(model, model.space().smallest, example(model, batch=2))


class _Spectral(nn.Module):
    """Filters of frequencies are complex, and the first of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.first = nn.Parameter(torch.randn(3, 6, dtype=torch.cfloat)), nn.Linear(6, 6)
        self.more, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.irfft(torch.fft.rfft(self.first(x), dim=1) * self.filters, n=5, dim=1)
        made: Tensor = self.head(F.relu(self.more(x)).mean(1))
        return made


def test_complex_parameters_do_not_say_what_inputs_are() -> None:
    model = _model(_Spectral(), (5, 6))
    assert "stream.more.width" in _axes(model)
    assert model.anatomy.rigid["first.width"] == "_fft_r2c in (_Spectral)"
    conformance.check_subnet(model, model.space().smallest, example(model, batch=2))
