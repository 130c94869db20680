"""On a real model: is the latency table right about Subnets that it has not seen? (make test-all)"""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest

from lissome.cost.measured import Request
from lissome.cost.oracle import SubnetCost
from lissome.cost.probe import collect
from lissome.cost.table import latency_table
from lissome.models.codes import Codes
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

HELD_OUT = 12
UNDISTURBED = 0.8  # of a core, below which times are those of other work


@pytest.fixture(scope="module")
def model() -> Model:
    from lissome.core.errors import AssetError
    from lissome.pipeline.loading import load

    try:
        return load("smollm2-135m")
    except AssetError as error:
        pytest.skip(f"the demo model is not here and cannot be fetched: {error}")


@pytest.mark.slow
@pytest.mark.alone
def test_table_predicts_held_out_subnets(model: Model) -> None:
    """CPU time of one thread is compared, so that a little other work on the machine does not decide."""
    space, request, rng = model.space(), Request(), Random(42)
    held_out = [lighter(space, rng, share=(index + 1) / HELD_OUT) for index in range(HELD_OUT)]
    start, busy = time.monotonic(), time.process_time()
    table = latency_table(model, space=space, threads=1, seconds=20)
    seen = collect(model, held_out, space, request, seconds=5.0 * HELD_OUT, threads=1)
    share = (time.process_time() - busy) / (time.monotonic() - start)
    if share < UNDISTURBED:
        pytest.skip(f"other work on the machine left {share:.0%} of a core: few samples, and caches that others fill")
    cost = SubnetCost(model, table=table)
    base = cost.figures(space.full)["latency"]
    predicted, measured = [], []
    for index, subnet in enumerate(held_out):
        original, small = (
            table.prefill.scale * np.median([pair[which] for pair in seen["prefill"].pairs[index]])
            + table.decode.scale * request.steps * np.median([pair[which] for pair in seen["decode"].pairs[index]])
            for which in (0, 1)
        )
        measured.append(small / original)
        predicted.append(cost.figures(subnet)["latency"] / base)
    errors = np.abs(np.array(predicted) / measured - 1)
    assert spearman(predicted, measured) > 0.95
    assert np.median(errors) < 0.03
    assert errors.max() < 0.08
    assert max(measured) - min(measured) > 0.2  # else the ranks would mean little


def lighter(space: Space, rng: Random, *, share: float) -> Subnet:
    """Draw a Subnet that differs from the original in about a share of its axes."""
    drawn = space.sample(rng)
    return space.check({name: drawn[name] if rng.random() < share else value for name, value in space.full.items()})


def spearman(first: list[float], second: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.slow
def test_distinct_subnets_are_counted_faster_than_a_search_asks(model: Model) -> None:
    """Ten thousand a second of processor time, of Subnets that were not counted before."""
    space, cost = model.space(), SubnetCost(model)
    codes = Codes(space)
    rows = np.random.default_rng(0).integers(0, codes.sizes, (20_000, len(codes.sizes)))
    subnets = [*dict.fromkeys(codes.decode(rows))]
    assert len(subnets) > 19_900
    start = time.process_time()
    columns = cost.columns(space, codes.encode(subnets))
    took = time.process_time() - start
    assert len(subnets) / took > 10_000
    for place in range(0, len(subnets), 997):
        figures = cost.figures(subnets[place])
        assert {name: column[place] for name, column in columns.items()} == figures
