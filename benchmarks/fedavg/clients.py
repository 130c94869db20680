"""MiniLM, classes that its tokens tell, and clients that learn them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lissome.engine.classify import Encoded
from lissome.engine.federate.client import Worker
from lissome.engine.federate.lessons import Classes
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.training import TrainingClient
from lissome.engine.train import TrainConfig
from lissome.models.labels import with_labels
from lissome.models.model import Model
from lissome.pipeline import load

CLASSES = ("a", "b", "c")
LENGTH = 32
_LOWEST, _WIDTH = 1000, 300  # the tokens of class k are _WIDTH from _LOWEST + k · _WIDTH on
_FROZEN = "embeddings"


def encoder(seed: int) -> Model:
    """Return MiniLM with a head for the classes; its embeddings are frozen, as they are by default."""
    model = with_labels(load("minilm"), CLASSES, seed=seed)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(_FROZEN not in name)
    return model


def lesson(seed: int, texts: int) -> Classes:
    """Return texts of one client; nothing is held out."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(CLASSES), (texts,), generator=generator)
    ids = torch.randint(_WIDTH, (texts, LENGTH), generator=generator) + _LOWEST + labels[:, None] * _WIDTH
    learned = Encoded(ids, torch.ones_like(ids), labels)
    return Classes(learned, learned.some([]), len(CLASSES))


def clients(
    model: Model, count: int, folder: Path, config: TrainConfig, *, seed: int, texts: int, budget: str = ""
) -> dict[str, Callable[[], Worker]]:
    """Return what makes each client when it is asked; nothing of it stays in memory in between.

    Args:
        model: What all of them train.
        count: How many.
        folder: Their disks.
        config: Of the training loop.
        seed: Of their texts.
        texts: How many each has.
        budget: Of the device of every other client.
    """

    def make(index: int) -> Worker:
        facts = Profile(name=f"c{index:03d}", examples=texts, budget=budget if index % 2 else "")
        client = TrainingClient(facts=facts, base=model, lesson=lesson(1000 * seed + index, texts), config=config)
        return Worker(client, ClientStore(folder / facts.name))

    return {f"c{index:03d}": partial(make, index) for index in range(count)}
