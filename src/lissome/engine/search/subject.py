"""What can be searched on text: a super-network with its weights, or, without any training, a model under its masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lissome.core.metrics import Provenance
from lissome.core.protocols import CostOracle
from lissome.engine.scoring import perplexity, score_text
from lissome.engine.search.found import SPLITS, Split
from lissome.engine.search.goal import Goal
from lissome.engine.search.problem import Problem
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.models.space import Space, Subnet


class Subject(Protocol):
    """What a search asks of the thing it searches. An elastic artifact is one, and so is any model."""

    @property
    def space(self) -> Space:
        """What can be chosen."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What figures depend on besides the Space, JSON-able: hashes of weights and data, settings."""

    @property
    def splits(self) -> Mapping[str, str]:
        """What each split is: a name, or a hash of its data; a split that is not there is left out."""

    def costs(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return figures that take next to no time: counted ones, and those predicted from a table."""

    def quality(self, subnet: Subnet, split: Split) -> dict[str, float]:
        """Return what takes time: how good a Subnet is on a split; on the search split also what is measured."""

    def provenance(self, figure: str) -> Provenance:
        """Say how a figure comes about."""


def problem_of(
    subject: Subject, goal: Goal, *, original: Mapping[str, float], start: tuple[Subnet, ...] | None = None
) -> Problem:
    """Return a search of a subject.

    Args:
        subject: What is searched.
        goal: What for. When it speaks of costs alone, no quality is taken.
        original: Figures of the original, which relative bounds refer to.
        start: Subnets to begin with; None for the full and the smallest one.
    """
    costs = subject.costs(subject.space.full)
    spoken = {*goal.names, *(bound.name for bound in goal.bounds)}
    asked = bool(spoken - costs.keys())

    def on(split: Split) -> Callable[[Subnet], Mapping[str, float]] | None:
        return (lambda subnet: subject.quality(subnet, split)) if asked and split in subject.splits else None

    names = {*costs, *spoken}
    return Problem(
        space=subject.space,
        goal=goal,
        evaluate=on("search") or (lambda _: {}),
        costs=subject.costs,
        selection=on("selection"),
        test=on("test"),
        start=start,
        monotone=True,
        original=original,
        provenance={name: subject.provenance(name) for name in sorted(names)},
        splits={split: subject.splits[split] for split in SPLITS if asked and split in subject.splits},
        key=subject.identity,
    )


class MaskedText:
    """A causal language model and its own Space: what is left of it under a mask, without training.

    Args:
        model: The model.
        windows: Windows LongTensor[n, T] by split.
        cost: Counts, or predicts from a table; made before the model is masked.
        identity: Hashes of model and data, and whatever else figures depend on.
        space: What can be chosen (default: all that can be removed or made smaller).
        measured: Takes further figures of a Subnet on the search split, by name, such as its latency when it is cut
            out; none: only the perplexity.

    Raises:
        UnsupportedModelError: When the model is no causal language model.
    """

    def __init__(
        self,
        model: Model,
        windows: Mapping[Split, Tensor],
        cost: CostOracle,
        *,
        identity: Mapping[str, Any],
        space: Space | None = None,
        measured: Callable[[Subnet], Mapping[str, float]] | None = None,
    ) -> None:
        model.anatomy.require("causal-lm", "a search for perplexity")
        self._model, self._windows, self._cost, self._measured = model, windows, cost, measured
        self.space = space or model.space()
        self.identity = identity
        self.splits: Mapping[str, str] = {
            split: f"{len(each)} windows of {each.shape[1]} tokens" for split, each in windows.items() if len(each)
        }

    def costs(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return the oracle's figures."""
        return self._cost.figures(subnet)

    def quality(self, subnet: Subnet, split: Split) -> dict[str, float]:
        """Return the perplexity on a split; on the search split also what is measured."""
        more = dict(self._measured(subnet)) if self._measured is not None and split == "search" else {}
        with masked(self._model, subnet, space=self.space):
            scores = score_text(self._model, self._windows[split])
        return {"ppl": perplexity(list(scores.nll)), **more}

    def provenance(self, figure: str) -> Provenance:
        """Counted or predicted by the oracle, else measured."""
        known: Any = self._cost.provenance(figure) if figure in self._cost.figures(self.space.full) else "measured"
        return known  # type: ignore[no-any-return]
