"""Virtual tokens without gradients: the server proposes candidates, clients say how well each does on their own data.

c* = argmin_c Σ n_i·loss_i(c) / Σ n_i, in the manner of FedBPT (Sun et al. 2023, arXiv 2310.01467): candidates live in a
space of few dimensions, which a fixed random matrix, drawn alike everywhere, maps to virtual tokens. So an order has
P·D numbers, an answer P losses, and a client needs nothing but forward passes.
"""

# P candidates, D numbers of each, N virtual tokens, H width of the embedding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import ConfigError
from lissome.core.seeds import derive
from lissome.engine.evolve import Evolution
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Report
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import TrainingClient
from lissome.models.adapters.prompts import is_prompt_tensor
from lissome.models.model import Model
from lissome.models.space import Subnet

CANDIDATES, SCORE = "candidates", "score"
MOST = 60
"""Candidates of a round: each brings a number, and an answer may bring few."""
_FAR = 3.0  # times the usual spread of losses: clients' data differ, but not that much
WIDEST = 4096
"""Numbers of a candidate: an evolution strategy learns nothing of more, and the matrix has a row for each."""


def agreed(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the mean loss of each candidate, in which nobody speaks louder than the others.

    What a client says of a candidate is how much better or worse than its own mean it is; beyond a few times the spread
    that is usual (the median over clients), it counts as that much. Where spreads are alike, this is the plain mean.

    Args:
        losses: float64[K, P], of K clients.
        weights: float64[K], their examples.
    """
    means = losses.mean(1, keepdim=True)
    most = _FAR * median((losses.amax(1) - losses.amin(1)).tolist())
    parts = weights / weights.sum()
    return parts @ (losses - means).clamp(-most, most) + parts @ means[:, 0]


def prompt_name(model: Model) -> str:
    """Return the name of the tensor with the virtual tokens of a model that has some."""
    return next(name for name, _ in model.module.named_parameters() if is_prompt_tensor(name))


@dataclass(frozen=True)
class Projection:
    """Maps D numbers to virtual tokens: start + Σ_d z_d·M_d, with M as large as the first tokens' numbers differ.

    Attributes:
        start: The first virtual tokens, float32[N, H].
        matrix: float32[D, N·H].
    """

    start: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, model: Model, size: int, seed: int) -> Projection:
        """Draw the matrix for a model with virtual tokens, the same everywhere."""
        start = model.module.get_parameter(prompt_name(model)).detach().cpu().float().clone()
        drawn = torch.randn(size, start.numel(), generator=torch.Generator().manual_seed(seed))
        return cls(start, drawn * (float(start.std()) / size**0.5))

    def tokens(self, numbers: Tensor) -> Tensor:
        """Return the virtual tokens [N, H] of D numbers."""
        return self.start + (numbers.float() @ self.matrix).view_as(self.start)


class PromptSearch(SubnetProgram):
    """The server's side: one generation of an evolution strategy in every round.

    `begin` must be called before the first round.
    """

    def begin(self, projection: Projection, candidates: int, seed: int) -> None:
        """Start the search.

        Raises:
            ConfigError: When there are too many candidates, or too few to tell better from worse.
        """
        if not 4 <= candidates <= MOST:
            raise ConfigError(f"a round has 4 to {MOST} candidates, got {candidates}.")
        self._name, self._projection, self._seed = prompt_name(self.model), projection, seed
        self._evolution = Evolution(len(projection.matrix), candidates)
        self.tensors = {CANDIDATES: torch.zeros(candidates, len(projection.matrix)), self._name: projection.start}
        self._phases = (Phase(action=SCORE, kind="evaluate", merger=None),)

    def phases(self, round: int) -> Sequence[Phase]:
        """Draw the candidates of the round, then return its phase."""
        generator = torch.Generator().manual_seed(derive(self._seed, "candidates", round))
        self.tensors[CANDIDATES] = self._evolution.ask(generator).float()
        return self._phases

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Candidates to be scored, or the virtual tokens to be evaluated."""
        return Layout.whole([CANDIDATES if phase.action == SCORE else self._name])

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> dict[str, float]:
        """Average the losses of each candidate over those who scored all, and move towards the better ones."""
        names = [f"loss-{index}" for index in range(self._evolution.candidates)]
        scored = [one for one in reports if one.weight > 0 and one.metrics.keys() >= set(names)]
        if not scored:
            return {}
        given = torch.tensor([[one.metrics[name] for name in names] for one in scored], dtype=torch.float64)
        losses = agreed(given, torch.tensor([one.weight for one in scored], dtype=torch.float64))
        self._evolution.tell(self.tensors[CANDIDATES], losses)
        self.tensors[self._name] = self._projection.tokens(self._evolution.mean)
        return {"best": float(losses.min())}

    def remarks(self, phase: Phase, reports: Sequence[Report]) -> dict[str, str]:
        """Say whose losses differ so much that they count as less."""
        names = [f"loss-{index}" for index in range(self._evolution.candidates)]
        scored = [one for one in reports if phase.action == SCORE and one.metrics.keys() >= set(names)]
        spreads = [max(found) - min(found) for one in scored if (found := [one.metrics[name] for name in names])]
        most = _FAR * median(spreads) if spreads else 0.0
        return {
            f"losses of {one.client}": f"the losses of {one.client} differ by {spread:.3g} between candidates, "
            f"{most:.3g} at most is usual; they count as no more than that"
            for one, spread in zip(scored, spreads, strict=True)
            if spread > most
        }

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The evolution strategy."""
        return self._evolution.state(), None

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Take the evolution strategy back."""
        self._evolution.restore(tensors)

    def loaded(self) -> Bound:
        """Return the whole model with the virtual tokens in it."""
        assert self._lesson is not None
        bound = Bound.of(self.model, self.model, self._lesson.around(self.model), None)
        bound.load({self._name: self.tensors[self._name]})
        return bound


@dataclass(kw_only=True, eq=False)
class PromptScorer(TrainingClient):
    """A client that scores candidates on its own examples.

    Attributes:
        projection: What numbers mean.
        candidates: How many come.
    """

    projection: Projection
    candidates: int

    def templates(self, head: OrderHead) -> dict[str, Tensor]:
        """Shape of the candidates, or of the virtual tokens."""
        if head.action == SCORE:
            return {CANDIDATES: torch.empty(self.candidates, len(self.projection.matrix), device="meta")}
        return {prompt_name(self.base): self.projection.start}

    def act(self, work: Work) -> Answer:
        """Score every candidate, or evaluate the virtual tokens that came."""
        if work.head.action != SCORE:
            return super().act(work)
        bound, learned = self._bound(work.head), self.lesson.turned()
        bound.module.eval()
        losses = {}
        for index, numbers in enumerate(work.tensors[CANDIDATES]):
            bound.load({prompt_name(self.base): self.projection.tokens(numbers)})
            losses[f"loss-{index}"] = learned.score(bound.module)[1]["loss"]
        return Answer(weight=len(self.lesson), metrics=losses)
