"""The usual client: cuts its Subnet out of the model, trains it with the shared loop, and answers with what it learned.

The client reads the base model itself, so that frozen tensors need not travel; what is trained comes from the server
and goes back, under its global name. What a task adds to the model (a classifier, say) is called ``task/…``.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lissome.core.errors import ConfigError, unknown_name
from lissome.core.events import EventStream
from lissome.engine.checkpoint import Checkpoint, Saved
from lissome.engine.federate.bound import Bound, cut_model, is_cut
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.norms import OWN, is_moment, let_follow, moments_of, moved, prefix_of, settle, take_moments
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.store import Kept
from lissome.engine.hooks import Batch, Hooks, Loss, Task
from lissome.engine.objective import faster_head
from lissome.engine.train import TrainConfig, train
from lissome.models.model import Model

EVALUATE, MEASURE = "evaluate", "measure"
"""Actions of orders to score, and to answer with moments of batch norms."""

MOMENTS = "moments"
"""Setting of an order: statistics are measured after every merge; such moments come with what is to be scored."""

MINE = "mine|"
"""Beginning of the names under which a client keeps what it made of exchanged tensors."""


class Lesson(Protocol):
    """What a client learns: a task around a model, and how well it does."""

    def __len__(self) -> int:
        """Return the number of examples to train on."""

    def around(self, model: Model) -> nn.Module:
        """Return the module that is trained: the model's, or one around it with parts of its own, always alike."""

    def task(self, module: nn.Module) -> Task:
        """Return the task of training that module."""

    def outputs(self, module: nn.Module, examples: Any) -> Tensor:
        """Return the logits [B, …, K] of a batch of the task's examples."""

    def losses(self, logits: Tensor, examples: Any) -> Tensor:
        """Return the loss of each example [B], given its logits."""

    def score(self, module: nn.Module) -> tuple[int, dict[str, float]]:
        """Return the number of examples held out, and means over them by name."""

    @property
    def held(self) -> int:
        """Number of examples held out."""

    def some(self, learned: Sequence[int], held: Sequence[int]) -> Lesson:
        """Return the lesson with the examples at some positions, of what is learned and of what is held out."""

    def turned(self) -> Lesson:
        """Return the lesson that is judged by what it learns from."""

    def swapped(self) -> Lesson:
        """Return the lesson that learns from what is held out, and holds out what it learns from."""


def global_tensors(model: Model, lesson: Lesson, private: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors that a federation exchanges at its start: all that a client trains and does not keep.

    Args:
        model: The whole model, whose parameters require a gradient where they are trained.
        lesson: Any client's; what it adds to a model starts alike everywhere.
        private: Patterns of names that clients keep for themselves, e.g. ``"task/*"``.

    Raises:
        ConfigError: When nothing is trained, or a pattern is the name of no tensor: what it was meant for would travel.
    """
    bound = Bound.of(model, model, lesson.around(model), None)
    if not bound.trained():
        raise ConfigError("clients would train nothing: all of the model is frozen; change freeze, or trains.")
    for pattern in private:
        if not any(is_private(name, (pattern,)) for name in bound.parameters):
            names = [f"{name.rpartition('.')[0]}.*" for name in reversed(list(bound.parameters))]
            raise ConfigError(unknown_name("tensor of private", pattern, dict.fromkeys(names)))
    names = [name for name in bound.trained() if not is_private(name, private)]
    return bound.values(names)


def is_private(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor stays at the client."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(kw_only=True, eq=False)
class TrainingClient:
    """Trains a Subnet of a model on its own data.

    An order's settings may hold those of `TrainConfig` under ``"train"``; they go over this client's own.

    Attributes:
        facts: Who it is.
        base: The whole model; it is not changed, and clients of one process share it.
        lesson: What it learns.
        config: Settings of the training loop.
        private: Patterns of names of tensors that never leave it and are kept between rounds.
        moments: Whether the optimizer's moments and the position in the data are kept between rounds; otherwise
            every order starts an optimizer anew, with examples in a new order.
        proximal: μ of FedProx (Li et al. 2020, arXiv 1812.06127): μ/2·‖θ − θ_came‖² beside the task, over what came.
        fast_head: Whether the head for classes learns faster than what lies below it; see `faster_head`.
        common: α of personal models, α·θ_came + (1 − α)·θ_own, where θ_own is what this client last made of what came.
            They are what it evaluates; it trains from what came. 1: it keeps nothing, and evaluates what came.
        hooks: Where training differs, as of `train`.
    """

    facts: Profile
    base: Model
    lesson: Lesson
    config: TrainConfig = field(default_factory=TrainConfig)
    private: Sequence[str] = ()
    moments: bool = False
    proximal: float = 0.0
    fast_head: bool = False
    common: float = 1.0
    hooks: Hooks | None = None

    def __post_init__(self) -> None:
        self._cache: dict[str, Bound] = {}

    def profile(self) -> Profile:
        """Say who this client is."""
        return replace(self.facts, examples=len(self.lesson))

    def templates(self, head: OrderHead) -> dict[str, Tensor]:
        """Shapes of what is trained in the order's Subnet, without what is private; and of moments, where they come."""
        bound = self._bound(head)
        found = {name: value.detach() for name, value in bound.trained().items() if not is_private(name, self.private)}
        comes = head.action == EVALUATE and bool(head.settings.get(MOMENTS))
        return found | (self._moments(bound, head) if comes else {})

    def act(self, work: Work) -> Answer:
        """Train, measure statistics of batch norms, or evaluate, as the order says."""
        bound = self._bound(work.head)
        bound.load(work.static)
        bound.load({name: value for name, value in work.tensors.items() if not is_moment(name)})
        bound.load({name: value for name, value in work.kept.tensors.items() if self._fits(bound, name, value)})
        if work.head.action == MEASURE:
            settle(bound.module, self.lesson)
            return Answer(weight=len(self.lesson), tensors=self._moments(bound, work.head))
        if work.head.action == EVALUATE:
            bound.load(mixed(bound, work.kept.tensors, self.common))
        self._normalise(work, bound)
        return self.evaluate(bound) if work.head.action == EVALUATE else self.learn(work, bound)

    def evaluate(self, bound: Bound) -> Answer:
        """Score on the examples held out."""
        bound.module.eval()
        count, metrics = self.lesson.score(bound.module)
        return Answer(weight=count, metrics=metrics)

    def learn(self, work: Work, bound: Bound) -> Answer:
        """Train with the shared loop."""
        config = TrainConfig.from_mapping({**self.config.to_mapping(), **work.head.settings.get("train", {})})
        extra, said = self.remember(work, bound)
        task = self.task_for(work, bound, extra)
        if self.fast_head:
            task = faster_head(task, bound.model)
        if self.proximal:
            came = [(value, value.detach().clone()) for name, value in bound.trained().items() if name in work.tensors]
            task = replace(task, loss=_Near(task.loss, came, self.proximal))
        hooks = self.hooks_for(work, bound)
        if self.moments:
            losses, carried = continued(work, bound, task, config, hooks)
        else:
            losses, carried = train(task, config, seed=work.head.seed, hooks=hooks).losses, Kept()
        private = [name for name in bound.trained() if is_private(name, self.private)]
        answered = bound.values(self.answered(work, bound))
        mine = {MINE + name: value for name, value in answered.items()} if self.common < 1 else {}
        keep = {**bound.values(private), **carried.tensors, **extra, **mine}
        if self._has_own_norms(bound):
            settle(bound.module, self.lesson)
            keep |= moments_of(bound.model, OWN)
        done = int(work.kept.facts.get("steps", 0)) + len(losses)
        whose = {"subnet": dict(work.head.subnet)} if work.head.subnet is not None else {}
        return Answer(
            weight=len(self.lesson), tensors=answered, metrics={"loss": sum(losses) / max(1, len(losses))},
            keep=Kept(keep, {"steps": done, **carried.facts, **whose, **said}) if keep or said else None,
        )  # fmt: skip

    def remember(self, work: Work, bound: Bound) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and facts to keep besides, found before training; names of tensors hold a ``|``."""
        return {}, {}

    def task_for(self, work: Work, bound: Bound, kept: Mapping[str, Tensor]) -> Task:
        """Return what is trained for an order, given what `remember` returned; default: the lesson's task."""
        return self.lesson.task(bound.module)

    def answered(self, work: Work, bound: Bound) -> Sequence[str]:
        """Return the names of the tensors that go back; default: those that came."""
        return list(work.tensors)

    def hooks_for(self, work: Work, bound: Bound) -> Hooks | None:
        """Return where training differs for an order; default: `hooks`."""
        return self.hooks

    def _normalise(self, work: Work, bound: Bound) -> None:
        """Give batch norms the statistics that came, or those of its own examples where nobody measures theirs."""
        own, came = self._has_own_norms(bound), bool(work.head.settings.get(MOMENTS))
        let_follow(bound.module, own or came)
        if (own or came) and work.head.action != EVALUATE:
            return  # every batch has its own
        if came and not own:
            take_moments(bound.model, work.tensors, prefix_of(self._size(bound, work.head)))
        elif own or is_cut(self.base, bound.model):
            settle(bound.module, self.lesson)

    def _has_own_norms(self, bound: Bound) -> bool:
        """Whether batch norms are part of what this client has for itself."""
        own = (
            bound.trained() if self.common < 1 else [name for name in bound.trained() if is_private(name, self.private)]
        )
        return moved(bound.model, own)

    def _moments(self, bound: Bound, head: OrderHead) -> dict[str, Tensor]:
        return moments_of(bound.model, prefix_of(self._size(bound, head)))

    def _size(self, bound: Bound, head: OrderHead) -> Mapping[str, int] | None:
        return head.subnet if is_cut(self.base, bound.model) else None

    def _bound(self, head: OrderHead) -> Bound:
        """The module of an order's Subnet, built once per order."""
        if head.ticket not in self._cache:
            self._cache.clear()
            small = cut_model(self.base, head.subnet)
            self._cache[head.ticket] = Bound.of(self.base, small, self.lesson.around(small), head.subnet)
        return self._cache[head.ticket]

    def _fits(self, bound: Bound, name: str, value: Tensor) -> bool:
        parameter = bound.parameters.get(name)
        return is_private(name, self.private) and parameter is not None and parameter.shape == value.shape


def continued(
    work: Work, bound: Bound, task: Task, config: TrainConfig, hooks: Hooks | None = None
) -> tuple[tuple[float, ...], Kept]:
    """Train on from the moments and the position in the data that an earlier order left.

    Args:
        work: The order; what was kept holds the moments, steps and the seed.
        bound: Whose moments are kept, by global name; what else the task trains starts its optimizer anew.
        task: What is trained, its module being that of `bound`.
        config: Settings of this order's steps.
        hooks: Where training differs.

    Returns:
        The losses of this order, and what to keep for the next one.
    """
    done = int(work.kept.facts.get("steps", 0))
    carried = Carried(work.kept, done, bound)
    stretched = replace(config, steps=done + config.steps, schedule="constant", warmup=0, checkpoint_seconds=math.inf)
    # The seed of the first order for all: the position in the data is then a matter of the step.
    seed = int(work.kept.facts.get("seed", work.head.seed))
    losses = train(task, stretched, seed=seed, hooks=hooks, checkpoint=carried).losses[done:]
    return losses, Kept(carried.moments, {"steps": done + len(losses), "seed": seed})


def mixed(bound: Bound, kept: Mapping[str, Tensor], common: float) -> dict[str, Tensor]:
    """Return α·θ + (1 − α)·θ_own of what a client kept under `MINE` and that has the shape it has in a module.

    Args:
        bound: The module, with θ in it.
        kept: What the client kept.
        common: α.
    """
    own = {name.removeprefix(MINE): value for name, value in kept.items() if name.startswith(MINE)}
    here = {name: bound.parameters[name].detach().cpu() for name in own if name in bound.parameters}
    return {
        name: torch.lerp(own[name], value, common) for name, value in here.items() if value.shape == own[name].shape
    }


class _Near:
    """A task's loss, and how far the weights are from those that came."""

    def __init__(self, loss: Loss, came: Sequence[tuple[nn.Parameter, Tensor]], weight: float) -> None:
        self._loss, self._came, self._weight = loss, came, weight

    def __call__(self, module: Any, batch: Batch) -> Tensor:
        far = torch.stack([(value - start).square().sum() for value, start in self._came]).sum()
        return self._loss(module, batch) + 0.5 * self._weight * far


class Carried(Checkpoint):
    """Hands moments of an earlier order to the training loop, and takes those of this one out; nothing is written.

    Moments are kept under global names. Those of a tensor that another Subnet gives another shape are left out.

    Args:
        kept: What the client kept; its tensors ``moment|…`` are used.
        done: Steps done before.
        bound: What is trained.
    """

    def __init__(self, kept: Kept, done: int, bound: Bound) -> None:
        super().__init__(Path(), {})
        self._kept, self._done = kept, done
        inside = {id(value): name for name, value in bound.module.named_parameters()}
        self._local = {name: inside[id(value)] for name, value in bound.parameters.items() if id(value) in inside}
        self._shapes = {name: value.shape for name, value in bound.parameters.items()}
        self.moments: dict[str, Tensor] = {}

    def load(self, events: EventStream | None = None) -> Saved | None:
        """Return the kept moments, without weights."""
        if not self._done:
            return None
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self._kept.tensors.items():
            kind, _, rest = name.partition("|")
            if kind == "moment":
                owner, _, key = rest.rpartition("|")
                found.setdefault(owner, {})[key] = value
        tensors = {
            f"optimizer/{self._local[owner]}/{key}": value
            for owner, values in found.items()
            if owner in self._local and all(v.shape == self._shapes[owner] for v in values.values() if v.ndim)
            for key, value in values.items()
        }
        state: dict[str, Any] = {"steps": self._done, "losses": [0.0] * self._done, "seconds": 0.0}
        return Saved(self._done, tensors, state)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any = None) -> None:
        """Take the moments out."""
        origin = {local: name for name, local in self._local.items()}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            owner, _, key = rest.rpartition("/")
            if kind == "optimizer" and owner in origin:
                self.moments[f"moment|{origin[owner]}|{key}"] = value.detach().cpu().clone()
