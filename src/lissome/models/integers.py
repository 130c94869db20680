"""Weights that lie on a grid of few integers: files hold the integers, and every bit of the weight is read back.

A layer's grid (`lissome.ops.quant.Grid`) is a plain attribute of the layer, and only of one whose weight lies on it
exactly. In a file such a weight NAME is ``NAME.int4`` (uint8: its integers in row-major order, those of pruned weights
left out, packed at so many bits, the first in the highest bits), ``NAME.scale`` (float32[R, G]), ``NAME.zero`` (uint8:
R·G integers packed likewise), and ``NAME.bitmap`` as in `lissome.models.sparse` where it has a mask.
"""

# R outputs of a layer, C inputs, G groups of neighbouring inputs

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError
from lissome.models.parts import inputs, is_conv1d, is_linear, outputs
from lissome.models.sparse import BITMAP, Mask, mask_of
from lissome.ops.quant import Grid, codes, values

STORAGE = "integers"
"""What ``config.json`` says of how such weights are stored."""

_ATTRIBUTE = "weight_grid"
_INTEGERS = re.compile(r"(.+)\.int([2-8])")
_CHUNK = 1 << 20  # integers that are packed at a time; of whole bytes, whatever their bits


@dataclass(frozen=True, eq=False)
class Read:
    """What a file says of one weight: the weight itself, which numbers of it are kept, and its grid."""

    weight: Tensor
    mask: Mask | None
    grid: Grid


def set_grid(layer: nn.Module, grid: Grid | None) -> bool:
    """Say that the weight of a linear layer lies on a grid; None forgets it.

    Returns:
        Whether the layer has a grid now: one that does not give the weight back, bit for bit, is not noted.
    """
    vars(layer).pop(_ATTRIBUTE, None)
    if grid is not None and _exact(layer, grid):
        vars(layer)[_ATTRIBUTE] = Grid(grid.scale.detach().cpu().float(), grid.zero.detach().cpu(), grid.bits)
    return _ATTRIBUTE in vars(layer)


def grid_of_layer(layer: nn.Module) -> Grid | None:
    """Return the grid of a layer; None when it has none."""
    return vars(layer).get(_ATTRIBUTE)


def grids(module: nn.Module) -> dict[str, Grid]:
    """Grids of a module by the name of the weight."""
    found = ((name, grid_of_layer(part)) for name, part in module.named_modules())
    return {f"{name}.weight": grid for name, grid in found if grid is not None}


def forget_grid(module: nn.Module, name: str) -> None:
    """Forget the grid of a weight that was cut or sorted: its groups are others now."""
    owner, _, kind = name.rpartition(".")
    if kind == "weight":
        set_grid(module.get_submodule(owner), None)


def stored_sizes(size: int, kept: int, groups: int, bits: int, *, masked: bool = True) -> dict[str, int]:
    """Bytes of a weight in a file, by what follows its name there.

    Args:
        size: Numbers of the weight.
        kept: How many of them are kept.
        groups: Scales that it has, R·G.
        bits: Of an integer.
        masked: Whether it has a bitmap.
    """
    sizes = {f".int{bits}": _packed(kept, bits), ".scale": 4 * groups, ".zero": _packed(groups, bits)}
    return sizes | ({BITMAP: -(-size // 8)} if masked else {})


def take(tensors: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split tensors into integers for a file, and all others as they are.

    Args:
        tensors: Tensors of the module's state by name.
        module: Whose layers know their grids.
    """
    packed: dict[str, Tensor] = {}
    rest = dict(tensors)
    for name in grids(module):
        layer = module.get_submodule(name.removesuffix(".weight"))
        grid = grid_of_layer(layer)
        if name in rest and grid is not None and _exact(layer, grid):  # a weight that was trained since is not
            packed |= {name + key: value for key, value in _entries(layer, rest.pop(name), grid)}
    return packed, rest


def give(stored: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Read], dict[str, Tensor]]:
    """Split the tensors of a file into weights that lie there as integers, and all others as they are; undoes `take`.

    Args:
        stored: Tensors as they are in the file.
        module: The module that they are of; its weights may be empty ones.

    Raises:
        ArtifactError: When integers, scales, zeros, bitmap and layer do not fit each other.
    """
    layers = {f"{name}.weight": part for name, part in module.named_modules() if is_linear(part)}
    found: dict[str, Read] = {}
    rest = dict(stored)
    for key in stored:
        match = _INTEGERS.fullmatch(key)
        if match is None:
            continue
        name, bits = match[1], int(match[2])
        parts = {part: rest.pop(name + part, None) for part in (f".int{bits}", ".scale", ".zero", BITMAP)}
        read = _read(layers.get(name), bits, parts) if name not in {*found, *rest} else None
        if read is None:
            raise ArtifactError(
                f"the integers of {name} are damaged: they, their scales, zeros and bitmap do not fit the layer; "
                "restore or remake the artifact."
            )
        found[name] = read
    return found, rest


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers below 2^bits, uint8[n], into uint8[⌈n·bits/8⌉], the first in the highest bits."""
    pieces = [
        np.packbits(np.unpackbits(piece[:, None], axis=1)[:, 8 - bits :]) for piece in _pieces(integers.numpy(), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(pieces) if pieces else np.empty(0, np.uint8))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return `count` integers, uint8[count], of what `pack` made."""
    pieces = []
    for start, piece in zip(range(0, count, _CHUNK), _pieces(packed.numpy(), _CHUNK * bits // 8), strict=True):
        size = min(_CHUNK, count - start)
        digits = np.unpackbits(piece, count=size * bits).reshape(size, bits)
        pieces.append(np.packbits(np.pad(digits, ((0, 0), (8 - bits, 0))), axis=1)[:, 0])
    return torch.from_numpy(np.concatenate(pieces) if pieces else np.empty(0, np.uint8))


def _pieces(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[start : start + size] for start in range(0, len(array), size))


def _packed(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _oriented(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix of a layer's stored shape as [R, C], or the other way round."""
    return matrix.T if is_conv1d(layer) else matrix


def _exact(layer: nn.Module, grid: Grid) -> bool:
    """Whether the integers of a layer's weight give it back, bit for bit."""
    weight = _oriented(layer, layer.get_parameter("weight").detach())
    shape, columns = tuple(grid.scale.shape), weight.shape[1]
    if len(shape) != 2 or shape[0] != weight.shape[0] or not shape[1] or columns % shape[1]:
        return False
    grid = Grid(grid.scale.to(weight.device), grid.zero.to(weight.device), grid.bits)
    again = values(codes(weight, grid), grid).to(weight.dtype)
    return torch.equal(again.view(torch.uint8), weight.contiguous().view(torch.uint8))


def _entries(layer: nn.Module, weight: Tensor, grid: Grid) -> Iterator[tuple[str, Tensor]]:
    whole = codes(_oriented(layer, weight.detach().cpu()), grid)
    mask, stored = mask_of(layer), _oriented(layer, whole).contiguous()
    yield f".int{grid.bits}", pack(stored.flatten() if mask is None else stored[mask.unpacked()], grid.bits)
    yield ".scale", grid.scale.clone()
    yield ".zero", pack(grid.zero.to(torch.uint8).flatten(), grid.bits)
    if mask is not None:
        yield BITMAP, mask.bits.clone()


def _read(layer: nn.Module | None, bits: int, parts: Mapping[str, Tensor | None]) -> Read | None:
    """Rebuild a weight; None when its parts do not fit."""
    packed, scale, zero, bitmap = parts.values()
    if layer is None or packed is None or scale is None or zero is None or scale.dim() != 2:
        return None
    rows, columns = outputs(layer), inputs(layer)
    groups, shape = scale.numel(), (columns, rows) if is_conv1d(layer) else (rows, columns)
    fits = scale.dtype == torch.float32 and len(scale) == rows and groups and columns % scale.shape[1] == 0
    if not fits or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        return None
    mask = None
    if bitmap is not None:
        if not _bytes_of(bitmap, math.prod(shape), 1):
            return None
        mask = Mask.of(Mask(bitmap, shape, 0).unpacked())
    kept = math.prod(shape) if mask is None else mask.kept
    if not _bytes_of(packed, kept, bits) or not _bytes_of(zero, groups, bits):
        return None
    grid = Grid(scale, unpack(zero, bits, groups).view(scale.shape).float(), bits)
    stored = _zeros(layer, grid, shape)
    stored[... if mask is None else mask.unpacked()] = unpack(packed, bits, kept).view(shape if mask is None else kept)
    weight = _oriented(layer, values(_oriented(layer, stored).contiguous(), grid)).contiguous()
    return Read(weight, mask, grid)


def _bytes_of(packed: Tensor, count: int, bits: int) -> bool:
    """Whether bytes hold so many integers and nothing behind them."""
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (_packed(count, bits),):
        return False
    unused = 8 * len(packed) - count * bits
    return not unused or not int(packed[-1]) & ((1 << unused) - 1)


def _zeros(layer: nn.Module, grid: Grid, shape: tuple[int, ...]) -> Tensor:
    """The integers of a weight that is zero everywhere, uint8 of its stored shape."""
    columns = inputs(layer) // grid.scale.shape[1]
    return _oriented(layer, grid.zero.to(torch.uint8).repeat_interleave(columns, dim=1)).contiguous().view(shape)
