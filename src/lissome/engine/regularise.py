"""What keeps a training from learning its examples by heart: words that are hidden, activations that are dropped."""

# N texts, T tokens

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lissome.core.errors import ConfigError
from lissome.engine.classify import Encoded
from lissome.engine.hooks import Task
from lissome.models.model import Model

_RATES = ("attention_dropout", "activation_dropout", "dropout")  # of transformers' layers that keep a number


@dataclass(frozen=True)
class Hidden:
    """Texts some of whose tokens are hidden, others each time that a text is looked at; special ones never are.

    Draws come from torch's global generator, which the training loop seeds for every step.

    Attributes:
        texts: The texts as they are.
        share: Of the tokens of each that are hidden, on average.
        token: What stands in their place.
        special: LongTensor[S], tokens that stay.
    """

    texts: Encoded
    share: float
    token: int
    special: Tensor

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, mask and class of one text."""
        ids, mask, label = self.texts[index]
        hidden = (torch.rand(len(ids)) < self.share) & ~torch.isin(ids, self.special)
        return ids.masked_fill(hidden, self.token), mask, label

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text without padding, LongTensor[N]."""
        return self.texts.lengths


def hiding(task: Task, model: Model, share: float) -> Task:
    """Return a task in whose texts a share of the tokens is hidden behind the tokenizer's mask.

    A teacher that knows its training examples by heart says little more of them than their labels; of texts with holes
    it has an opinion, as of the augmented ones of TinyBERT (Jiao et al. 2020, arXiv 1909.10351).

    Args:
        task: On labelled texts.
        model: With its tokenizer.
        share: Of the tokens; 0 gives the task back.

    Raises:
        ConfigError: When the examples are no labelled texts, or the tokenizer has no mask.
    """
    if not share:
        return task
    tokenizer: Any = model.tokenizer
    if not isinstance(task.data, Encoded):
        raise ConfigError("words are hidden in labelled texts alone, and the examples are others; leave hide at 0.")
    if tokenizer.mask_token_id is None:
        raise ConfigError(f"the tokenizer of {model.name} has no token that hides a word; leave hide at 0.")
    special = torch.tensor(tokenizer.all_special_ids)
    return replace(task, data=Hidden(task.data, share, tokenizer.mask_token_id, special))


@contextmanager
def dropping(module: nn.Module, share: float | None) -> Iterator[None]:
    """Let every dropout of a module drop this share of activations inside the ``with`` block; None: as they say.

    A sub-network of half the width has less to forget than the whole that the rate was made for.
    """
    kept: list[tuple[nn.Module, str, float]] = []
    for layer in module.modules() if share is not None else ():
        names = ("p",) if isinstance(layer, _DropoutNd) else _RATES
        kept += [(layer, name, rate) for name in names if isinstance(rate := getattr(layer, name, None), float | int)]
    try:
        for layer, name, _ in kept:
            setattr(layer, name, share)
        yield
    finally:
        for layer, name, rate in kept:
            setattr(layer, name, rate)
