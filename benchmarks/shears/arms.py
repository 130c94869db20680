"""Arms on classes of texts: what is trained on what, and how right it is at every rank."""

# N texts, K classes

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shears.merging import logits_of, merging
from benchmarks.shears.names import ARMS, SHARE, Arm, served, used
from benchmarks.shears.speed import Timed, timed
from benchmarks.shears.texts import Windows, Words
from lissome.core.seeds import derive
from lissome.engine.classify import Classifier, Encoded, classification, correct
from lissome.engine.hooks import Hooks, Task
from lissome.engine.sparsify import Pruning, prunable, sparsify
from lissome.engine.supernet import Paths
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import Design, LowRank, Masked, Quantised, adapters, add_adapters, merge_lora, rank_space
from lissome.models.adapters.elastic import grouped
from lissome.models.adapters.layers import quantise
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.lowrank import truncated

BITS, COLUMNS = 4, 32
FASTER = 5.0
"""Learning rate of a head, which starts from noise, over that of the adapters."""
STEPS, BATCH, WARMUP = 3000, 16, 50
"""Three epochs of the texts, as in the papers."""
TIMED, ROUNDS, TURN = ("lora", "nls", "masked", "quantised"), 8, 12
"""Arms whose steps are timed, how often each has its turn, and steps of a turn."""
_SLOWLY = 1e-4  # a rate at which nothing goes wrong while steps are timed
_LOOKED_AT = 64  # texts whose logits are compared before and after a merge


@dataclass(frozen=True, eq=False)
class Tuned:
    """An arm's model.

    Attributes:
        arm: The arm.
        model: The model with its adapters.
        classifier: It, and the head.
        space: Its ranks.
        hooks: What draws ranks, where there are several.
    """

    arm: Arm
    model: Model
    classifier: Classifier
    space: Space
    hooks: Hooks | None

    def task(self, texts: Encoded) -> Task:
        """Return what is trained; the head learns `FASTER` times as fast."""
        head = (name for name, _ in self.classifier.named_parameters() if name.startswith("head."))
        return replace(classification(self.classifier, texts), rates=dict.fromkeys(head, FASTER))

    def path(self, rank: int) -> Subnet:
        """The same rank in all groups."""
        return Subnet({axis.name: rank for axis in self.space.axes})


@lru_cache(maxsize=1)
def base(model: Model, kind: str, share: float, seed: int, data: Words | Windows) -> Model:
    """Return a model without adapters, never to be changed: pruned by what the seed draws, or dense."""
    if kind == "dense":
        return model
    pruned = model.derived(copy.deepcopy(model.module))
    batches = data.inputs(seed) if kind == "wanda" else ()
    sparsify(pruned, batches, Pruning(amount=share, by=kind))  # type: ignore[arg-type]
    return pruned


def adapted(given: Model, arm: Arm, seed: int) -> Model:
    """Return a copy with an arm's adapters, the same first weights for all arms of a rank, and the rest frozen.

    The model's own dropout is off, in all arms.
    """
    model = given.derived(copy.deepcopy(given.module))
    for part in model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    make: Any = {"masked": Masked, "quantised": partial(Quantised, bits=BITS, columns=COLUMNS)}.get(
        arm.adapter, LowRank
    )
    if arm.adapter == "none":
        model.module.requires_grad_(False)
        return model
    if arm.adapter == "quantised":
        bare = sorted(set(prunable(model)) - set(grouped(model)))
        for name in bare:  # what has no adapter is quantised too
            quantise(model.module.get_submodule(name), BITS, COLUMNS)
    design = Design(ranks=arm.ranks, alpha=arm.scale * arm.ranks[0], dropout=arm.dropout, make=make)
    add_adapters(model, design, seed=derive(seed, "adapters"))
    return model


def tuned(given: Model, arm: Arm, seed: int, classes: int) -> Tuned:
    """Return what is to be trained."""
    model = adapted(given, arm, seed)
    space = rank_space(model)
    draws = Paths(model, space, together=arm.draws == "together") if arm.draws != "largest" else None
    return Tuned(arm, model, Classifier(model, classes, seed=derive(seed, "head")), space, draws)


def settings(rate: float, **more: Any) -> TrainConfig:
    """What all arms are trained with."""
    return TrainConfig(lr=rate, **{"steps": STEPS, "batch": BATCH, "warmup": WARMUP, **more})


def settings_of(arm: Arm, rate: float) -> TrainConfig:
    """What an arm is trained with."""
    return settings(rate, steps=arm.steps or STEPS)


def measured(arm: Arm, rate: float, seed: int, model: Model, texts: Words) -> dict[str, Any]:
    """Train one arm.

    Returns:
        By cut (a rank, perhaps with how it was cut): which ``test`` texts are right, as packed bits. The mean
        ``validation`` accuracy of the cuts that the arm is to serve; mean loss of the first and last fiftieth of the
        steps; seconds; what `merging` says, for arms on sparse weights.
    """
    one = tuned(base(model, arm.base, SHARE, seed, texts), arm, seed, int(texts.train.labels.max()) + 1)
    done = train(one.task(texts.train), settings_of(arm, rate), seed=seed, hooks=one.hooks)
    part = max(1, len(done.losses) // 50)
    found: dict[str, Any] = {
        "loss": [sum(losses) / part for losses in (done.losses[:part], done.losses[-part:])],
        "seconds": done.seconds, "steps": done.steps, "test": {},
    }  # fmt: skip
    validation = []
    for cut, classifier in _cuts(one):
        found["test"][cut] = packed(correct(classifier.eval(), texts.test))
        if cut in served(arm):
            validation.append(float(correct(classifier.eval(), texts.validation).float().mean()))
    found["validation"] = sum(validation) / len(validation)
    if arm.adapter != "none" and arm.base != "dense":
        found["merging"] = merged(one, texts.test)
    return found


def _cuts(one: Tuned) -> Iterator[tuple[str, nn.Module]]:
    """Yield every cut of an arm, and its classifier while it is cut like that."""
    arm = one.arm
    if len(arm.ranks) < 2:
        yield "".join(map(str, arm.ranks)), one.classifier
    elif arm.adapter != "plain":
        for rank in arm.ranks:
            yield str(rank), cut_out(one, rank, merge=True)
    else:
        yield from ((str(rank), classifier) for rank, classifier in _masked(one, arm.ranks))
        if arm.draws == "largest":
            turned(one.model)
            yield from ((f"svd {rank}", classifier) for rank, classifier in _masked(one, arm.ranks[1:]))


def _masked(one: Tuned, ranks: tuple[int, ...]) -> Iterator[tuple[int, nn.Module]]:
    for rank in ranks:
        with masked(one.model, one.path(rank), space=one.space):
            yield rank, one.classifier


def cut_out(one: Tuned, rank: int, *, merge: bool = False) -> Classifier:
    """Return the classifier of a smaller rank as a model of its own, its adapters merged where that is asked for."""
    small = extract(one.model, one.path(rank), space=one.space)
    if merge:
        merge_lora(small)
    classifier = Classifier(small, len(one.classifier.head.bias))
    classifier.head.load_state_dict(one.classifier.head.state_dict())
    return classifier.eval()


@torch.no_grad()
def turned(model: Model) -> None:
    """Turn trained pairs so that the leading part of each, of any rank, is the nearest product of that rank."""
    for adapter in adapters(model.module).values():
        a, b = truncated(adapter.A, adapter.B, adapter.rank)
        adapter.A.copy_(a)
        adapter.B.copy_(b)


def merged(one: Tuned, texts: Encoded) -> dict[str, Any]:
    """Merge the rank that the arm is used with, and say what that does."""
    small = extract(one.model, one.path(int(used(one.arm))), space=one.space)
    classifier = Classifier(small, len(one.classifier.head.bias))
    classifier.head.load_state_dict(one.classifier.head.state_dict())
    every = max(1, len(texts) // _LOOKED_AT)
    return merging(small, lambda: logits_of(classifier, texts.ids[::every], texts.mask[::every]))


def timing(model: Model, texts: Words) -> dict[str, Any]:
    """Time the steps of arms on one sparse base; see `speed.timed`."""
    sparse, arms = base(model, "wanda", SHARE, 0, texts), dict[str, Timed]()
    for name in TIMED:
        one = tuned(sparse, ARMS[name], 0, int(texts.train.labels.max()) + 1)
        arms[name] = Timed(one.task(texts.train), one.hooks)
    return timed(arms, settings(_SLOWLY, steps=TURN, warmup=0), rounds=ROUNDS)


def packed(right: Tensor) -> dict[str, Any]:
    """Pack Bool[N] for a file."""
    return {"n": len(right), "bits": np.packbits(right.numpy()).tobytes().hex()}


def unpacked(stored: dict[str, Any]) -> np.ndarray:
    """Undo `packed`: float64[N] of zeros and ones."""
    bits = np.frombuffer(bytes.fromhex(stored["bits"]), dtype=np.uint8)
    return np.unpackbits(bits, count=stored["n"]).astype(np.float64)
