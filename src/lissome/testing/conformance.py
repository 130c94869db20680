"""The identities that every family, method and format must satisfy, as checks that a plug-in's tests can call.

Each check raises AssertionError with the figure that broke it. `zeroed` is the independent reference: the full model
with zeros where a Subnet has nothing.
"""

# B sequences, T tokens, V vocabulary

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lissome.models.binding import extract, masked, reorder
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.space import Subnet

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest reference value (float32)."""


def difference(got: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return float((got - reference).abs().max() / reference.abs().max().clamp_min(1e-12))


@torch.no_grad()
def logits(module: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits [B, T, V] of a plain forward without cache."""
    result: Tensor = module(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return result


@torch.no_grad()
def stepwise(module: nn.Module, ids: Tensor, *, prompt: int, mask: Tensor | None = None) -> Tensor:
    """Logits [B, T, V] of the same tokens: `prompt` of them at once, then one by one through the cache."""
    cache, pieces, start = None, [], 0
    for stop in [prompt, *range(prompt + 1, ids.shape[1] + 1)]:
        seen = None if mask is None else mask[:, :stop]
        places = None if seen is None else (seen.cumsum(1) - 1).clamp_min(0)[:, start:stop]
        output = module(
            input_ids=ids[:, start:stop],
            attention_mask=seen,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        cache, start = output.past_key_values, stop
        pieces.append(output.logits)
    return torch.cat(pieces, 1)


@torch.no_grad()
def zeroed(model: Model, subnet: Mapping[str, int]) -> nn.Module:
    """The full module with zeros in every weight that reads what `subnet` removes: slow, plain and independent."""
    module = copy.deepcopy(model.module)
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            kept = subnet.get(branch.axis(dim.name), dim.size) if subnet.get(branch.name, 1) else 0
            for cut in dim.cuts:
                if cut.dim == 1:
                    module.get_parameter(cut.parameter)[:, cut.units[kept:].flatten()] = 0
    return module


def check_subnet(model: Model, subnet: Subnet, ids: Tensor) -> Model:
    """Identity 1: masked, extracted and zeroed models agree; caches and left padding change nothing.

    Args:
        model: The full model; unchanged afterwards.
        subnet: A Subnet of any Space of it.
        ids: LongTensor[B, T] with T of at least 3.

    Returns:
        The extracted model.
    """
    before = logits(model.module, ids)
    names = [name for name, _ in model.module.named_parameters()]
    reference = logits(zeroed(model, subnet), ids)
    with masked(model, subnet):
        inside, inside_steps = logits(model.module, ids), stepwise(model.module, ids, prompt=2)
    small = extract(model, subnet)
    for label, got in (
        ("masked", inside),
        ("extracted", logits(small.module, ids)),
        ("masked, step by step", inside_steps),
        ("extracted, step by step", stepwise(small.module, ids, prompt=1)),
    ):
        error = difference(got, reference)
        assert error <= TOLERANCE, f"{label} differs from the reference by {error:.2e}"
    assert torch.equal(logits(model.module, ids), before), "the full model was changed"
    assert names == [name for name, _ in model.module.named_parameters()], "the parameters were moved"
    return small


def check_padding(small: Model, ids: Tensor, *, pad: int = 2) -> None:
    """Left padding: the logits of a sequence do not depend on the padding before it, with and without cache."""
    alone = logits(small.module, ids)
    padded = torch.cat([torch.zeros(len(ids), pad, dtype=ids.dtype), ids], 1)
    mask = torch.cat([torch.zeros(len(ids), pad, dtype=torch.long), torch.ones_like(ids)], 1)
    got = stepwise(small.module, padded, prompt=pad + 1, mask=mask)[:, pad:]
    error = difference(got, alone)
    assert error <= TOLERANCE, f"left padding changes the logits by {error:.2e}"


def check_cache(small: Model, ids: Tensor) -> None:
    """Removed attentions hold no cache, and the others hold as many KV heads as they have."""
    with torch.no_grad():
        cache = small.module(input_ids=ids, use_cache=True).past_key_values
    held = [layer.keys for layer in cache.layers]
    kept = {branch.block for branch in small.anatomy.branches if branch.kind == "attention"}
    assert {index for index, keys in enumerate(held) if keys is not None} == kept, "a removed attention holds a cache"
    for branch in small.anatomy.branches:
        if branch.kind == "attention":
            assert held[branch.block].shape[1] == branch.by_name["groups"].size, f"{branch.name} caches other heads"


def check_reorder(model: Model, orders: Mapping[str, Tensor], ids: Tensor) -> None:
    """Identity 2: reordering leaves the function of the full model unchanged (and does reorder something)."""
    before = logits(model.module, ids)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])
    reorder(model, orders)
    error = difference(logits(model.module, ids), before)
    assert error <= TOLERANCE, f"reordering changes the logits by {error:.2e}"
    after = torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])
    moved = any(not torch.equal(order, torch.arange(order.shape[-1]).expand_as(order)) for order in orders.values())
    assert torch.equal(weights, after) != moved, "the weights were moved although the order is the same, or were not"


def check_full(model: Model, ids: Tensor) -> None:
    """Identity 3: extracting everything gives the same model."""
    copy_of = extract(model, model.space().full)
    assert torch.equal(logits(copy_of.module, ids), logits(model.module, ids))
    assert copy_of.module.state_dict().keys() == model.module.state_dict().keys()


def check_saved(small: Model, folder: Path, ids: Tensor) -> None:
    """Identity 4, in this process: a saved model reads back to equal outputs and equal tensors."""
    small.save(folder)
    again = load_model(folder)
    assert torch.equal(logits(again.module, ids), logits(small.module, ids)), "outputs differ after save and load"
    stored, read = small.module.state_dict(), again.module.state_dict()
    assert stored.keys() == read.keys()
    assert all(torch.equal(stored[name], read[name]) for name in stored)
