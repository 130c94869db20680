"""The sizes that layers state in attributes beside the shapes of their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

CROPPED = "cropped"
"""Attribute of a convolution whose kernel was larger before it was cut out: its size stays a decision that was made."""


def stated_sizes(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes in which a layer repeats the shape of its weight, for a weight of another shape.

    Linear layers, GPT-2's Conv1D (inputs first), convolutions (groups go as a whole, and a smaller kernel has less
    padding), embeddings and norms; a layer of another class states none, and what a family's own modules state is its
    `resize`'s business.
    """
    if isinstance(layer, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if type(layer).__name__ == "Conv1D":  # of transformers, which is not imported here
        return {"nx": shape[0], "nf": shape[1]}
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        groups = shape[0] * layer.groups // layer.out_channels if layer.groups > 1 else 1
        fields = {"out_channels": shape[0], "in_channels": shape[1] * groups, "groups": groups}
        return fields | (_stated_kernel(layer, shape[2:]) if shape[2:] != tuple(layer.kernel_size) else {})
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        groups = shape[0] * layer.groups // layer.in_channels if layer.groups > 1 else 1
        return {"in_channels": shape[0], "out_channels": shape[1] * groups, "groups": groups}
    if isinstance(layer, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    return _stated_channels(layer, shape)


def _stated_channels(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """What layers state that have a number per channel."""
    if isinstance(layer, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": shape[0] * layer.num_groups // layer.num_channels}
    if hasattr(layer, "num_features") and hasattr(layer, "running_mean"):  # batch and instance norms
        return {"num_features": shape[0]}
    if isinstance(layer, nn.PReLU):
        return {"num_parameters": shape[0]}
    return {"normalized_shape": shape} if hasattr(layer, "normalized_shape") else {}


def _stated_kernel(layer: Any, kernel: tuple[int, ...]) -> dict[str, Any]:
    pairs = zip(layer.padding, layer.kernel_size, kernel, strict=True)
    padding = tuple(max(pad - (before - after) // 2, 0) for pad, before, after in pairs)
    doubled = [pad for pad in reversed(padding) for _ in range(2)]
    return {"kernel_size": kernel, "padding": padding, "_reversed_padding_repeated_twice": doubled, CROPPED: True}
