"""Weights with zeros in them: which ones are kept is known explicitly, and files hold only those.

A layer's mask is a plain attribute of the layer, packed to one bit per weight; a weight that happens to be zero is not
a pruned one. In a file a sparse tensor NAME of n numbers is ``NAME.bitmap`` (uint8[⌈n/8⌉], one bit per weight in
row-major order, the first weight in the highest bit) and ``NAME.values`` (the kept numbers in that order). The zeros
are read back as zeros, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError

STORAGE = "bitmap"
"""What ``config.json`` says of how such weights are stored."""

BITMAP, _VALUES = ".bitmap", ".values"
_ATTRIBUTE = "weight_mask"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Mask:
    """Which numbers of a tensor are kept.

    Attributes:
        bits: uint8[⌈n/8⌉], packed.
        shape: Shape of the tensor.
        kept: How many are kept.
    """

    bits: Tensor
    shape: tuple[int, ...]
    kept: int

    @classmethod
    def of(cls, kept: Tensor) -> Mask:
        """Pack a Bool tensor, True where a number is kept."""
        flat = kept.detach().cpu().flatten()
        return cls(torch.from_numpy(np.packbits(flat.numpy())), tuple(kept.shape), int(flat.sum()))

    def unpacked(self) -> Tensor:
        """Return it as Bool of the tensor's shape."""
        flat = np.unpackbits(self.bits.numpy(), count=self.numel)
        return torch.from_numpy(flat).bool().view(self.shape)

    @property
    def numel(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    def bytes(self, item: int) -> int:
        """Bytes of the compressed tensor at `item` bytes per number."""
        return self.kept * item + -(-self.numel // 8)

    def pays(self, item: int) -> bool:
        """Whether the compressed form is smaller than the dense one."""
        return self.bytes(item) < self.numel * item


def set_mask(layer: nn.Module, kept: Tensor | Mask | None) -> None:
    """Say which weights of a layer are kept; None forgets it.

    Raises:
        ConfigError: When the mask is not of the weight's shape.
    """
    if kept is None:
        vars(layer).pop(_ATTRIBUTE, None)
        return
    weight: Any = layer.weight
    if tuple(kept.shape) != tuple(weight.shape):
        raise ConfigError(
            f"the mask has shape {list(kept.shape)}, but the weight has {list(weight.shape)}; "
            "give one Bool per weight, rows first."
        )
    vars(layer)[_ATTRIBUTE] = kept if isinstance(kept, Mask) else Mask.of(kept)


def mask_of(layer: nn.Module) -> Mask | None:
    """Return the mask of a layer; None when all its weights are kept."""
    return vars(layer).get(_ATTRIBUTE)


def masks(module: nn.Module) -> dict[str, Mask]:
    """Masks of a module by the name of the weight."""
    found = ((name, mask_of(part)) for name, part in module.named_modules())
    return {f"{name}.weight": mask for name, mask in found if mask is not None}


def edit_mask(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Do to the mask of a weight what was done to the weight; nothing when it has none.

    Args:
        module: The module; the weight has its new shape.
        name: Dotted name of the parameter.
        change: Takes and returns a Bool tensor.
    """
    owner, _, kind = name.rpartition(".")
    layer = module.get_submodule(owner)
    mask = mask_of(layer) if kind == "weight" else None
    if mask is not None:
        set_mask(layer, change(mask.unpacked()))


def sparsity(module: nn.Module) -> dict[str, float]:
    """Share of zeros, by what it is a share of: the masked layers, and all parameters (tied ones once)."""
    found = masks(module)
    if not found:
        return {}
    zeros, among = (sum(value) for value in zip(*((m.numel - m.kept, m.numel) for m in found.values()), strict=True))
    whole = sum(parameter.numel() for parameter in module.parameters())
    return {"sparse layers": zeros / among, "all parameters": zeros / whole}


def compress(tensors: Mapping[str, Tensor], found: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Return tensors for a file: masked ones as bitmap and values, where that is smaller and their zeros are zeros."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        mask = found.get(name)
        values = None if mask is None or not mask.pays(tensor.element_size()) else _kept(tensor, mask)
        if mask is None or values is None:
            stored[name] = tensor
        else:
            stored[name + BITMAP] = mask.bits.clone()
            stored[name + _VALUES] = values
    return stored


def _kept(tensor: Tensor, mask: Mask) -> Tensor | None:
    """The kept numbers in order; None where anything but +0 stands beside them: then the mask is not of this tensor."""
    if tuple(tensor.shape) != mask.shape:
        return None
    bits = tensor.detach().cpu().contiguous().view(_BITS[tensor.element_size()]).numpy()  # −0 has other bits than +0
    kept = mask.unpacked().numpy()
    if bits[~kept].any():
        return None
    return torch.from_numpy(bits[kept]).view(tensor.dtype)


def expand(stored: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], dict[str, Mask]]:
    """Undo `compress`.

    Args:
        stored: Tensors as they are in the file.
        shapes: Shapes of the module's tensors by name.

    Returns:
        Dense tensors and the masks, by name.

    Raises:
        ArtifactError: When bitmap, values and shape do not fit each other.
    """
    tensors, found = {}, {}
    for name, tensor in stored.items():
        base, is_bitmap = name.removesuffix(BITMAP), name.endswith(BITMAP)
        if is_bitmap:
            tensors[base], found[base] = _expanded(base, tensor, stored.get(base + _VALUES), shapes)
        elif not (name.endswith(_VALUES) and name.removesuffix(_VALUES) + BITMAP in stored):
            tensors[name] = tensor
    return tensors, found


def _expanded(
    name: str, bitmap: Tensor, values: Tensor | None, shapes: Mapping[str, torch.Size]
) -> tuple[Tensor, Mask]:
    shape = tuple(shapes.get(name, ()))
    count = math.prod(shape)
    fits = values is not None and bitmap.dtype == torch.uint8 and shape and tuple(bitmap.shape) == (-(-count // 8),)
    mask = Mask.of(Mask(bitmap, shape, 0).unpacked()) if fits else None
    if mask is None or values is None or tuple(values.shape) != (mask.kept,) or not torch.equal(mask.bits, bitmap):
        raise ArtifactError(
            f"the sparse tensor {name} is damaged: its bitmap, its values and the shape {list(shape)} do not fit; "
            "restore or remake the artifact."
        )
    dense = torch.zeros(shape, dtype=values.dtype)
    dense[mask.unpacked()] = values
    return dense, mask
