"""What clients commonly learn: classes of texts or images, and the next token."""

# N texts or windows, T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissome.engine.classify import Classifier, Encoded, OwnHead, answers, classification
from lissome.engine.federate.norms import follows
from lissome.engine.forward import quick_attention
from lissome.engine.hooks import Task
from lissome.engine.images import ImageExamples, channels_last, pooled
from lissome.models.example import example
from lissome.models.labels import labels_of
from lissome.models.model import Model


class _Rows(Protocol):
    def __len__(self) -> int: ...

    def some(self, indices: Sequence[int]) -> Self: ...


_Data = TypeVar("_Data", bound=_Rows)


def task_of(lesson: Any, module: Any) -> Task:
    """Return the task of training a module on a lesson's data by its losses of the module's outputs."""
    return Task(
        module=module, data=lesson.data,
        loss=lambda inner, batch: lesson.losses(lesson.outputs(inner, batch.examples), batch.examples),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Examples(Generic[_Data]):
    """Examples to learn from, and others to be judged by: what lessons about rows of one kind have in common."""

    data: _Data
    held_out: _Data
    classes: int
    seed: int = 0

    def __len__(self) -> int:
        """Return the number of examples to learn from."""
        return len(self.data)

    @property
    def held(self) -> int:
        """Number of examples held out."""
        return len(self.held_out)

    def some(self, learned: Sequence[int], held: Sequence[int]) -> Self:
        """Return the lesson with the examples at some positions."""
        return replace(self, data=self.data.some(learned), held_out=self.held_out.some(held))

    def turned(self) -> Self:
        """Return the lesson that is judged by the examples it learns from."""
        return replace(self, held_out=self.data)

    def swapped(self) -> Self:
        """Return the lesson in which what is learned and what is held out change places."""
        return replace(self, data=self.held_out, held_out=self.data)


@dataclass(frozen=True, eq=False)
class Classes(Examples[Encoded]):
    """Texts into classes: by the model's own head where it has one, else by a linear one on its mean hidden state.

    Attributes:
        data: Texts to learn from.
        held_out: Texts to be judged by; may be empty.
        classes: Number of classes of the whole federation, also of those that this client never saw.
        seed: Of the first weights of a head that the model does not have, the same everywhere.
    """

    def around(self, model: Model) -> nn.Module:
        """Return a classifier around the model."""
        return OwnHead(model) if labels_of(model) else Classifier(model, self.classes, seed=self.seed)

    def task(self, module: Any) -> Task:
        """Return the task of learning the classes."""
        return classification(module, self.data)

    def outputs(self, module: Any, examples: Any) -> Tensor:
        """Return the logits [B, K] of texts."""
        ids, mask, _ = examples
        with quick_attention(ids.shape[1], ids.device):
            logits: Tensor = module(ids, mask)
        return logits.float()

    def losses(self, logits: Tensor, examples: Any) -> Tensor:
        """Return the cross entropy of each text."""
        return F.cross_entropy(logits, examples[2], reduction="none")

    def score(self, module: Any) -> tuple[int, dict[str, float]]:
        """Return how many texts are held out, the share put into the right class, and the mean loss."""
        if not len(self.held_out):
            return 0, {}
        logits, labels = answers(module, self.held_out), self.held_out.labels
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return len(labels), {"accuracy": accuracy, "loss": float(F.cross_entropy(logits, labels))}


@dataclass(frozen=True, eq=False)
class Pictures(Examples[ImageExamples]):
    """Images into classes: by the model's own outputs where they are as many, else by a linear layer on its features.

    Attributes:
        data: Images to learn from.
        held_out: Images to be judged by; may be empty.
        classes: Number of classes of the whole federation.
        seed: Of the first weights of a linear layer, the same everywhere.
    """

    def around(self, model: Model) -> nn.Module:
        """Return a classifier around the model."""
        return PictureClassifier(model, self.classes, seed=self.seed)

    def task(self, module: Any) -> Task:
        """Return the task of learning the classes."""
        return task_of(self, module)

    def outputs(self, module: Any, examples: Any) -> Tensor:
        """Return the logits [B, K] of images."""
        logits: Tensor = module(examples["pixel_values"])
        return logits.float()

    def losses(self, logits: Tensor, examples: Any) -> Tensor:
        """Return the cross entropy of each image."""
        return F.cross_entropy(logits, torch.as_tensor(examples["label"]), reduction="none")

    @torch.no_grad()
    def score(self, module: Any) -> tuple[int, dict[str, float]]:
        """Return how many images are held out, the share put into the right class, and the mean loss."""
        if not len(self.held_out):
            return 0, {}
        found = [(module(pixels).float(), labels) for pixels, labels in self.held_out.batches(64)]
        logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        accuracy = float((logits.argmax(-1) == labels).float().mean())
        return len(labels), {"accuracy": accuracy, "loss": float(F.cross_entropy(logits, labels))}


class PictureClassifier(nn.Module):
    """A model of images with as many outputs as there are classes.

    Statistics of batch norms stay those of the given model, unless somebody lets them follow the batches: each client's
    own would fit no other client.

    Args:
        model: Its module is shared, not copied.
        classes: Number of classes K.
        seed: Of the first weights of a head that the model does not have.
    """

    def __init__(self, model: Model, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.module: Any = model.module
        (self._name,) = example(model)
        training = self.module.training
        with torch.no_grad():
            found = self._features(example(model)[self._name].float())
        self.module.train(training)
        self.head: nn.Module = nn.Identity()
        if not self._own or found.shape[-1] != classes:
            drawn = torch.randn(classes, found.shape[-1], generator=torch.Generator().manual_seed(seed))
            self.head = nn.Linear(found.shape[-1], classes)
            self.head.weight.data, self.head.bias.data = drawn / found.shape[-1] ** 0.5, torch.zeros(classes)

    def train(self, mode: bool = True) -> PictureClassifier:
        """Switch to training, apart from batch norms that do not follow."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and not follows(part):
                part.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, K] of images."""
        logits: Tensor = self.head(self._features(pixels))
        return logits

    def _features(self, pixels: Tensor) -> Tensor:
        """What the model gives for each image: its logits, or the mean of its last hidden states."""
        result: Any = self.module(**{self._name: channels_last(pixels)})
        states = getattr(result, "last_hidden_state", None)
        self._own = states is None
        if states is not None:
            return pooled(states)
        return result if isinstance(result, Tensor) else result.logits


@dataclass(frozen=True, eq=False)
class Tokens:
    """The next token of windows of text, for causal language models.

    Attributes:
        data: Windows to learn from, LongTensor[N, T].
        held_out: Windows to be judged by, LongTensor[N, T]; may be empty.
    """

    data: Tensor
    held_out: Tensor

    def __len__(self) -> int:
        """Return the number of windows to learn from."""
        return len(self.data)

    def around(self, model: Model) -> nn.Module:
        """Return the model's own module."""
        model.anatomy.require("causal-lm", "learning the next token")
        return model.module

    def task(self, module: Any) -> Task:
        """Return the task of predicting each next token; a loss per window, the mean over its tokens."""
        return task_of(self, module)

    def outputs(self, module: Any, examples: Any) -> Tensor:
        """Return the logits [B, T-1, V] of all tokens but the last; the head is trained with the rest."""
        logits: Tensor = module(input_ids=examples.to(next(module.parameters()).device), use_cache=False).logits
        return logits[:, :-1].float()

    def losses(self, logits: Tensor, examples: Any) -> Tensor:
        """Return the mean next-token loss of each window in nats."""
        targets = examples[:, 1:].to(logits.device)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(len(examples), -1).mean(1)

    @property
    def held(self) -> int:
        """Number of windows held out."""
        return len(self.held_out)

    def some(self, learned: Sequence[int], held: Sequence[int]) -> Tokens:
        """Return the lesson with the windows at some positions."""
        return Tokens(self.data[list(learned)], self.held_out[list(held)])

    def turned(self) -> Tokens:
        """Return the lesson that is judged by the windows it learns from."""
        return Tokens(self.data, self.data)

    def swapped(self) -> Tokens:
        """Return the lesson in which what is learned and what is held out change places."""
        return Tokens(self.held_out, self.data)

    @torch.no_grad()
    def score(self, module: Any) -> tuple[int, dict[str, float]]:
        """Return how many windows are held out, and the mean loss per token in nats."""
        if not len(self.held_out):
            return 0, {}
        losses = [self.losses(self.outputs(module, rows), rows) for rows in self.held_out.split(8)]
        return len(self.held_out), {"loss": float(torch.cat(losses).double().mean())}
