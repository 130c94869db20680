"""A client's own model and a knowledge network that travels learn from the same examples and from each other.

Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384), as FedKEMF and RaFL exchange knowledge: with logits z of the
own model and u of the knowledge network,

    L_own = CE(z, y) + λ·KL(softmax(u) ‖ softmax(z)),  L_knowledge = CE(u, y) + λ·KL(softmax(z) ‖ softmax(u)),

where the opinion of the other is taken as given. The own model stays with the client, whatever its architecture.
"""

# B examples, K classes or tokens

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from lissome.engine.federate.bound import Bound, cut_model
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.norms import OWN, is_moment, let_follow, moments_of, settle, take_moments
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.store import Kept
from lissome.engine.federate.training import Lesson, continued
from lissome.engine.hooks import Batch, Task
from lissome.engine.train import TrainConfig, train
from lissome.models.model import Model

KNOWLEDGE = "knowledge/"
"""Beginning of the names of tensors of the knowledge network."""


def knowledge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of the knowledge network by the names that they have in their own model."""
    return _parameters(tensors, KNOWLEDGE)


def own_parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a client's own model, of what it kept."""
    return _parameters(tensors, OWN)


def _parameters(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if not is_moment(name)}


@dataclass(kw_only=True, eq=False)
class MutualClient:
    """Trains its own model, which it keeps, beside the knowledge network, which travels.

    Settings of an order may hold ``"knowledge"``, the Subnet of the knowledge network, and ``"train"``.

    Attributes:
        facts: Who it is.
        base: The whole model that both are cut from.
        lesson: What it learns.
        config: Settings of the training loop.
        peer: λ.
        moments: Whether the optimizer's moments of its own model and the position in the data are kept between rounds.
            Those of the knowledge network never are: what comes back is the mean of many.
    """

    facts: Profile
    base: Model
    lesson: Lesson
    config: TrainConfig
    peer: float = 1.0
    moments: bool = False

    def profile(self) -> Profile:
        """Say who this client is."""
        return replace(self.facts, examples=len(self.lesson))

    def templates(self, head: OrderHead) -> dict[str, Tensor]:
        """Shapes of the knowledge network and of what is shared of the own model, as far as the order says."""
        own, other = self._own(head), self._other(head)
        found = {KNOWLEDGE + name: value.detach() for name, value in (other.trained() if other else {}).items()}
        found |= moments_of(other.model, KNOWLEDGE) if other else {}
        if head.settings.get("overlap"):
            found |= {name: value.detach() for name, value in own.trained().items()}
        return found

    def act(self, work: Work) -> Answer:
        """Train both, or evaluate both."""
        own, other = self._own(work.head), self._other(work.head)
        kept = own_parameters(work.kept.tensors)
        own.load({name: value for name, value in kept.items() if _fits(own, name, value)})
        own.load({name: value for name, value in work.tensors.items() if not name.startswith(KNOWLEDGE)})
        if other is not None:
            other.load(knowledge(work.tensors))
            take_moments(other.model, work.tensors, KNOWLEDGE)
        return self._judged(work, own, other) if work.head.action == "evaluate" else self._trained(work, own, other)

    def _trained(self, work: Work, own: Bound, other: Bound | None) -> Answer:
        config = TrainConfig.from_mapping({**self.config.to_mapping(), **work.head.settings.get("train", {})})
        pair = nn.ModuleDict({"own": own.module, **({"other": other.module} if other is not None else {})})
        let_follow(pair, True)
        task = Task(module=pair, loss=_Mutual(self.lesson, self.peer), data=self.lesson.task(own.module).data)
        if self.moments:
            losses, carried = continued(work, replace(own, module=pair), task, config)
        else:
            losses, carried = train(task, config, seed=work.head.seed).losses, Kept()
        for part in pair.values():
            settle(part, self.lesson)  # batch norms have followed each batch; to be judged they need those of many
        found = own.values(list(own.trained()))
        answer = {name: value for name, value in found.items() if name in work.tensors}
        if other is not None:
            answer |= {KNOWLEDGE + name: value for name, value in other.values(list(other.trained())).items()}
            answer |= moments_of(other.model, KNOWLEDGE)
        facts = {"subnet": dict(work.head.subnet) if work.head.subnet is not None else None, **carried.facts}
        keep = {**{OWN + name: value for name, value in found.items()}, **moments_of(own.model, OWN)}
        return Answer(
            weight=len(self.lesson), tensors=answer, metrics={"loss": sum(losses) / max(1, len(losses))},
            keep=Kept({**keep, **carried.tensors}, facts),
        )  # fmt: skip

    def _judged(self, work: Work, own: Bound, other: Bound | None) -> Answer:
        merged = any(not name.startswith(KNOWLEDGE) for name in work.tensors)
        cut = work.head.subnet is not None
        if merged or (not take_moments(own.model, work.kept.tensors, OWN) and cut):
            settle(own.module, self.lesson)
        own.module.eval()
        count, found = self.lesson.score(own.module)
        if other is not None:
            other.module.eval()
            found |= {KNOWLEDGE + name: value for name, value in self.lesson.score(other.module)[1].items()}
        return Answer(weight=count, metrics=found)

    def _own(self, head: OrderHead) -> Bound:
        return self._cut(head.subnet)

    def _other(self, head: OrderHead) -> Bound | None:
        return self._cut(head.settings["knowledge"]) if "knowledge" in head.settings else None

    def _cut(self, subnet: Mapping[str, int] | None) -> Bound:
        return bound_of(self.base, subnet, self.lesson)


def bound_of(base: Model, subnet: Mapping[str, int] | None, lesson: Lesson) -> Bound:
    """Return a Subnet of a model with a lesson's module around it."""
    small = cut_model(base, subnet)
    return Bound.of(base, small, lesson.around(small), subnet)


class _Mutual:
    """Sum of both losses; each network's gradient comes from its own, because the other's opinion is detached."""

    def __init__(self, lesson: Lesson, peer: float) -> None:
        self._lesson, self._peer = lesson, peer

    def __call__(self, module: Any, batch: Batch) -> Tensor:
        logits = {name: self._lesson.outputs(part, batch.examples) for name, part in module.items()}
        loss = torch.stack([self._lesson.losses(one, batch.examples) for one in logits.values()]).sum(0)
        if len(logits) > 1:
            own, other = (log_softmax(one, -1) for one in logits.values())
            loss = loss + self._peer * (_apart(own, other.detach()) + _apart(other, own.detach()))
        return loss


def _apart(opinion: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted ‖ opinion) of each example in nats, the mean over its tokens, of log-probabilities."""
    apart = kl_div(opinion, wanted, log_target=True, reduction="none").sum(-1)
    return apart.view(len(apart), -1).mean(1)


def _fits(bound: Bound, name: str, value: Tensor) -> bool:
    return name in bound.parameters and bound.parameters[name].shape == value.shape
