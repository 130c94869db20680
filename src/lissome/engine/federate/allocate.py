"""Which architecture each budget gets: found by the shared search, drawn at random, or shrunk alike.

A search needs something to compare architectures by before anybody has trained: how far the hidden states of a cut
model are from those of the whole one, on text that ships with lissome (or made-up inputs, for models that read none).
What was chosen is grown while the budget lasts, so that devices are used. Equal budgets get equal architectures.
"""

# B rows, T tokens, D width

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lissome.core.budget import Budget
from lissome.core.errors import BudgetUnmetError
from lissome.core.seeds import derive
from lissome.data.sources import read_corpus
from lissome.data.text import Encoder, all_windows
from lissome.engine.federate.planner import Planner
from lissome.engine.search.goal import Goal
from lissome.engine.search.problem import Problem
from lissome.engine.search.run import SearchConfig, search
from lissome.models.binding import masked
from lissome.models.example import example
from lissome.models.model import Model
from lissome.models.space import Subnet

Way = Literal["search", "random", "largest"]
_ROWS, _TOKENS = 16, 32
_DISTANCE = "distance"


class Allocator:
    """Finds an architecture for each budget, once.

    Args:
        model: The whole, pre-trained model.
        planner: Knows sizes.
        way: How.
        trials: Of a search.
        seed: Of all that is drawn.
    """

    def __init__(self, model: Model, planner: Planner, way: Way, *, trials: int, seed: int) -> None:
        self._model, self._planner, self._way = model, planner, way
        self._trials, self._seed = trials, seed
        self.known: dict[str, Subnet] = {}
        self._probe: Probe | None = None

    def of(self, budget: Budget) -> Subnet:
        """Return the architecture of a budget.

        Raises:
            BudgetUnmetError: When even the smallest is too large; says what can be reached.
        """
        key = str(budget)
        if key not in self.known:
            self.known[key] = self._found(budget)
        return self.known[key]

    def _found(self, budget: Budget) -> Subnet:
        alike = self._planner.largest(budget)  # also says what can be reached when nothing fits
        if self._way == "largest" or alike == self._planner.space.full:
            return alike
        rng = Random(derive(self._seed, "allocate", str(budget)))
        if self._way == "random":
            return self._planner.grown(self._planner.random(budget, rng), budget)
        if self._probe is None:
            self._probe = Probe(self._model, derive(self._seed, "probe"))
        probe, planner = self._probe, self._planner
        drawn = tuple(planner.grown(planner.random(budget, rng), budget) for _ in range(4))
        problem = Problem(
            space=planner.space, goal=Goal.of(f"min {_DISTANCE}", budget, original=planner.full),
            evaluate=lambda subnet: {_DISTANCE: probe.distance(subnet)}, costs=planner.figures,
            start=tuple(dict.fromkeys((alike, *drawn))), original=planner.full,
        )  # fmt: skip
        found = search(problem, SearchConfig(trials=self._trials), seed=derive(self._seed, "search") % 2**31)
        chosen = found.choice()
        if chosen is None:
            raise BudgetUnmetError(f"no architecture within {budget} was found in {self._trials} trials; give more.")
        return planner.grown(found.subnet(chosen), budget)

    def state(self) -> dict[str, Any]:
        """What must survive a kill, JSON-able."""
        return {key: subnet.to_json() for key, subnet in self.known.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.known = {key: Subnet(values) for key, values in state.items()}


class Probe:
    """How far cut models are from the whole one, without labels.

    Args:
        model: The whole model.
        seed: Of made-up inputs, and of the choice of texts.
    """

    def __init__(self, model: Model, seed: int) -> None:
        self._model = model
        self._inputs = _inputs(model, seed)
        self._whole = self._states()

    @torch.no_grad()
    def distance(self, subnet: Mapping[str, int]) -> float:
        """Return 1 − mean cosine between what the cut and the whole model make of each input."""
        with masked(self._model, subnet):
            found = self._states()
        return float(1 - cosine_similarity(found, self._whole, dim=-1).mean())

    @torch.no_grad()
    def _states(self) -> Tensor:
        """Last hidden states of a text model [B·T, D]; what another makes of each input [B, …]."""
        self._model.module.eval()
        if "input_ids" in self._inputs:
            base: Any = self._model.module.base_model
            return base(**self._inputs).last_hidden_state.float().flatten(0, 1)  # type: ignore[no-any-return]
        result: Any = self._model.module(**self._inputs)
        first = result if isinstance(result, Tensor) else result[0]
        return first.float().flatten(1)


def _inputs(model: Model, seed: int) -> dict[str, Tensor]:
    if model.tokenizer is None or model.anatomy.task not in {"causal-lm", "encoder"}:
        return example(model, tokens=_TOKENS, batch=_ROWS, seed=seed)
    windows = all_windows(read_corpus(None), Encoder(model.tokenizer, model.anatomy.vocabulary), length=_TOKENS)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:_ROWS]
    return {"input_ids": windows[chosen]}
