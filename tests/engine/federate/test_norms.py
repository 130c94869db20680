"""Statistics of batch norms between clients."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from lissome.data.images import Images
from lissome.engine.federate.lessons import Pictures
from lissome.engine.federate.mutual import KNOWLEDGE, bound_of
from lissome.engine.federate.norms import OWN, WHOLE, moments_of, moved, prefix_of, settle, take_moments
from lissome.engine.federate.subnets import share_space
from lissome.engine.images import examples
from lissome.engine.norms import statistics
from lissome.testing.networks import network_model
from tests.engine.federate.fleet import encoder


def test_means_of_moments_are_those_of_all_examples() -> None:
    models = [network_model("resnet") for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for model in models:
        for name, value in model.module.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + (3.0 if name.endswith("var") else 0.0))
    one, other = (moments_of(model, KNOWLEDGE) for model in models[:2])
    assert take_moments(models[2], {name: (one[name] + other[name]) / 2 for name in one}, KNOWLEDGE)
    for name, value in statistics(models[2].module).items():
        a, b = (model.module.get_buffer(name) for model in models[:2])
        if name.endswith("var"):
            c, d = (model.module.get_buffer(name.replace("var", "mean")) for model in models[:2])
            assert torch.allclose(value, (a + b) / 2 + (c - d).square() / 4, atol=1e-5)
        else:
            assert torch.allclose(value, (a + b) / 2)
    assert not take_moments(models[2], one, OWN), "there are none of the own model"
    assert not moments_of(encoder(), KNOWLEDGE), "an encoder has no batch norms"


def test_a_cut_network_gets_statistics_of_its_own() -> None:
    model = network_model("resnet")
    model.module(torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    rng = np.random.default_rng(0)
    drawn = tuple(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8) for _ in range(40))
    images = Images("toy", tuple(partial(np.array, one) for one in drawn), (0, 1) * 20, ("a", "b"), {}, "x")
    pictures = examples(model, images)
    learned = Pictures(pictures, pictures.some([]), 2)
    bound = bound_of(model, share_space(model, ("width",), (1.0, 0.5)).smallest, learned)
    before = statistics(bound.model.module)
    settle(bound.module, learned)
    after = statistics(bound.model.module)
    assert any(not torch.allclose(before[name], after[name], atol=0.05) for name in before)
    first = next(part for part in bound.model.module.modules() if isinstance(part, torch.nn.Conv2d))
    pixels = torch.stack([pictures[at]["pixel_values"] for at in range(40)])
    name = next(iter(after))
    seen = [first(pixels[:32]).mean((0, 2, 3)), first(pixels[32:]).mean((0, 2, 3))]
    assert torch.allclose(after[name], (seen[0] + seen[1]) / 2, atol=1e-4)


def test_statistics_move_where_norms_are_trained() -> None:
    model = network_model("resnet")
    names = [name for name, _ in model.module.named_parameters()]
    norms = [
        name for name in names if name.removesuffix("weight") + "running_mean" in dict(model.module.named_buffers())
    ]
    assert moved(model, names)
    assert moved(model, norms[:1])
    assert not moved(model, names[-2:]), "a head, below which all stays"
    assert not moved(encoder(), [name for name, _ in encoder().module.named_parameters()])


def test_each_size_has_a_name() -> None:
    small = share_space(network_model("resnet"), ("width",), (1.0, 0.5)).smallest
    assert prefix_of(None) == WHOLE
    assert prefix_of(small) == prefix_of(dict(reversed(small.to_json().items()))) != WHOLE
