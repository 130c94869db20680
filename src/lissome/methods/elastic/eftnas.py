"""EFTNAS: learn what each unit of an encoder is worth, let that say which sizes there are, and train them all at once.

Problem: sizes that a super-network offers are usually made up by hand, the same for every layer. Munoz, Zheng, Jain,
"EFTNAS: Searching for Efficient Language Models in First-Order Weight-Reordered Super-Networks" (LREC-COLING 2024, ACL
Anthology 2024.lrec-main.497; no arXiv version was found): scores of blocks, rows and columns are learnt by movement
pruning (arXiv 2005.07683) while the model is fine-tuned; for each of some costs between c_min and c_max one threshold
on all scores says how many heads and neurons each layer keeps, and these are its choices; heads and neurons are sorted
by their scores; then the largest, a random and the smallest sub-network are trained on each batch, with
``0.1 · CE + 0.9 · T² · KL(teacher ‖ student)``. A search for (cost, quality) follows: `lissome search`.

Differs from the published code, and why:

- Units come and go one by one in the order of their worth, by bisection on how many stay: units whose scores tie (never
  updated) do not flip together, and where a head is too coarse a step, neurons fill the gap: both bounds are met within
  2 %. ``lists=threshold`` is the published bisection, on one threshold; it ends, with the nearest cost there is.
- ``scores`` other than ``learned`` take the same way, since learned ones do not always order better than cheap ones.
- Where c_max is below the whole model, it is cut to c_max first: what no choice uses is not trained.
- Three passes share one optimizer step with the mean of their gradients; the published ones are summed, which AdamW
  does not see.
- Optimizer steps instead of epochs; every head size, also shared keys and values (the published reorder knows 64).
- The penalty's bias part is not there. Questions (SQuAD) are cut to 256 tokens instead of windows that overlap.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.method import Context, Outcome
from lissome.engine.boundaries import Boundaries, Sized, renamed
from lissome.engine.hooks import Task
from lissome.engine.movement import Schedule, Scored, Scoring
from lissome.engine.paths import RandomPath, Sandwich
from lissome.engine.ranking import saliency, unit_scores
from lissome.engine.regularise import dropping, hiding
from lissome.engine.supermethod import BETWEEN, Making, SupernetConfig, SupernetMethod
from lissome.models.binding import extract, ranks, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops import importance


class EFTNAS(SupernetMethod):
    """Spaces whose sizes and order follow from learned scores; a sandwich with a teacher."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense", "text"})

    @dataclass(frozen=True, kw_only=True)
    class Config(SupernetConfig):
        """Settings of EFTNAS."""

        smallest: float = option(0.35, "multiply-accumulates of the smallest, a share of the whole", low=0.01, high=1.0)
        largest: float = option(1.0, "those of the largest; below 1 the model is cut to it first", low=0.01, high=1.0)
        targets: int = option(5, "costs between the two, evenly spaced, whose sizes are the choices", low=2)
        scores: Literal["learned", "l1", "l2", "wanda", "first_order", "random"] = option(
            "learned", "what units are worth; learned: by movement pruning, the paper's"
        )
        lists: Literal["scores", "threshold", "uniform"] = option(
            "scores",
            "sizes of each layer by its scores; threshold: by one threshold on all of them, as published; uniform: the "
            "same share of every layer, as made by hand",
        )
        score_steps: int = option(200, "steps in which scores are learnt; the model itself starts again after", low=1)
        opens: float = option(0.4, "share of them before the threshold begins to rise", low=0.0, high=0.99)
        penalty: float = option(0.02, "weight of the penalty on scores at the end", low=0.0)
        block: int = option(32, "side of the blocks of an attention's matrices that have a score", low=1)
        multiple: int = option(1, "neurons are rounded up to a multiple; 8 suits vector units", low=1)
        paths: Literal["sandwich", "random"] = option("sandwich", "the ends and one at random, or that one alone")
        even: float = option(
            0.0, "of a sandwich: share of steps in which the one between is what one of the costs gives", low=0.0,
            high=1.0,
        )  # fmt: skip
        distil: float = option(0.9, "share of what the teacher says in the loss", low=0.0, high=1.0)
        temperature: float = option(2.0, "by which logits are divided there; of text always 1", low=0.01)
        hide: float = option(
            0.0, "share of the words of labelled texts that are hidden at random in the super-network's training; of "
            "texts with holes a teacher says more than labels do", low=0.0, high=0.9,
        )  # fmt: skip
        dropout: float | None = option(
            None, "share of activations that are dropped then; none: as the model says", low=0.0, high=0.9
        )
        start: Literal["given", "teacher"] = option(
            "given", "weights that the super-network starts from: those that were given, the paper's, or the teacher's"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.smallest >= self.largest:
                raise ConfigError(f"smallest must be below largest, got {self.smallest} and {self.largest}.")

    config: Config

    def run(self, model: Model, context: Context) -> Outcome:
        """Tune a teacher, learn scores, sort and list sizes, train; continues after a kill.

        Raises:
            BudgetUnmetError: When a cost cannot be met within 2 %; names the range.
            DataError: When there are no examples to train on or to choose by.
            NumericsError: When training fails; names the step.
        """
        config, making = self.config, Making(model, context, self.config)
        self._check(making)
        with making.aside():
            making.tune()
            teacher, given = making.teacher(), making.quality()
        if config.start == "teacher":
            making.model = making.model.derived(copy.deepcopy(teacher.module).requires_grad_(True))
        worth, order = self.worth(making)
        reorder(making.model, dict(zip(order, ranks(list(order.values())), strict=True)))
        space, costs, between = self._space(making, worth)
        loss = None
        if config.distil:
            loss = making.objective.lesson(making.model, teacher, share=config.distil, temperature=config.temperature)
        sandwich = Sandwich(space, even=config.even, levels=between)
        sampler = sandwich if config.paths == "sandwich" else RandomPath(space)
        task = hiding(making.objective.task(making.model), making.model, config.hide)
        with dropping(making.model.module, config.dropout):
            making.train("train", sampler, loss=loss, task=task)
        lists = {axis.name: list(axis.choices) for axis in space.axes}
        details = {"targets": costs, "lists": lists, BETWEEN: [subnet.to_json() for subnet in between]}
        return making.outcome(space, given=given, details=details)

    def _check(self, making: Making) -> None:
        """Refuse before any work: costs that no sizes reach, whatever units are worth, and words that cannot hide."""
        model = making.model
        hiding(making.objective.task(model), model, self.config.hide)
        bounds = Boundaries(model, unit_scores(model, saliency(model, "l1")))
        if self.config.lists != "uniform":
            bounds.nested([share * bounds.range()[1] for share in (self.config.smallest, self.config.largest)])

    def worth(self, making: Making) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return, by axis, what decides when a unit goes, and what sorts it: step 1 of the method."""
        config = self.config
        if config.scores != "learned":
            both = unit_scores(making.model, making.saliency(config.scores), sides="both")
            return both, both
        with making.aside():
            plain = making.objective.task(making.model)
            scored = Scored(plain, making.model, block=config.block)
            schedule = Schedule(steps=config.score_steps, opens=config.opens, penalty=config.penalty)
            hooks = Scoring(scored, schedule)
            task = Task(module=scored, loss=hooks.loss(plain.loss), data=plain.data)
            making.train("scores", hooks, steps=config.score_steps, lr=config.tune_lr, task=task)
            found = scored.saliencies()
        # A unit goes when the last of its blocks does, in any tensor that makes or reads it; it is sorted by their sum.
        worth = unit_scores(making.model, found, sides="both", reduce=importance.strongest)
        return worth, unit_scores(making.model, found)

    def _space(self, making: Making, worth: dict[str, Tensor]) -> tuple[Space, list[float], list[Subnet]]:
        """Step 2: the sizes that survive at each cost; the model is cut to the largest of them.

        Returns:
            The Space, the costs that were met, and the Subnets that meet those between the ends.
        """
        config = self.config
        bounds = Boundaries(making.model, worth, multiple=config.multiple)
        most = bounds.range()[1]
        shares = torch.linspace(config.smallest, config.largest, config.targets).tolist()
        costs = [share * most for share in shares]
        single = {"uniform": bounds.uniform, "threshold": bounds.threshold}.get(config.lists)
        found = [single(macs) for macs in costs] if single else bounds.nested(costs)
        if config.largest < 1:
            space = bounds.space(found)
            subnet = bounds.subnet(space, found[-1])
            whole, making.model = making.model, extract(making.model, subnet, space=space)
            names = renamed(whole, making.model, subnet)
            bounds = Boundaries(making.model, {names[name]: value for name, value in worth.items() if name in names})
            found = [
                Sized(one.macs, {names[name]: size for name, size in one.sizes.items() if name in names})
                for one in found
            ]
        space = bounds.space(found)
        return space, [one.macs for one in found], [bounds.subnet(space, one) for one in found[1:-1]]
