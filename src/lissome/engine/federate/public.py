"""Public examples at the server: a phase of training of its own, after that of the clients.

In every round the server takes some optimizer steps on examples that belong to nobody, from the tensors that were
merged; FFM (Yu et al. 2023) alternates so between public data and silos.
"""

# N examples, T tokens

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lissome.core.errors import ConfigError, DataError
from lissome.core.seeds import derive
from lissome.data.images import read_images
from lissome.data.labelled import read_labelled
from lissome.data.sources import read_corpus
from lissome.data.text import Encoder, all_windows
from lissome.engine.classify import encode
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import with_threads
from lissome.engine.federate.hidden import Hidden, HiddenTokens
from lissome.engine.federate.lessons import Classes, Pictures, Tokens
from lissome.engine.federate.training import Lesson
from lissome.engine.images import examples
from lissome.engine.train import TrainConfig, train
from lissome.models.labels import labels_of
from lissome.models.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerPhase:
    """What the server trains on in every round.

    Attributes:
        lesson: Its examples.
        config: Settings of the training loop.
        seed: Of all that is drawn.
    """

    lesson: Lesson
    config: TrainConfig
    seed: int

    def train(self, bound: Bound, names: list[str], round: int) -> float:
        """Train some parameters of a module in place, with one thread as clients do; return the mean loss."""
        still = [value for name, value in bound.trained().items() if name not in names]
        for value in still:
            value.requires_grad_(False)
        try:
            with with_threads(1):
                losses = train(
                    self.lesson.task(bound.module), self.config, seed=derive(self.seed, "server", round)
                ).losses
        finally:
            for value in still:
                value.requires_grad_(True)
        return sum(losses) / max(1, len(losses))


def public_lesson(model: Model, lesson: Lesson, file: str) -> Lesson:
    """Read public examples of what a federation learns.

    Args:
        model: Its tokenizer reads the texts.
        lesson: The server's, by whose held-out examples the global model is judged.
        file: Labelled texts or images, or documents where tokens are learned.

    Raises:
        ConfigError: When the model is judged by some of the examples.
        DataError: When the file cannot be read.
    """
    if isinstance(lesson, Tokens | Hidden):
        judged = lesson.held_out if isinstance(lesson, Tokens) else lesson.held_out.windows
        encoder = Encoder(model.tokenizer, model.anatomy.vocabulary)
        windows = all_windows(read_corpus(Path(file)), encoder, length=judged.shape[1])
        refuse_judged(windows, judged)
        if isinstance(lesson, Tokens):
            return Tokens(windows, windows[:0])
        hidden = HiddenTokens.of(windows, model)
        return Hidden(hidden, hidden.some([]), hidden.vocabulary)
    if isinstance(lesson, Pictures):
        return _public_pictures(model, lesson, file)
    if not isinstance(lesson, Classes):
        raise ConfigError("public examples are texts or images; leave public out where clients learn something else.")
    known = labels_of(model)
    rows = encode(model, read_labelled(file, classes=known), length=lesson.held_out.ids.shape[1])
    if len(known) != lesson.classes:
        raise DataError(f"the model has no names of the {lesson.classes} classes, so that {file} cannot say them.")
    refuse_judged(rows.ids, lesson.held_out.ids)
    return Classes(rows, rows.some([]), lesson.classes, lesson.seed)


def _public_pictures(model: Model, lesson: Pictures, file: str) -> Pictures:
    judged = lesson.held_out.images
    images = read_images(file, classes=judged.classes)
    known = {picture().tobytes() for picture in judged.pictures}
    common = sum(picture().tobytes() in known for picture in images.pictures)
    if common:
        raise ConfigError(f"{common} public images are among those that the model is judged by; take others.")
    rows = examples(model, images)
    return Pictures(rows, rows.some([]), lesson.classes, lesson.seed)


def refuse_judged(public: Tensor, judged: Tensor) -> None:
    """Refuse public examples that are among those that the model is judged by.

    Args:
        public: Token ids LongTensor[N, T], 0 is padding.
        judged: Others, perhaps of another T.

    Raises:
        ConfigError: When there are some.
    """
    known = {_plain(one) for one in judged}
    common = sum(_plain(one) in known for one in public)
    if common:
        raise ConfigError(f"{common} public texts are among those that the model is judged by; take others.")


def _plain(row: Tensor) -> tuple[Any, ...]:
    return tuple(row[row != 0].tolist())
