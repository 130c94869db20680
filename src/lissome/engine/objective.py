"""What a model is to be good at: the next token of text, classes of labelled texts or images, masks, or answers.

A method that trains asks its objective for the inputs to calibrate on, the task of the training loop and what to choose
by; so one method serves causal language models, encoders and networks of images alike.
"""

# N examples, B texts, T tokens

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from lissome.core.method import ModelCard
from lissome.core.protocols import Splits
from lissome.data.labelled import Labelled
from lissome.data.text import spread
from lissome.engine.classify import Encoded, OwnHead, answers, classification, encode, logits_of
from lissome.engine.elastic import Elastic, Heard, lesson_loss
from lissome.engine.exampled import ExampleSplits, OfExamples
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.pictures import ImageSplits, Pictures
from lissome.engine.recover import RecoverConfig, shorter, token_loss
from lissome.engine.scoring import bounded_exp, perplexity, score_text
from lissome.engine.search.found import Split
from lissome.engine.segments import Segments, SegmentSplits
from lissome.engine.spans import Spans, SpanSplits
from lissome.engine.stream import Inputs, windows_of
from lissome.engine.train import TrainConfig
from lissome.engine.walk import Walk
from lissome.models.labels import head_parameters, puts_images_into_classes
from lissome.models.model import Model
from lissome.models.precision import fast_dtype, in_dtype

FASTER = 10.0
"""Learning rate of a new head over that of what lies below it."""
_SHARES = {"recovery": 0.7, "selection": 0.1, "test": 0.2}
_SEARCHED = {"recovery": 0.6, "search": 0.1, "selection": 0.1, "test": 0.2}
_SEEN = 512  # most texts that a search looks at for every candidate
_LENGTH = 128  # tokens of a text beyond which it is cut; most sentences and short reviews have fewer


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelSplits(ExampleSplits[Encoded]):
    """Labelled texts for every purpose."""

    noun: ClassVar[str] = "texts"

    @property
    def calibration(self) -> Tensor:
        """Ids of the texts that calibration may look at, LongTensor[N, T]."""
        return self.recovery.ids


def tokens_of(model: Model, data: Labelled) -> Encoded:
    """Tokenise labelled texts for a model, cut to 128 tokens or to what it has positions for.

    Raises:
        DataError: When the model has no tokenizer, or one that cannot pad.
    """
    most = int(getattr(model.module.config, "max_position_embeddings", _LENGTH))
    return encode(model, data, length=min(_LENGTH, most))


def label_splits(model: Model, data: Labelled, *, searched: bool = False) -> LabelSplits:
    """Deal labelled texts out and tokenise them for a model; the split does not depend on a job's seed.

    Args:
        model: With its tokenizer.
        data: The texts.
        searched: Whether there is to be a split for a search too.

    Raises:
        DataError: When there are too few texts for every part, or the model's tokenizer cannot pad.
    """
    shares = _searched_shares(len(data)) if searched else _SHARES
    parts = {name: tokens_of(model, part) for name, part in data.parts(shares, seed=0).items()}
    digest = hashlib.sha256(json.dumps([data.sha256, shares]).encode())
    for part in parts.values():
        digest.update(part.ids.numpy().tobytes())
    return LabelSplits(**parts, classes=data.classes, source=data.name, fingerprint=digest.hexdigest())


def _searched_shares(count: int) -> dict[str, float]:
    """Shares of each part: what every candidate is judged by is no larger than it must be, the rest is trained on."""
    seen = {name: min(_SEARCHED[name], most / count) for name, most in (("search", _SEEN), ("selection", 2 * _SEEN))}
    return {"recovery": 1 - _SEARCHED["test"] - sum(seen.values()), **seen, "test": _SEARCHED["test"]}


class Objective(Protocol):
    """What training, calibration and choice go by."""

    names: ClassVar[tuple[str, ...]]
    """Names of the figures, the most important first."""

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` examples for calibration."""

    def task(self, model: Model) -> Task:
        """Return the task of the training loop; thaws what must be trained beside adapters."""

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Return the task's loss with another opinion in it: of a model, or of the largest Subnet on the same examples.

        See `lissome.engine.elastic.taught_loss` and `lissome.engine.elastic.inplace_loss`.
        """

    def training(self, *, steps: int, lr: float, batch: int | None, max_seconds: float | None) -> TrainConfig:
        """Settings of the training loop; `batch` None is the objective's own choice."""

    def figures(self, model: Model, split: Split) -> dict[str, float]:
        """How good a model is on a split, by name of the figure."""

    @property
    def splits(self) -> Mapping[str, str]:
        """What each split is that there is; see `figures`."""

    @property
    def selects(self) -> bool:
        """Whether there are examples to choose by."""

    def loss(self, model: Model) -> float:
        """Mean loss on the examples to choose by."""

    def quality(self, loss: float) -> Mapping[str, float]:
        """What a curve says of such a loss."""


@dataclass(frozen=True)
class NextToken:
    """Windows of text, and the mean loss of their next tokens."""

    data: Splits
    names: ClassVar[tuple[str, ...]] = ("ppl",)

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` examples for calibration."""
        return windows_of(spread(self.data.recovery, count))

    def task(self, model: Model) -> Task:
        """Return the task of the training loop."""
        return Task(module=model.module, loss=token_loss(model), data=shorter(self.data.recovery))

    def training(self, *, steps: int, lr: float, batch: int | None, max_seconds: float | None) -> TrainConfig:
        """Settings of the training loop; `batch` counts windows of up to 256 tokens."""
        given = {} if batch is None else {"batch": batch}
        config = RecoverConfig(steps=steps, lr=lr, max_seconds=max_seconds, **given)
        return config.training(shorter(self.data.recovery).shape[1])

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Return the loss with a teacher's opinion of every token, always at temperature 1."""
        if isinstance(teacher, Elastic):
            return token_loss(model, Heard(teacher), share)
        device = next(model.module.parameters()).device
        return token_loss(model, in_dtype(teacher, fast_dtype(device)), share)

    def figures(self, model: Model, split: Split) -> dict[str, float]:
        """Perplexity."""
        return {"ppl": perplexity(list(score_text(model, self._windows[split]).nll))}

    @property
    def splits(self) -> Mapping[str, str]:
        """What each split is that there is."""
        found = {name: each for name, each in self._windows.items() if len(each)}
        return {name: f"{len(each)} windows of {each.shape[1]} tokens" for name, each in found.items()}

    @property
    def _windows(self) -> dict[str, Tensor]:
        """Windows by split: every other one that is there to choose by is the search's."""
        kept = self.data.selection
        return {"search": kept[::2], "selection": kept[1::2], "test": getattr(self.data, "test", kept[:0])}

    @property
    def selects(self) -> bool:
        """Whether there are windows to choose by."""
        return len(self.data.selection) > 0

    def loss(self, model: Model) -> float:
        """Mean next-token loss on the windows to choose by."""
        return float(Walk(model, self.data.selection).plain().mean())

    def quality(self, loss: float) -> Mapping[str, float]:
        """Perplexity."""
        return {"ppl": bounded_exp(loss)}


@dataclass(frozen=True)
class Classes(OfExamples):
    """Labelled texts, and the cross entropy of their classes under the model's own head, which is trained too."""

    data: LabelSplits
    size: ClassVar[int] = 16
    names: ClassVar[tuple[str, ...]] = ("accuracy", "loss")

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` examples for calibration."""
        return list(self.spread(count).batches())

    def task(self, model: Model) -> Task:
        """Return the task of the training loop; the head learns with the adapters."""
        for parameter in head_parameters(model):
            parameter.requires_grad_(True)
        return classification(OwnHead(model), self.data.recovery)

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Return the loss with a teacher's opinion of every text."""

        def judge(logits: Tensor, batch: Batch) -> Tensor:
            return F.cross_entropy(logits.float(), batch.examples[2], reduction="none")

        asked = teacher if isinstance(teacher, Elastic) else OwnHead(teacher)
        return lesson_loss(logits_of, judge, asked, share=share, temperature=temperature)

    def each(self, model: Model, split: Split) -> dict[str, Tensor]:
        """Whether the likeliest class of every text is right, and its cross entropy."""
        texts = getattr(self.data, split)
        found = answers(OwnHead(model), texts)
        return {
            "accuracy": (found.argmax(-1) == texts.labels).double(),
            "loss": F.cross_entropy(found, texts.labels, reduction="none"),
        }


def faster_head(task: Task, model: Model) -> Task:
    """Return a task whose head for classes learns `FASTER` times as fast as what lies below it.

    A new head starts from noise, and AdamW moves every weight by about the learning rate in a step: with the rate that
    suits pre-trained weights it takes hundreds of steps until the head, the pooler above all, lets gradients through.
    """
    if not (puts_images_into_classes(model) or getattr(model.module, "base_model_prefix", None)):
        return task
    head = {id(parameter) for parameter in head_parameters(model)}
    names = [name for name, parameter in task.module.named_parameters() if id(parameter) in head]
    return replace(task, rates={**task.rates, **dict.fromkeys(names, FASTER)})


def objective_of(data: Splits) -> Objective:
    """Return the objective that data is for."""
    if isinstance(data, ImageSplits):
        return Pictures(data)
    if isinstance(data, SegmentSplits):
        return Segments(data)
    if isinstance(data, SpanSplits):
        return Spans(data)
    return Classes(data) if isinstance(data, LabelSplits) else NextToken(data)


def step_tokens(card: ModelCard, batch: int | None) -> int:
    """Tokens of a training step of so many examples (None: the objective's own choice), for a plan without the data."""
    length = card.windows[1]
    if "encoder" in card.tags:
        return (batch or Classes.size) * length
    return (batch or RecoverConfig().batch) * min(length, 256)
