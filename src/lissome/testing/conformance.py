"""The identities that every family, method and format must satisfy, as checks that a plug-in's tests can call.

Each check raises AssertionError with the figure that broke it. `zeroed` is the independent reference: the full model
with zeros where a Subnet has nothing.
"""

# B sequences, T tokens, V vocabulary

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lissome.cost.counted import Counter
from lissome.models.binding import extract, masked, reorder
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.nested.describe import describe
from lissome.models.nested.file import NestedFile
from lissome.models.parts import CACHES
from lissome.models.space import Subnet
from lissome.testing.mixers import mute

Inputs = Mapping[str, Tensor]
"""What a model reads, by argument name; see `lissome.testing.toys.toy_inputs`."""

Reference = Callable[[Model, Mapping[str, int]], nn.Module]
"""Makes a module that a Subnet's model must agree with."""

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest reference value (float32)."""


def difference(got: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return float((got - reference).abs().max() / reference.abs().max().clamp_min(1e-12))


@torch.no_grad()
def outputs(module: nn.Module, inputs: Inputs, **options: Any) -> Tensor:
    """What a forward gives: logits [B, T, V] or [B, labels], masks of a segmenter, or else the last hidden states."""
    result = module(**inputs, **options)
    if isinstance(result, Tensor):
        return result
    found: Tensor = next(result[name] for name in ("logits", "pred_masks", "last_hidden_state") if name in result)
    return found


def independent_macs(module: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one forward by torch's own counter, attentions by their plain formula.

    With gradients: without, the counter stumbles over embeddings that are expanded (a segmenter's for no mask).
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
            module(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(flops.get_total_flops()) // 2


def logits(module: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits [B, T, V] of a causal language model, without cache."""
    return outputs(module, {"input_ids": ids}, attention_mask=mask, use_cache=False)


@torch.no_grad()
def stepwise(module: nn.Module, inputs: Inputs, *, prompt: int, mask: Tensor | None = None) -> Tensor:
    """Logits [B, T, V] of the same tokens: `prompt` of them at once, then one by one through the cache.

    Args:
        module: A model that generates; its cache is found by the name under which it returns it.
        inputs: What it reads, the tokens among it.
        prompt: Number of tokens at once.
        mask: LongTensor[B, T], 0 for padding on the left.
    """
    given = dict(inputs)
    name = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    tokens, pieces, start = given.pop(name), [], 0
    cache: dict[str, Any] = {}
    positioned = "position_ids" in inspect.signature(module.forward).parameters
    for stop in [prompt, *range(prompt + 1, tokens.shape[1] + 1)]:
        if mask is not None:
            given["attention_mask"] = mask[:, :stop]
        if positioned:  # Bamba does not count what the cache holds
            seen = torch.ones_like(tokens) if mask is None else mask
            given["position_ids"] = (seen[:, :stop].cumsum(1) - 1).clamp_min(0)[:, start:stop]
        output = module(**given, **{name: tokens[:, start:stop]}, **cache, use_cache=True)
        cache = {key: output[key] for key in CACHES if key in output}
        pieces.append(output.logits)
        start = stop
    return torch.cat(pieces, 1)


@torch.no_grad()
def zeroed(model: Model, subnet: Mapping[str, int]) -> nn.Module:
    """The full module with zeros in all of a removed branch and in every weight that reads a removed unit.

    Slow, plain and independent. Of a mixer, what goes changes the function of what stays: see
    `lissome.testing.mixers.mute`. Other parts that are not just added need another reference.
    """
    module = copy.deepcopy(model.module)
    for branch in model.anatomy.branches:
        if not subnet.get(branch.name, 1):
            for name in branch.parameters:
                module.get_parameter(name).zero_()
            continue
        sizes = {dim.name: subnet.get(branch.axis(dim.name), dim.size) for dim in branch.dims}
        if branch.kind == "mixer" and any(sizes[dim.name] < dim.size for dim in branch.dims):
            mute(module.get_submodule(branch.path), sizes)
        for dim in branch.dims:
            for cut in dim.cuts:
                if cut.reads:
                    module.get_parameter(cut.parameter).index_fill_(cut.dim, cut.dropped(sizes[dim.name]), 0)
    return module


def generates(model: Model) -> bool:
    """Whether a model writes token after token, with a cache."""
    return model.anatomy.task in {"causal-lm", "seq2seq"}


def check_subnet(model: Model, subnet: Subnet, inputs: Inputs, *, reference: Reference = zeroed) -> Model:
    """Identity 1: masked, extracted and zeroed models agree, step by step through the cache too.

    Args:
        model: The full model; unchanged afterwards.
        subnet: A Subnet of any Space of it.
        inputs: What it reads; at least 3 tokens where it generates.
        reference: Makes the module that must be agreed with.

    Returns:
        The extracted model.
    """
    before = outputs(model.module, inputs)
    names = [name for name, _ in model.module.named_parameters()]
    wanted, got = outputs(reference(model, subnet), inputs), {}
    with masked(model, subnet):
        got["masked"] = outputs(model.module, inputs)
        if generates(model):
            got["masked, step by step"] = stepwise(model.module, inputs, prompt=2)
    small = extract(model, subnet)
    got["extracted"] = outputs(small.module, inputs)
    if generates(model):
        got["extracted, step by step"] = stepwise(small.module, inputs, prompt=1)
    for label, result in got.items():
        error = difference(result, wanted)
        assert error <= TOLERANCE, f"{label} differs from the reference by {error:.2e}"
    assert torch.equal(outputs(model.module, inputs), before), "the full model was changed"
    assert names == [name for name, _ in model.module.named_parameters()], "the parameters were moved"
    return small


def check_counted(model: Model, subnet: Subnet, small: Model) -> None:
    """Counts of a Subnet are those of what was cut out: parameters, and multiply-accumulates by another counter.

    Args:
        model: The full model, which reads inputs of one size (images, rows of numbers).
        subnet: A Subnet of any Space of it.
        small: What `check_subnet` returned for it.
    """
    counts, inputs = Counter(model).count(subnet), example(model)
    assert counts.macs == independent_macs(small.module, inputs)
    assert counts.params == sum(parameter.numel() for parameter in small.module.parameters())


def check_padding(small: Model, ids: Tensor, *, pad: int = 2) -> None:
    """Left padding of a causal language model: logits do not depend on it, with and without cache."""
    alone = logits(small.module, ids)
    padded = torch.cat([torch.zeros(len(ids), pad, dtype=ids.dtype), ids], 1)
    mask = torch.cat([torch.zeros(len(ids), pad, dtype=torch.long), torch.ones_like(ids)], 1)
    got = stepwise(small.module, {"input_ids": padded}, prompt=pad + 1, mask=mask)[:, pad:]
    error = difference(got, alone)
    assert error <= TOLERANCE, f"left padding changes the logits by {error:.2e}"


def check_cache(small: Model, ids: Tensor) -> None:
    """Removed attentions and mixers hold no cache; the others hold as many KV heads, channels and states as they have.

    Args:
        small: A causal language model.
        ids: LongTensor[B, T].
    """
    with torch.no_grad():
        output = small.module(input_ids=ids, use_cache=True)
    cache = next(output[key] for key in CACHES if key in output)
    held = [[value for value in _cached(layer) if value is not None] for layer in cache.layers]
    kept = {branch.block for branch in small.anatomy.branches if branch.mixing is not None}
    assert {index for index, values in enumerate(held) if values} == kept, "a removed branch holds a cache"
    for branch in small.anatomy.branches:
        sizes = {dim.name: dim.size for dim in branch.dims}
        if branch.kind == "attention":
            assert held[branch.block][0].shape[1] == sizes["groups"], f"{branch.name} caches other heads"
        elif branch.mixing is not None:
            numbers = sum(value.numel() for value in held[branch.block])
            assert numbers == len(ids) * branch.mixing.held(sizes, ids.shape[1]), f"{branch.name} holds {numbers}"


def _cached(layer: Any) -> list[Tensor | None]:
    """Tensors of a cache's layer: keys and values, or states of convolution and scan."""
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [getattr(layer, "keys", None), getattr(layer, "values", None), *states]


def check_reorder(model: Model, orders: Mapping[str, Tensor], inputs: Inputs) -> None:
    """Identity 2: reordering leaves the function of the full model unchanged (and does reorder something)."""
    before = outputs(model.module, inputs)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])
    reorder(model, orders)
    error = difference(outputs(model.module, inputs), before)
    assert error <= TOLERANCE, f"reordering changes the outputs by {error:.2e}"
    after = torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])
    moved = any(not torch.equal(order, torch.arange(order.shape[-1]).expand_as(order)) for order in orders.values())
    assert torch.equal(weights, after) != moved, "the weights were moved although the order is the same, or were not"


def check_full(model: Model, inputs: Inputs) -> None:
    """Identity 3: extracting everything gives the same model."""
    copy_of = extract(model, model.space().full)
    assert torch.equal(outputs(copy_of.module, inputs), outputs(model.module, inputs))
    assert copy_of.module.state_dict().keys() == model.module.state_dict().keys()


def check_saved(small: Model, folder: Path, inputs: Inputs) -> None:
    """Identity 4, in this process: a saved model reads back to equal outputs and equal tensors."""
    small.save(folder)
    again = load_model(folder)
    assert torch.equal(outputs(again.module, inputs), outputs(small.module, inputs)), (
        "outputs differ after save and load"
    )
    stored, read = small.module.state_dict(), again.module.state_dict()
    assert stored.keys() == read.keys()
    assert all(torch.equal(stored[name], read[name]) for name in stored)


@torch.no_grad()
def dequantised(model: Model, file: NestedFile, precision: int) -> Model:
    """Give a model, in place, the numbers that nested weights stand for at a precision."""
    for name, parts in describe(model).matrices.items():
        rows = torch.from_numpy(file.weight(name, precision).copy())
        for part in parts:
            weight = model.module.get_parameter(part)
            weight.copy_(rows[: len(weight)])
            rows = rows[len(weight) :]
        assert not len(rows), f"{name} has rows that no parameter takes"
    return model
