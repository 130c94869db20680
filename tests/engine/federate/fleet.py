"""What tests of federation share: toy data that can be learned, clients, and whole federations in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lissome.cost.oracle import SubnetCost
from lissome.data.images import Images
from lissome.engine.classify import Encoded
from lissome.engine.federate.client import Answer, Work, Worker
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Classes, Pictures
from lissome.engine.federate.local import Device, LocalLink
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Program
from lissome.engine.federate.rounds import Federation, Round, RoundsConfig
from lissome.engine.federate.store import ClientStore, Kept
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import TrainingClient, global_tensors
from lissome.engine.images import examples
from lissome.engine.train import TrainConfig
from lissome.models.model import Model
from lissome.testing.toys import toy_model

QUICK = TrainConfig(steps=3, lr=3e-3, batch=8, schedule="constant", precision="fp32")


def rows(count: int, seed: int, classes: int = 3) -> Encoded:
    """Sequences whose tokens tell the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    ids = torch.randint(3, 20, (count, 6), generator=generator) + labels[:, None] * 13
    return Encoded(ids, torch.ones_like(ids), labels)


def lesson(seed: int, count: int = 24) -> Classes:
    return Classes(rows(count, seed), rows(12, 1000 + seed), 3)


def pictures(count: int, seed: int, classes: int = 3) -> Images:
    """Images of one colour each, which tells the class, in noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    pixels = generator.integers(0, 80, (count, 12, 12, 3)) + 170 * np.eye(classes, 3, dtype=int)[labels][:, None, None]
    made = tuple(partial(np.asarray, one) for one in pixels.astype(np.uint8))
    names = tuple("rgb"[:classes])
    return Images("made", made, tuple(labels.tolist()), names, {}, hashlib.sha256(pixels.tobytes()).hexdigest())


def seen(model: Model, seed: int, count: int = 24) -> Pictures:
    read = examples(model, pictures(count + 12, seed=seed))
    return Pictures(read.some(range(count)), read.some(range(count, count + 12)), 3)


@dataclass
class Adder:
    """A client without a model: adds a number of its own to whatever it is sent, and counts its orders."""

    name: str
    step: float = 1.0
    examples: int = 10
    seen: list[OrderHead] = field(default_factory=list)
    shapes: Mapping[str, Tensor] | None = None

    def profile(self) -> Profile:
        return Profile(name=self.name, examples=self.examples)

    def templates(self, head: OrderHead) -> Mapping[str, Tensor]:
        assert self.shapes is not None
        return self.shapes

    def act(self, work: Work) -> Answer:
        self.seen.append(work.head)
        count = float(work.kept.facts.get("orders", 0)) + 1
        if work.head.action == "evaluate":
            return Answer(weight=self.examples, metrics={"orders": count})
        added = {name: value + self.step * count for name, value in work.tensors.items()}
        return Answer(
            weight=self.examples, tensors=added, metrics={"step": self.step}, keep=Kept({}, {"orders": count})
        )


def adders(tensors: Mapping[str, Tensor], count: int, folder: Path) -> dict[str, Callable[[], Worker]]:
    """Clients ``a0``, ``a1`` …, of which number i adds i + 1 and has 10·(i + 1) examples."""
    made = {}
    for index in range(count):
        client = Adder(f"a{index}", index + 1.0, 10 * (index + 1), shapes=tensors)
        made[client.name] = partial(Worker, client, ClientStore(folder / client.name))
    return made


def federation(
    program: Program,
    who: Mapping[str, Callable[[], Any]],
    folder: Path,
    *,
    devices: Mapping[str, Device] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Federation:
    config = RoundsConfig(**{"rounds": 2, "evaluate_every": 0, **settings})
    link = LocalLink(who, devices, seed=seed)
    return Federation(program, link, config, folder=folder, identity={"federation": "test"}, seed=seed)


@contextmanager
def killed_at(number: int, *, recorded: bool = False) -> Iterator[None]:
    """Interrupt every federation inside when this round is written down: before it, or once it is `recorded`."""
    record = Federation._record

    def killed(self: Federation, one: Round) -> None:
        if one.number != number or recorded:
            record(self, one)
        if one.number == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federation, "_record", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def training_clients(
    model: Model, names: Sequence[str], folder: Path, *, budgets: Mapping[str, str] | None = None, **options: Any
) -> dict[str, Callable[[], Worker]]:
    """Clients that train Subnets of one model, each on data of its own."""
    made = {}
    for index, name in enumerate(names):
        facts = Profile(name=name, examples=0, budget=(budgets or {}).get(name, ""))
        client = TrainingClient(facts=facts, base=model, lesson=lesson(index), **{"config": QUICK, **options})
        made[name] = partial(Worker, client, ClientStore(folder / name))
    return made


def subnet_program(model: Model, *, private: Sequence[str] = (), **options: Any) -> SubnetProgram:
    tensors = global_tensors(model, lesson(0), private)
    planner = Planner(model.space(width=8), SubnetCost(model))
    return SubnetProgram(model, tensors, **{"planner": planner, "lesson": lesson(77), **options})


def digest(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def encoder(**changes: Any) -> Model:
    return toy_model("bert", num_hidden_layers=2, **changes)


def whole(tensors: Mapping[str, Tensor]) -> Layout:
    return Layout.whole(tensors)
