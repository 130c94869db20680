"""Tests of number types: which parts of a model leave autocast, and that they come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lissome.engine.hooks import Batch, Task
from lissome.engine.train import TrainConfig, train
from lissome.models.precision import depthwise_in_float32


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 2, 1),
    ]
    return nn.Sequential(*layers)


def kinds(net: nn.Sequential, inputs: Tensor) -> list[torch.dtype]:
    seen: list[torch.dtype] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype)) for layer in net]
    with torch.autocast("cpu", torch.bfloat16):
        net(inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_depthwise_convolutions_alone_leave_autocast_and_only_inside_the_block() -> None:
    net, half, inputs = convolutions(), torch.bfloat16, torch.randn(2, 4, 8, 8)
    with depthwise_in_float32(net):
        assert kinds(net, inputs) == [half, torch.float32, half, half]
    assert kinds(net, inputs) == [half] * 4
    assert not any("forward" in vars(layer) for layer in net)


def test_a_failing_block_leaves_nothing_behind() -> None:
    net = convolutions()
    with pytest.raises(ZeroDivisionError), depthwise_in_float32(net):
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in net)


def test_gradients_of_depthwise_weights_are_those_of_float32() -> None:
    layer, inputs = nn.Conv2d(8, 8, 3, groups=8), torch.randn(4, 8, 9, 9)
    plain = copy.deepcopy(layer)
    plain(inputs).square().sum().backward()
    with depthwise_in_float32(layer), torch.autocast("cpu", torch.bfloat16):
        layer(inputs).square().sum().backward()
    assert layer.weight.grad is not None and plain.weight.grad is not None
    assert torch.equal(layer.weight.grad, plain.weight.grad)


def test_a_copy_that_is_made_inside_is_no_part_of_the_original() -> None:
    layer = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    with depthwise_in_float32(nn.Sequential(layer)):
        other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
    assert not other(torch.ones(1, 2, 1, 1)).any()


def test_training_in_bfloat16_on_a_cpu_keeps_depthwise_convolutions_exact() -> None:
    net, seen = convolutions(), set[torch.dtype]()
    net[1].register_forward_hook(lambda _, __, out: seen.add(out.dtype))

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = module(batch.examples).float()
        return found.square().flatten(1).mean(1)

    images = [torch.randn(4, 8, 8) for _ in range(4)]
    train(Task(module=net, loss=loss, data=images), TrainConfig(steps=2, batch=2, precision="bf16"), seed=0)
    assert seen == {torch.float32}
    assert not any("forward" in vars(layer) for layer in net)
