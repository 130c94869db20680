"""SparseLinear stands where a linear layer stood: calls, copies, casts, gradients, saved states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lissome.ops.kernels.linear import SparseLinear


def pruned(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(70, 50, bias=bias)
    layer.weight.data[torch.rand(50, 70) < 0.5] = 0
    return layer


def closeness(given: Tensor, expected: Tensor) -> float:
    given, expected = given.detach().float(), expected.detach().float()
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_it_computes_what_the_layer_did(form: Any, bias: bool) -> None:
    layer, x = pruned(bias), torch.randn(4, 3, 70)
    packed = SparseLinear.of(layer.eval(), form)
    assert not packed.training
    assert closeness(packed(x), layer(x)) < (0.004 if form == "bf16" else 0.02)
    assert closeness(packed.weight, layer.weight) < 0.02
    assert not list(packed.parameters())
    assert "zeros left out" in repr(packed)
    assert "dense" in repr(SparseLinear.of(layer, form, sparse=False))


def test_conv1d_is_transposed() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(50, 70), torch.randn(2, 70)
    assert closeness(SparseLinear.of(layer)(x), layer(x)) < 0.004


def test_casts_leave_the_weights_alone() -> None:
    packed, x = SparseLinear.of(pruned(), "int8"), torch.randn(2, 70)
    before = packed(x)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        packed.to(dtype)
        assert torch.equal(packed(x), before)
        assert packed(x.to(dtype)).dtype == dtype
    assert packed.weight.dtype == torch.float32


def test_copies_and_saved_states() -> None:
    packed, other, x = SparseLinear.of(pruned()), SparseLinear.of(pruned(seed=1)), torch.randn(2, 70)
    twin = copy.deepcopy(packed)
    assert torch.equal(twin(x), packed(x))
    state = packed.state_dict()
    assert set(state) == {"values", "bitmap", "starts", "bias"}
    dense, again = (SparseLinear.of(pruned(seed=seed), sparse=False) for seed in (0, 1))
    assert not torch.equal(dense(x), again(x))
    again.load_state_dict(dense.state_dict())
    assert torch.equal(dense(x), again(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(state)


def test_a_gradient_reaches_the_input() -> None:
    layer, x = pruned(), torch.randn(2, 70, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    (found,) = torch.autograd.grad(SparseLinear.of(layer)(x).square().sum(), x)
    assert closeness(found, expected) < 0.01


def test_it_runs_in_inference_mode() -> None:
    packed = SparseLinear.of(pruned())
    with torch.inference_mode():
        assert packed(torch.randn(1, 70)).shape == (1, 50)
