"""Adapters of one linear layer: low-rank pairs, masked and quantised ones that merge into a sparse layer, and cores.

An adapter is a submodule ``adapter`` of the layer that it sits on; the layer keeps its class, its parameters and their
names, so that everything that reads, masks, cuts, counts or saves a model works with and without adapters. Its tensors
are parameters whose slices the model's anatomy knows (`lissome.models.adapters.elastic`): masking a rank puts views
``A[:r]`` and ``B[:, :r]`` in their place, and the scale stays what it was.

LoRA: Hu et al. 2021, arXiv 2106.09685. SparsePEFT: Munoz et al. 2024, arXiv 2410.03750. LoRA-XS: Balazy et al. 2024,
arXiv 2405.17604.
"""

# I inputs and O outputs of the layer, R rank

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissome.core.errors import ConfigError
from lissome.models.integers import set_grid
from lissome.models.parts import inputs, is_conv1d, outputs
from lissome.models.sparse import mask_of
from lissome.ops.quant import Grid, grid_of, rounded

NAME = "adapter"
"""What the submodule is called in its layer."""


class LowRank(nn.Module):
    """``y = W x + scale · B A x`` with A [R, I] and B [O, R] trained.

    Attributes:
        scale: alpha over the *largest* rank. It does not change with the active rank: a smaller one is the leading part
            of the same product, and dividing by the active rank would be another algorithm.
        group: Adapters of one group in a branch always have the same rank.
        ranks: Ranks that an elastic one can take, descending.
    """

    form = "plain"
    exact = False  # whether the forward needs the layer's weight as it is, not a copy in half precision
    keeps_zeros = False  # whether merging leaves the zeros of a sparse weight

    def __init__(self, layer: nn.Module, ranks: tuple[int, ...], *, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        device = _weight(layer).device
        self.A = nn.Parameter(torch.zeros(ranks[0], inputs(layer), device=device))
        self.B = nn.Parameter(torch.zeros(outputs(layer), ranks[0], device=device))
        self.scale, self.dropout = alpha / ranks[0], dropout
        self.ranks, self.group = ranks, ""

    @property
    def rank(self) -> int:
        """The rank now."""
        return int(self.A.shape[0])

    @torch.no_grad()
    def start(self, layer: nn.Module, generator: torch.Generator) -> None:
        """Draw A (Kaiming uniform, as peft does); B is zero, so that nothing changes yet."""
        bound = 1 / math.sqrt(max(1, self.A.shape[1]))
        drawn = torch.rand(self.A.shape, generator=generator)
        self.A.copy_((2 * drawn - 1) * bound)

    def trained(self) -> tuple[nn.Parameter, ...]:
        """Parameters that training changes."""
        return self.A, self.B

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer gives with its adapter: [..., I] → [..., O]."""
        x = _cast(x)
        plain: Tensor = type(layer).forward(layer, x)
        return plain + self.product(self._input(x)).to(plain.dtype)

    def product(self, x: Tensor) -> Tensor:
        """``scale · B A x``; scaled between the two, where it is smallest."""
        return F.linear(F.linear(x, self.A) * self.scale, self.B)

    def delta(self) -> Tensor:
        """What merging adds to the weight, float32[O, I]."""
        return (self.B.float() * self.scale) @ self.A.float()

    def merged(self, weight: Tensor) -> Tensor:
        """The weight [O, I] with the adapter in it, float32."""
        return weight.float() + self.delta()

    def pair(self) -> tuple[Tensor, Tensor]:
        """A and B of the plain low-rank pair that computes the same."""
        return self.A, self.B

    def _input(self, x: Tensor) -> Tensor:
        """The input in the adapter's number type (float32: small steps are lost in half), with dropout in training."""
        kept = x if torch.is_autocast_enabled(x.device.type) else x.to(self.B.dtype)
        return F.dropout(kept, self.dropout, self.training)


class Masked(LowRank):
    """``y = (W + scale · (B A) ⊙ M) x``: where the layer's mask M has a zero, W and what is merged into it have one.

    Raises:
        ConfigError: When the layer is not sparse.
    """

    form = "masked"
    keeps_zeros = True

    def __init__(self, layer: nn.Module, ranks: tuple[int, ...], *, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(layer, ranks, alpha=alpha, dropout=dropout)
        mask = mask_of(layer)
        if mask is None:
            raise ConfigError("a masked adapter needs a sparse layer; make the model sparse first, or use plain ones.")
        kept = mask.unpacked()
        kept = kept.T.contiguous() if is_conv1d(layer) else kept
        self.mask: Tensor
        self.register_buffer("mask", kept.to(self.B.device), persistent=False)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer gives with its adapter: [..., I] → [..., O].

        One product when that is exact; two where the input is dropped for the adapter alone, or where a sum in half
        precision would lose the adapter's small numbers.
        """
        if torch.is_autocast_enabled(x.device.type) or (self.training and self.dropout):
            plain: Tensor = type(layer).forward(layer, x)
            return plain + F.linear(self._input(x), self.delta()).to(plain.dtype)
        weight = self.merged(oriented(layer)).to(x.dtype)
        return F.linear(x, weight, getattr(layer, "bias", None))

    def delta(self) -> Tensor:
        """What merging adds to the weight, float32[O, I]: exactly 0 where the mask is."""
        with torch.autocast(self.B.device.type, enabled=False):
            return super().delta() * self.mask.view(torch.uint8)  # faster than a product with bools


class Quantised(Masked):
    """`Masked`, then rounded to the integers of a grid that the sparse base gave; see `lissome.ops.quant`.

    Gradients pass the rounding unchanged. Merging stores what the integers are read as, zeros included.

    Args:
        layer: The layer.
        ranks: As in `LowRank`.
        alpha: As in `LowRank`.
        dropout: Must be 0: what is rounded is one sum, of which no part has an input of its own.
        bits: Of the integers, 2 to 8.
        columns: Inputs that share a scale and a zero point.

    Raises:
        ConfigError: When the layer is not sparse, or dropout is asked for.
    """

    form = "quantised"
    exact = True

    def __init__(
        self,
        layer: nn.Module,
        ranks: tuple[int, ...],
        *,
        alpha: float,
        dropout: float = 0.0,
        bits: int = 4,
        columns: int = 32,
    ) -> None:
        super().__init__(layer, ranks, alpha=alpha)
        if dropout:
            raise ConfigError("a quantised adapter has no dropout: what is rounded is the sum of it and the weight.")
        grid = grid_of(oriented(layer), bits, columns)
        self.bits = bits
        self.grid_scale: Tensor
        self.grid_zero: Tensor
        self.register_buffer("grid_scale", grid.scale, persistent=False)
        self.register_buffer("grid_zero", grid.zero, persistent=False)

    @property
    def grid(self) -> Grid:
        """Where the integers lie."""
        return Grid(self.grid_scale, self.grid_zero, self.bits)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer gives with the rounded weight: [..., I] → [..., O]."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.merged(oriented(layer))
        kept = weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)
        return F.linear(x, kept, getattr(layer, "bias", None))

    def merged(self, weight: Tensor) -> Tensor:
        """The rounded weight [O, I] with the adapter in it, float32."""
        return rounded(super().merged(weight), self.grid)


class Core(LowRank):
    """LoRA-XS: ``y = W x + scale · B R A x`` with B = U·S and A = Vᵀ of W's own SVD frozen, and R [R, R] trained."""

    form = "core"

    def __init__(self, layer: nn.Module, ranks: tuple[int, ...], *, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(layer, ranks, alpha=alpha, dropout=dropout)
        if ranks[0] > min(inputs(layer), outputs(layer)):
            raise ConfigError(f"rank {ranks[0]} is larger than the layer [{outputs(layer)}, {inputs(layer)}].")
        self.core = nn.Parameter(torch.zeros(ranks[0], ranks[0], device=self.A.device))

    @torch.no_grad()
    def start(self, layer: nn.Module, generator: torch.Generator) -> None:
        """Factor the layer's weight; the core is zero, so that nothing changes yet."""
        left, values, right = torch.linalg.svd(oriented(layer).detach().double(), full_matrices=False)
        signs = torch.sign(right.gather(1, right.abs().argmax(1, keepdim=True)))  # an SVD is free to flip them
        self.A.copy_((right * signs)[: self.A.shape[0]])
        self.B.copy_((left * values * signs.T)[:, : self.B.shape[1]])

    def trained(self) -> tuple[nn.Parameter, ...]:
        """The core alone."""
        return (self.core,)

    def product(self, x: Tensor) -> Tensor:
        """``scale · B R A x``."""
        return F.linear(F.linear(F.linear(x, self.A), self.core) * self.scale, self.B)

    def delta(self) -> Tensor:
        """What merging adds to the weight, float32[O, I]."""
        return (self.B.float() @ self.core.float() * self.scale) @ self.A.float()

    def pair(self) -> tuple[Tensor, Tensor]:
        """A, and B with the core in it."""
        return self.A, self.B @ self.core


def oriented(layer: nn.Module) -> Tensor:
    """The weight of a layer as [O, I]; GPT-2's Conv1D holds its transpose."""
    weight = _weight(layer)
    return weight.T if is_conv1d(layer) else weight


@torch.no_grad()
def quantise(layer: nn.Module, bits: int, columns: int) -> None:
    """Round the weight of a layer without an adapter as `Quantised` rounds its sum; zeros stay."""
    weight = oriented(layer)
    grid = grid_of(weight, bits, columns)
    result = rounded(weight, grid)
    _weight(layer).copy_(result.T if is_conv1d(layer) else result)
    set_grid(layer, grid)


def attach(layer: nn.Module, adapter: LowRank) -> None:
    """Put an adapter on a layer."""
    setattr(layer, NAME, adapter.train(layer.training))
    vars(layer)["forward"] = types.MethodType(_forward, layer)


def detach(layer: nn.Module) -> None:
    """Take the adapter off a layer."""
    delattr(layer, NAME)
    del vars(layer)["forward"]


def adapters(module: nn.Module) -> dict[str, LowRank]:
    """Adapters in a module, by the name of the layer."""
    found = ((name, part._modules.get(NAME)) for name, part in module.named_modules())
    return {name: part for name, part in found if isinstance(part, LowRank)}


def is_adapter_tensor(name: str) -> bool:
    """Whether a tensor of a model's state belongs to an adapter."""
    return f".{NAME}." in name


def _forward(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.adapter(self, x)
    return result


def _cast(x: Tensor) -> Tensor:
    """What autocast makes of an input, once: the layer and its adapter would each convert it."""
    device = x.device.type
    wide = x.dtype == torch.float32 and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if wide else x


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    return weight  # type: ignore[no-any-return]
