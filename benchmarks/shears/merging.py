"""What merging adapters into sparse weights does to zeros and to logits."""

# B texts, K classes, I inputs, O outputs of a layer

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissome.models.adapters import Masked, adapters, merge_lora, oriented
from lissome.models.integers import grids
from lissome.models.model import Model


def merging(model: Model, logits: Callable[[], Tensor]) -> dict[str, Any]:
    """Merge a model's adapters, in place, and say what changed.

    Args:
        model: The model, its adapters cut to the ranks that are wanted.
        logits: What it gives, float32[B, K], with adapters and without.

    Returns:
        ``numel``, ``zeros_before`` and ``zeros_after`` of the adapted layers, ``revived`` zeros that are none any more,
        the largest ``difference`` of logits; ``layers`` adapted, ``on_grid`` of them whose weight is read back from
        integers bit for bit. Of masked adapters also ``apart``: the largest difference, over the largest logit, from
        what W x and L x give as two products, as the published layers compute it.
    """
    on = adapters(model.module)
    layers = {name: model.module.get_submodule(name) for name in on}
    before = [oriented(layer) == 0 for layer in layers.values()]
    expected, apart = logits(), None
    if all(type(adapter) is Masked for adapter in on.values()):
        with _two_products(list(on.values())):
            apart = logits()
    merge_lora(model)
    merged = logits()
    after = [oriented(layer) == 0 for layer in layers.values()]
    known = grids(model.module)
    return {
        "numel": sum(one.numel() for one in before),
        "zeros_before": sum(int(one.sum()) for one in before),
        "zeros_after": sum(int(one.sum()) for one in after),
        "revived": sum(int((was & ~now).sum()) for was, now in zip(before, after, strict=True)),
        "difference": float((merged - expected).abs().max()),
        "layers": len(layers),
        "on_grid": sum(f"{name}.weight" in known for name in layers),
        **({} if apart is None else {"apart": float((merged - apart).abs().max() / merged.abs().max())}),
    }


@contextmanager
def _two_products(on: Sequence[nn.Module]) -> Iterator[None]:
    """Compute W x + L x; here it is one product, so that merged and not merged are the same by design."""
    for adapter in on:
        vars(adapter)["forward"] = _beside.__get__(adapter)
    try:
        yield
    finally:
        for adapter in on:
            del vars(adapter)["forward"]


def _beside(self: Masked, layer: nn.Linear, x: Tensor) -> Tensor:
    """[..., I] → [..., O]."""
    return F.linear(x, layer.weight, layer.bias) + F.linear(x, self.delta())


@torch.no_grad()
def logits_of(classifier: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits float32[B, K] of texts [B, T]."""
    found: Tensor = classifier.eval()(ids, mask)
    return found.float()
