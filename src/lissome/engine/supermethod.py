"""What methods that make super-networks share: their settings, and the making, step by step, of one of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, option
from lissome.core.errors import DataError, UnsupportedModelError, first_line
from lissome.core.method import Context, CurvePoint, Method, ModelCard, Outcome, OutcomeKind, Plan
from lissome.core.seeds import derive
from lissome.cost.counted import Counter
from lissome.cost.peak import give_back
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.elastic import Elastic, trained
from lissome.engine.hooks import Hooks, Loss, Task
from lissome.engine.norms import adapted, batch_norms, reestimate
from lissome.engine.objective import Objective, faster_head, objective_of
from lissome.engine.paths import PathSampler
from lissome.engine.ranking import Sides, ranking, saliency
from lissome.engine.recover import fingerprint
from lissome.engine.spaces import combinations
from lissome.engine.supernet import heuristic
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import bare_copy, merged_copy
from lissome.models.binding import masked, reorder
from lissome.models.build import is_memory
from lissome.models.example import example
from lissome.models.model import Model
from lissome.models.space import Space, Subnet

BETWEEN = "between"
"""In the details of an outcome: Subnets between the ends that were trained on purpose; a search begins with them."""

_STATES = 4  # weights, gradients and two moments of AdamW
_NEW_HEAD = 200  # steps in which a head that is new is learnt


@dataclass(frozen=True, kw_only=True)
class SupernetConfig(MethodConfig):
    """Settings that methods which make super-networks share."""

    steps: int = option(400, "training steps of the super-network", low=1)
    lr: float = option(1e-4, "peak learning rate; cosine to 0 after a warm-up of 5 %", low=0.0, high=10.0)
    batch: int | None = option(
        None, "examples per step; default 4 windows of 256 tokens, 16 texts, or 64 images", low=1
    )
    optimizer: Literal["adamw", "sgd"] = option("adamw", "adamw, or sgd with momentum 0.9")
    weight_decay: float = option(0.0, "also shrinks what a step's path does not use, so choose it small", low=0.0)
    max_seconds: float | None = option(None, "shorten each training to what fits, measured before step 1", low=0.0)
    tune_steps: int | None = option(
        None, "steps in which the whole model is trained first; none: 200 where its head is new, else 0", low=0
    )
    tune_lr: float = option(1e-4, "peak learning rate of those steps", low=0.0, high=10.0)
    examples: int = option(512, "examples over which statistics of batch norms are taken again", low=1)


class SupernetMethod(Method):
    """Base of methods that make super-networks; a subclass gives `run`."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"elastic"})
    removes: ClassVar[frozenset[str]] = frozenset({"untrained"})
    makes: ClassVar[OutcomeKind] = "space"

    config: SupernetConfig

    @property
    def follows_budget(self) -> bool:
        """Never: budgets are for what is extracted from a super-network."""
        return False

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict that the whole model keeps its size; what is extracted is smaller."""
        weights = card.figures["params"] * 4
        parts = {"weights, gradients and moments": _STATES * weights, "the original": weights}
        return Plan(
            figures={"disk": card.figures["disk"]},
            peak_memory=sum(parts.values()),
            memory_parts=parts,
            notes=("peak memory without the activations of training",),
        )


class Making:
    """The making of one super-network: a copy of the model, and what every method does to it.

    Args:
        model: The model; left as it is. Adapters that it has are merged in the copy.
        context: As a method is given it.
        config: The method's settings.

    Raises:
        DataError: When there is nothing to choose by.
        UnsupportedModelError: When a network of a user's own class cannot run in training.
    """

    def __init__(self, model: Model, context: Context, config: SupernetConfig) -> None:
        self.model = bare_copy(model)
        self.context, self.config = context, config
        self._new_head = "untrained" in context.tags
        self.objective: Objective = objective_of(context.data)
        if not self.objective.selects:
            raise DataError("a super-network needs examples to choose by (a split for selection), but there are none.")
        if "traced" in model.anatomy.tags:
            _check_training(self.model, min(2, config.batch or 2, config.examples))

    def tune(self) -> None:
        """Train the whole model first: where its head is new there is no pre-trained model of the task yet."""
        asked = self.config.tune_steps
        steps = asked if asked is not None else _NEW_HEAD if self._new_head else 0
        if steps:
            self.train("tune", Hooks(), steps=steps, lr=self.config.tune_lr)
            self._new_head = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work on a copy inside the ``with`` block; afterwards the model is as it was."""
        kept = self.model, self._new_head
        self.model = self.model.derived(copy.deepcopy(self.model.module))
        try:
            yield
        finally:
            self.model, self._new_head = kept

    def teacher(self) -> Model:
        """Return a copy of the model as it is now, to learn from."""
        return self.model.derived(copy.deepcopy(self.model.module).requires_grad_(False))

    def saliency(self, score: str) -> dict[str, Tensor]:
        """Score every weight of the model as it is now; see `lissome.engine.ranking.saliency`."""
        return saliency(
            self.model, score, batches=self.objective.batches(self.config.examples),
            task=self.objective.task(self.model), seed=self.context.seed,
        )  # fmt: skip

    def sort(self, score: str, axes: Iterable[str], *, sides: Sides = "makes") -> None:
        """Put the units of axes that score best first, in place; the function stays. ``"none"``: do not."""
        if score != "none":
            reorder(self.model, ranking(self.model, self.saliency(score), sides=sides, axes=axes))

    def train(
        self,
        name: str,
        sampler: PathSampler | Hooks,
        *,
        steps: int | None = None,
        lr: float | None = None,
        task: Task | None = None,
        loss: Loss | None = None,
        part: str = "all",
    ) -> None:
        """Train paths of the model in place; continues after a kill.

        Args:
            name: Of the folder of its checkpoints, unique within the method.
            sampler: Which paths; or hooks, for anything else.
            steps: Optimizer steps (default: those of the settings).
            lr: Peak learning rate (default: that of the settings).
            task: What is trained on what (default: the model on the objective's examples).
            loss: What they learn (default: the task's).
            part: Which parameters are trained; see `lissome.engine.elastic.trained`. ``"given"``: those that require a
                gradient, and a head for classes.
        """
        config, model, context = self.config, self.model, self.context
        hooks = sampler if isinstance(sampler, Hooks) else Elastic(model, sampler)
        key = {
            "config": config.to_mapping(), "seed": context.seed, "data": context.data.fingerprint,
            "model": fingerprint(model.module), "part": part,
        }  # fmt: skip
        with ExitStack() as stack:
            task = task or self.objective.task(model)
            if self._new_head and part == "all" and config.optimizer == "adamw":
                task = faster_head(task, model)
            if part != "given":
                stack.enter_context(trained(model, part))
            train(
                replace(task, loss=loss or task.loss), self._settings(steps or config.steps, lr or config.lr),
                seed=derive(context.seed, name), hooks=hooks, checkpoint=Checkpoint(context.folder / name, key),
                events=context.events,
            )  # fmt: skip
        give_back()

    def _settings(self, steps: int, lr: float) -> TrainConfig:
        config = self.config
        made = self.objective.training(steps=steps, lr=lr, batch=config.batch, max_seconds=config.max_seconds)
        return replace(made, optimizer=config.optimizer, weight_decay=config.weight_decay)

    def quality(self, subnet: Subnet | None = None, space: Space | None = None) -> dict[str, float]:
        """How good a Subnet (default: the whole model) is on the examples to choose by, with statistics of its own."""
        with ExitStack() as stack:
            if subnet is not None:
                stack.enter_context(masked(self.model, subnet, space=space))
            if batch_norms(self.model.module):
                stack.enter_context(adapted(self.model.module, self.objective.batches(self.config.examples)))
            return self.objective.figures(self.model, "selection")

    def outcome(self, space: Space, *, given: Mapping[str, float], details: Mapping[str, Any] | None = None) -> Outcome:
        """Give the super-network away, with the figures of its ends and its middle.

        Args:
            space: What can be chosen.
            given: Quality of the model before it became a super-network; see `quality`.
            details: What else is worth keeping.
        """
        counter = Counter(merged_copy(self.model))  # adapters are merged when a Subnet is cut out
        named = {"largest": space.full, "middle": space.canonical(_middle(space)), "smallest": space.smallest}
        curve = [_point(0, "given", space.full, counter, given)]
        for name, subnet in named.items():
            curve.append(_point(len(curve), name, subnet, counter, self.quality(subnet, space)))
        with torch.no_grad():
            if batch_norms(self.model.module):
                reestimate(self.model.module, self.objective.batches(self.config.examples))
        found = {"axes": len(space.axes), "log10_subnets": math.log10(combinations(space)), **(details or {})}
        return Outcome(kind="space", value=self.model, curve=tuple(curve), space=space.to_json(), details=found)


def _check_training(model: Model, size: int) -> None:
    """Refuse a network whose code fails in training on so many examples: a norm, say, that needs more than one."""
    module = copy.deepcopy(model.module).train()  # running statistics of the model itself do not move
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(**example(model, batch=size))
    except Exception as error:  # whatever a network's own code raises
        if is_memory(error):
            raise
        more = "set batch and examples to 2 or more" if size == 1 else "mend its forward"
        raise UnsupportedModelError(
            f"{model.name} fails in training on a batch of {size} ({first_line(error)}); {more}."
        ) from error


def _middle(space: Space) -> Subnet:
    """The middle choice everywhere; no block is skipped."""
    middle = heuristic(space)
    return middle.replace({axis.name: 1 for axis in space.axes if axis.choices == (0, 1)})


def _point(step: int, name: str, subnet: Subnet, counter: Counter, quality: Mapping[str, float]) -> CurvePoint:
    return CurvePoint(
        step=step, change=name, subnet=subnet.to_json(), figures=counter.figures(subnet), quality=dict(quality)
    )
