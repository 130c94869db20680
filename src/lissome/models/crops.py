"""Learnt maps from a convolution's kernel to its smaller ones.

A smaller kernel is the centre of the next larger one, multiplied by a matrix that all channels of the layer share
(Cai et al. 2020, arXiv 1908.09791, section 3.2): what serves the centre of a large kernel need not serve as a small
kernel. Matrices start as the identity, and are multiplied out when a Subnet is cut out.
"""

# O and I channels, K rows and columns of a kernel

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError

if TYPE_CHECKING:
    from lissome.models.model import Model

NAME = "crops"
"""What the submodule is called in its convolution."""

FILE = "crops.safetensors"
"""File beside the weights of an artifact."""


class Crops(nn.Module):
    """Matrices of one convolution: float32[k·k, k·k] for each odd k from K − 2 down to 3.

    Args:
        size: K.

    Attributes:
        now: While the layer runs with a smaller kernel: its whole weight, and the kept indices by dimension.
    """

    now: tuple[Tensor, Mapping[int, Tensor]] | None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.now = None
        sizes = range(size - 2, 2, -2)
        self.maps = nn.ParameterDict({str(each): nn.Parameter(torch.eye(each * each)) for each in sizes})

    def forward(self, weight: Tensor, size: int) -> Tensor:
        """Return the kernel [O, I, k, k] of a smaller size k that follows from the whole one [O, I, K, K]."""
        while weight.shape[-1] > size:
            inner = weight[..., 1:-1, 1:-1]
            matrix = self.maps[str(inner.shape[-1])]
            weight = (inner.flatten(-2) @ matrix.T.to(inner.dtype)).view(inner.shape)
        return weight

    def kernel(self) -> Tensor | None:
        """Return the kernel that the layer runs with now; None while that is its own."""
        if self.now is None:
            return None
        weight, index = self.now
        for dim in (0, 1):
            if dim in index:
                weight = weight.index_select(dim, index[dim].to(weight.device))
        return self.forward(weight, len(index[2]))


def crops_of(layer: nn.Module) -> Crops | None:
    """Return the maps of a layer; None when it has none."""
    found = getattr(layer, NAME, None)  # a scripted part's table of modules is another thing than a dict
    return found if isinstance(found, Crops) else None


def all_crops(module: nn.Module) -> dict[str, Crops]:
    """Return the maps in a module, by the name of the layer."""
    found = ((name, crops_of(part)) for name, part in module.named_modules())
    return {name: crops for name, crops in found if crops is not None}


def add_crops(model: Model) -> None:
    """Give every kernel that can shrink its maps, in place; the function of the model and of its Subnets stays."""
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            if dim.ordered:
                _put(model, dim.cuts[0].parameter.removesuffix(".weight"), dim.size)


def _put(model: Model, path: str, size: int) -> None:
    layer: Any = model.module.get_submodule(path)
    layer.add_module(NAME, Crops(size).to(layer.weight.device).train(layer.training))


def drop_crops(module: nn.Module) -> None:
    """Take all maps away, in place; kernels are then cropped at the centre."""
    for path in all_crops(module):
        layer = module.get_submodule(path)
        _whole(layer)
        del layer._modules[NAME]


def is_crop_tensor(name: str) -> bool:
    """Whether a tensor of a model's state belongs to the maps of a kernel."""
    return f".{NAME}.maps." in name or name.startswith(f"{NAME}.maps.")


def shrink(stack: ExitStack, layer: Any, whole: Tensor, index: Mapping[int, Tensor]) -> None:
    """Let a convolution run with the kernel that its maps make, until the stack is closed.

    It is made in every forward, from the weights as they are then: while paths are trained, a kernel that was made
    once would be of the past.

    Args:
        stack: Puts the layer back.
        layer: The convolution; nothing changes in one without maps.
        whole: Its whole weight [O, I, K, K].
        index: Kept indices by dimension, ascending.
    """
    crops = crops_of(layer)
    if crops is None or 2 not in index:
        return
    crops.now = (whole, index)
    vars(layer)["_conv_forward"] = types.MethodType(_convolve, layer)
    stack.callback(_whole, layer)


def kernel_of(layer: nn.Module) -> Tensor | None:
    """Return the kernel that a layer runs with now, where its maps make it; None otherwise."""
    crops = crops_of(layer)
    return None if crops is None else crops.kernel()


def _whole(layer: nn.Module) -> None:
    """Let a layer run with its own kernel again."""
    crops = crops_of(layer)
    if crops is not None:
        crops.now = None
    vars(layer).pop("_conv_forward", None)


def _convolve(self: Any, inputs: Tensor, _: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = type(self)._conv_forward(self, inputs, kernel_of(self), bias)
    return result


def save_crops(module: nn.Module, folder: Path) -> None:
    """Write the maps of a module beside its weights; nothing where there are none."""
    from safetensors.torch import save_file

    state = {
        f"{path}.{size}": value.detach().cpu().contiguous()
        for path, crops in all_crops(module).items()
        for size, value in crops.maps.items()
    }
    if state:
        save_file(state, folder / FILE, metadata={"format": "pt"})


def load_crops(model: Model, folder: Path) -> None:
    """Put saved maps on a model, in place.

    Raises:
        ArtifactError: When the file is damaged, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / FILE} is damaged ({error}); restore or remake the artifact.") from error
    add_crops(model)
    wanted = {
        f"{path}.{size}": value for path, crops in all_crops(model.module).items() for size, value in crops.maps.items()
    }
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (state, wanted)]
    if shapes[0] != shapes[1]:
        raise ArtifactError(f"{folder / FILE} is of other kernels than the model's; restore or remake the artifact.")
    if not all(value.isfinite().all() for value in state.values()):
        raise ArtifactError(f"{folder / FILE} holds NaN or infinity; restore or remake the artifact.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(state[name])
