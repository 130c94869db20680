"""Texts into classes, as a task for the training loop: by a model's own head, or by a linear one on its mean state.

The head and whatever else of the model requires a gradient (adapters, say) are trained together.
"""

# B texts, T tokens, D width, K classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissome.core.errors import DataError, NumericsError, UnsupportedModelError
from lissome.data.labelled import Labelled
from lissome.data.text import check_ids
from lissome.engine.forward import quick_attention
from lissome.engine.hooks import Batch, Task
from lissome.models.labels import labels_of
from lissome.models.model import Model

_BATCH_TOKENS = 4096  # of an evaluation: full matrix speed, little memory


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts and their classes, as examples for the training loop.

    Attributes:
        ids: LongTensor[N, T], padded on the right.
        mask: LongTensor[N, T], 0 for padding.
        labels: LongTensor[N].
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, mask and class of one text."""
        return self.ids[index], self.mask[index], self.labels[index]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text without padding, LongTensor[N]."""
        return self.mask.sum(1)

    def numel(self) -> int:
        """Return the number of tokens, padding among them."""
        return self.ids.numel()

    def some(self, indices: Sequence[int]) -> Encoded:
        """Return the texts at the given positions."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        return Encoded(self.ids[chosen], self.mask[chosen], self.labels[chosen])

    def batches(self, tokens: int = _BATCH_TOKENS) -> Iterator[dict[str, Tensor]]:
        """Yield the texts as a model reads them, about `tokens` tokens at a time."""
        size = max(1, tokens // self.ids.shape[1])
        for start in range(0, len(self), size):
            yield trimmed(self.ids[start : start + size], self.mask[start : start + size])


def encode(model: Model, data: Labelled, *, length: int = 128) -> Encoded:
    """Tokenise texts for a model; what is longer is cut.

    Args:
        model: With its tokenizer.
        data: The texts.
        length: Most tokens of a text, the special ones among them.

    Raises:
        DataError: When the model has no tokenizer, one without padding, or one that does not fit it.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None or tokenizer.pad_token_id is None:
        raise DataError(f"{model.name} has no tokenizer that can pad; give a folder that holds one.")
    found = tokenizer(
        list(data.texts), truncation=True, max_length=length, padding=True, padding_side="right", return_tensors="pt"
    )
    check_ids(int(found["input_ids"].max()), model.anatomy.vocabulary)
    return Encoded(found["input_ids"], found["attention_mask"], torch.tensor(data.labels))


def trimmed(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Cut padding that no text of a batch needs: it would be computed for nothing."""
    longest = int(mask.sum(1).max())
    return {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}


class OwnHead(nn.Module):
    """A model that has a head for classes, called like a `Classifier`; its module is shared, not copied.

    Raises:
        UnsupportedModelError: When the model has no named classes.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not labels_of(model):
            raise UnsupportedModelError(f"{model.name} has no named classes; fit it on labelled texts first.")
        self.module: Any = model.module

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, K] of texts [B, T]."""
        return self.module(**trimmed(ids, mask)).logits  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """A model without its own head, and a linear layer on the mean of its last hidden states.

    Args:
        model: Its module is shared, not copied, and keeps what requires a gradient.
        classes: Number of classes K.
        seed: Of the head's first weights.

    Raises:
        UnsupportedModelError: When the model does not read text.
    """

    def __init__(self, model: Model, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        if model.anatomy.task not in {"encoder", "causal-lm"}:
            raise UnsupportedModelError(f"{model.name} does not read text, so it cannot put texts into classes.")
        self.base: Any = model.module.base_model
        self.head = nn.Linear(model.anatomy.hidden, classes)
        drawn = torch.randn(self.head.weight.shape, generator=torch.Generator().manual_seed(seed))
        self.head.weight.data = drawn / model.anatomy.hidden**0.5
        self.head.bias.data.zero_()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, K] of texts [B, T]."""
        inputs = trimmed(ids, mask)
        states = self.base(**inputs).last_hidden_state
        weights = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        return self.head((states * weights).sum(1) / weights.sum(1))  # type: ignore[no-any-return]


def classification(classifier: nn.Module, data: Encoded) -> Task:
    """Return the task of learning the classes of texts: cross entropy, one number per text.

    Args:
        classifier: Called with ids and mask [B, T], gives logits [B, K].
        data: The texts.
    """

    def loss(module: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(logits_of(module, batch).float(), batch.examples[2], reduction="none")

    return Task(module=classifier, loss=loss, data=data)


def logits_of(module: Any, batch: Batch) -> Tensor:
    """Let a classifier look at a batch of `Encoded`: logits [B, K]."""
    ids, mask, _ = batch.examples
    with quick_attention(ids.shape[1], ids.device):
        logits: Tensor = module(ids, mask)
    return logits


@torch.no_grad()
def answers(classifier: nn.Module, data: Encoded) -> Tensor:
    """Return the logits of every text, float32[N, K].

    Raises:
        NumericsError: When one is NaN or infinite.
    """
    device = next(classifier.parameters()).device
    order = data.lengths.argsort(stable=True)  # texts of one length together: little padding is computed
    sorted_ = torch.cat(
        [
            classifier(batch["input_ids"].to(device), batch["attention_mask"].to(device)).float().cpu()
            for batch in data.some(order.tolist()).batches()
        ]
    )
    found = torch.empty_like(sorted_)
    found[order] = sorted_
    if not torch.isfinite(found).all():
        raise NumericsError("a class has a score that is NaN or infinite; check the weights, or use float32.")
    return found


def correct(classifier: nn.Module, data: Encoded) -> Tensor:
    """Say for every text whether its likeliest class is right, Bool[N]; their mean is the accuracy."""
    return answers(classifier, data).argmax(-1) == data.labels
