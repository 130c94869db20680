"""Identity 1 and exact counts on real weights: what toys are too small to show."""

from __future__ import annotations

from random import Random

import pytest
import torch

import lissome
from lissome.cost.counted import Counter
from lissome.data.assets import find, is_fetched
from lissome.models.example import example
from lissome.testing import conformance

TOKENS = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2-135m"])
def test_a_hundred_subnets(name: str) -> None:
    if not is_fetched(find(name)):
        pytest.skip(f"lissome assets fetch {name}")
    model = lissome.load(name, dtype=torch.float64)  # thirty layers of random Subnets blow rounding errors up
    inputs, space = example(model, tokens=TOKENS), model.space()
    counter = Counter(model, tokens=TOKENS)
    conformance.check_full(model, inputs)
    for seed in range(100):
        rng = Random(seed)
        subnet = space.sample(rng, keep=rng.uniform(0.5, 1.0))
        small = conformance.check_subnet(model, subnet, inputs)
        assert counter.count(subnet).macs == conformance.independent_macs(small.module, inputs)
