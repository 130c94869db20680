"""Forwards as people write them: sizes that are written down, blocks inside of blocks, stacks, and data classes."""

# B examples, N tokens, C channels, H heads

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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


class _Attention(nn.Module):
    """It ends with the size of what it takes, as most code for vision transformers does."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self._heads(x, B, N, C).unbind(0)
        seen = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        made: Tensor = self.proj(seen.transpose(1, 2).reshape(B, N, C))
        return made

    def _heads(self, x: Tensor, b: int, n: int, c: int) -> Tensor:
        return self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)


class _OfImages(nn.Module):
    """Attention between the pixels of an image, whose number of heads is called h."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.h, self.qkv, self.proj = 4, nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        q, k, v = self.qkv(x).view(b, 3, self.h, c // self.h, height * width).unbind(1)
        seen = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        made: Tensor = self.proj(seen.reshape(b, c, height, width))
        return made


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 3)
        self.attention = _Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        made: Tensor = self.head((x + self.attention(self.norm(x))).mean(1))
        return made


class _Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, 16, 3), _OfImages(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made: Tensor = self.head((x + self.attention(x)).mean((2, 3)))
        return made


class _Maxout(nn.Module):
    """The largest of three at a time, of a number of channels that it keeps for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.units, self.head = nn.Linear(6, 36), 12, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.wide(x).view(len(x), self.units, 3).amax(-1))
        return made


class _Gated(nn.Module):
    """Global response normalisation: it adds what it gets (ConvNeXt V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(dim=(2, 3), keepdim=True)
        return self.gamma * (x * norm) + self.beta + x


class _Outer(nn.Module):
    """A residual block with a part inside of it that passes on what it gets."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.inner, self.down = nn.Conv2d(width, 16, 1), _Gated(16), nn.Conv2d(16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.down(self.inner(F.gelu(self.up(x)))))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, 12, 3, padding=1), nn.Conv2d(12, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class _Around(nn.Module):
    """A long chain of blocks with a short way around all of it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.chain, self.last = nn.Sequential(*(_Residual(width) for _ in range(3))), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.chain(x)) * 0.5


class _Chained(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(block(), block())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return made


class _Stacked(nn.Module):
    """Two branches, stacked and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(torch.stack([self.first(x), self.second(x)], dim=1).mean(1).relu().mean((2, 3)))
        return made


class _Selective(nn.Module):
    """Two branches, of which each channel takes as much as it is told (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.less, self.more, self.head = nn.Linear(8, 6), nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.first(x), self.second(x)], 1)
        shares = self.more(self.less(both.sum(1).mean((2, 3))).relu()).view(len(x), 2, -1, 1, 1).softmax(1)
        made: Tensor = self.head((both * shares).sum(1).mean((2, 3)))
        return made


@dataclass
class _Output:
    logits: Tensor
    hidden: Tensor


class _Told(nn.Module):
    """It returns a data class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> _Output:
        hidden = self.last(self.first(x).relu())
        return _Output(self.head(hidden.relu()), hidden)


_MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "tokens": (_Tokens, (3, 16, 16), {"attention.qkv.groups"}),
    "pixels": (_Pixels, (3, 8, 8), {"attention.qkv.groups"}),
    "maxout": (_Maxout, (6,), {"stream.wide.groups"}),
    "outer": (lambda: _Chained(_Outer), (3, 8, 8), {"blocks.0", "blocks.1", "blocks.0.up.width"}),
    "around": (lambda: _Chained(_Around), (3, 8, 8), {"blocks.0.chain.2", "blocks.1.chain.0", "stream.stem.width"}),
    "stacked": (_Stacked, (3, 8, 8), {"stream.first.width"}),
    "selective": (_Selective, (3, 8, 8), {"stream.first.width", "stream.less.width"}),
}
"""Networks, what they read, and some axes that are found."""


@pytest.fixture(scope="module", params=_MADE)
def made(request: pytest.FixtureRequest) -> tuple[Model, set[str]]:
    build, shape, axes = _MADE[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return load_model(module, example=shape), axes


def test_what_is_found_holds_and_is_counted(made: tuple[Model, set[str]]) -> None:
    model, axes = made
    space = model.anatomy.space(finest=True)
    assert axes <= {axis.name for axis in space.axes}, model.anatomy.rigid
    conformance.check_full(model, example(model))
    for seed in range(6):
        subnet = space.sample(Random(seed))
        small = conformance.check_subnet(model, subnet, example(model, batch=2, seed=seed))
        conformance.check_counted(model, subnet, small)


def test_a_cut_one_is_stored_copied_and_cut_again(made: tuple[Model, set[str]], tmp_path: Path) -> None:
    model, _ = made
    space = model.anatomy.space(finest=True)
    inputs = example(model, batch=2)
    sizes = {axis.name: axis.choices[len(axis.choices) // 2] for axis in space.axes if axis.choices != (0, 1)}
    small = extract(model, {**space.full, **sizes})
    wanted = conformance.outputs(small.module, inputs)
    small.save(tmp_path / "small")
    again = load_model(tmp_path / "small", into=copy.deepcopy(model.module))
    assert torch.equal(conformance.outputs(again.module, inputs), wanted)
    for twin in (copy.deepcopy(small.module), pickle.loads(pickle.dumps(small.module))):
        assert torch.equal(conformance.outputs(twin, inputs), wanted)
    finer = small.anatomy.space(finest=True)
    assert {name for name in sizes if small.anatomy.space(finest=True).by_name.get(name)}, "it can be cut again"
    conformance.check_subnet(small, finer.sample(Random(0)), inputs)


def test_a_module_is_given_back_as_it_was() -> None:
    model = load_model(_Tokens(), example=(3, 16, 16))
    attention: Any = model.module.get_submodule("attention")
    with masked(model, {"attention.qkv.groups": 2}):
        assert attention.num_heads == 2
        assert type(attention) is not _Attention
        assert isinstance(attention, _Attention)
    assert type(attention) is _Attention
    assert not hasattr(attention, "fitted_sizes")


def test_blocks_inside_of_a_block_go_instead_where_they_are_most_of_it() -> None:
    rigid = load_model(_Chained(_Around), example=(3, 8, 8)).anatomy.rigid
    assert "blocks inside of it can go instead, blocks.0.chain.0" in rigid["blocks.0"]
    assert "blocks" not in rigid, "a chain is no block"


def test_what_a_data_class_holds_is_the_output() -> None:
    model = load_model(_Told(), example=(6,))
    assert {axis.name for axis in model.space(steps=1).axes} == {"stream.first.width"}
    assert model.anatomy.rigid == {"last.width": "the model's output", "head.width": "the model's output"}


class _Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> str:
        return str(self.inner(x).shape)


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = self.inner(x + y)
        return made


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(6, 3)))
    return made


@pytest.mark.parametrize(
    ("module", "given", "said"),
    [
        (_Silent(), (6,), "returns str, in which there is no tensor"),
        (_Two(), (6,), r"also reads y; give .* example={'x': \(…\), 'y': \(…\)}"),
        (_Two(), {"x": (6,), "z": (6,)}, "unknown input 'z'; known: x, y"),
        (_Told(), torch.zeros(1, 6, dtype=torch.long), "x holds whole numbers"),
        (_scripted(), (6,), r"compiled by torch\.jit"),
        (nn.Linear(6, 3, device="meta"), (6,), "weight has no numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why_in_one_line(module: nn.Module, given: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        _ = load_model(module, example=given).anatomy
    assert "\n" not in str(caught.value)
