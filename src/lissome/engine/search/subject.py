"""What can be searched: a super-network with its weights, or, without any training, a model under its masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor

from lissome.core.metrics import Provenance
from lissome.core.protocols import CostOracle
from lissome.engine.norms import adapted, batch_norms
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
        start: Subnets to begin with; None for `Space.levels`.
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


Judge = Callable[[Model, Split], dict[str, float]]
"""How good a model is on a split, by name of the figure."""


class Masked:
    """A model under its masks: a super-network whose Subnets share its weights, or any model as it is.

    Args:
        model: The model.
        judge: Gives figures of quality of the model as it is masked.
        cost: Counts, or predicts from a table; made before the model is masked.
        space: What can be chosen.
        splits: What each split is that there is.
        identity: Hashes of model and data, and whatever else figures depend on.
        measured: Takes further figures of a Subnet on the search split, by name, such as its latency when it is cut
            out; none: only the quality.
        examples: Batches of training examples over which every Subnet's statistics of batch norms are taken first.
    """

    def __init__(  # noqa: PLR0913  all but three by name
        self,
        model: Model,
        judge: Judge,
        cost: CostOracle,
        *,
        space: Space,
        splits: Mapping[str, str],
        identity: Mapping[str, Any],
        measured: Callable[[Subnet], Mapping[str, float]] | None = None,
        examples: Sequence[Any] = (),
    ) -> None:
        self._model, self._judge, self._cost, self._measured = model, judge, cost, measured
        self._examples = examples if batch_norms(model.module) else ()
        self.space, self.splits, self.identity = space, splits, identity

    def costs(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return the oracle's figures."""
        return self._cost.figures(subnet)

    def quality(self, subnet: Subnet, split: Split) -> dict[str, float]:
        """Return how good a Subnet is on a split; on the search split also what is measured."""
        more = dict(self._measured(subnet)) if self._measured is not None and split == "search" else {}
        with ExitStack() as stack:
            stack.enter_context(masked(self._model, subnet, space=self.space))
            if self._examples:
                stack.enter_context(adapted(self._model.module, self._examples))
            return {**self._judge(self._model, split), **more}

    def provenance(self, figure: str) -> Provenance:
        """Counted or predicted by the oracle, else measured."""
        known: Any = self._cost.provenance(figure) if figure in self._cost.figures(self.space.full) else "measured"
        return known  # type: ignore[no-any-return]


class MaskedText(Masked):
    """A causal language model and its own Space: what is left of it under a mask, without training.

    Args:
        model: The model.
        windows: Windows LongTensor[n, T] by split.
        cost: As in `Masked`.
        identity: As in `Masked`.
        space: What can be chosen (default: all that can be removed or made smaller).
        measured: As in `Masked`.

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

        def judge(it: Model, split: Split) -> dict[str, float]:
            return {"ppl": perplexity(list(score_text(it, windows[split]).nll))}

        splits: dict[str, str] = {
            split: f"{len(each)} windows of {each.shape[1]} tokens" for split, each in windows.items() if len(each)
        }
        super().__init__(
            model, judge, cost, space=space or model.space(), splits=splits, identity=identity, measured=measured
        )
