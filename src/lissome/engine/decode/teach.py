"""Trains the classifiers of `lissome.engine.decode.schedulers`."""

# S prompts, T positions, E head size, H query heads, C = 4 classes

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lissome.engine.decode.decoder import Floats

CLASSES = 4


class Classifier(nn.Module):
    """A classifier in torch, with the same names of parameters.

    Args:
        heads: H; None for the one without attention.
        size: E.
        generator: Draws the first weights.
    """

    def __init__(self, heads: int | None, size: int, generator: torch.Generator) -> None:
        super().__init__()
        wide = size * (heads or 2)
        self.queries = None if heads is None else nn.Parameter(torch.empty(heads, heads, size))
        self.norm, self.inner, self.outer = nn.LayerNorm(wide), nn.Linear(wide, wide), nn.Linear(wide, CLASSES)
        for weight in (self.queries, self.inner.weight, self.outer.weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight, generator=generator)
        for bias in (self.inner.bias, self.outer.bias):
            nn.init.zeros_(bias)

    def forward(self, keys: Tensor, values: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the outputs [C] for one prompt's keys and values [T, E].

        Args:
            keys: Means over heads.
            values: Likewise.
            kept: By what the shares of attention, or the values, are multiplied, float[T]: dropout.
        """
        if self.queries is None:
            values = values if kept is None else values * kept[:, None]
            found = torch.cat([values.mean(0), values[-1]])
        else:
            shares = (self.queries @ keys.T / keys.shape[1] ** 0.5).softmax(-1)
            found = ((shares if kept is None else shares * kept) @ values).mean(1).reshape(-1)
        output: Tensor = self.outer(self.inner(self.norm(found)).relu())
        return output


def teach(
    examples: Sequence[tuple[Floats, Floats]],
    labels: Sequence[int],
    *,
    heads: int | None,
    seed: int,
    epochs: int = 30,
    lr: float = 1e-3,
) -> dict[str, Floats]:
    """Train a classifier on prompts whose classes are known.

    Classes are drawn equally often, in batches of 16, with weight decay 0.01 and dropout 0.1 of the attention:
    the middle of the ranges that the paper searches.

    Args:
        examples: Keys and values of S prompts, float32[T, E] each.
        labels: Their classes.
        heads: H; None for the classifier without attention.
        seed: Of the first weights, the order and the dropout.
        epochs: Times S examples are drawn.
        lr: Learning rate of Adam.

    Returns:
        Weights by the names of `lissome.engine.decode.schedulers.Learnt`, or of ``Activation``.
    """
    generator = torch.Generator().manual_seed(seed)
    ready = [(torch.from_numpy(keys), torch.from_numpy(values)) for keys, values in examples]
    model, wanted = Classifier(heads, ready[0][0].shape[1], generator), torch.tensor(list(labels))
    share = 1.0 / torch.bincount(wanted, minlength=CLASSES).clamp_min(1)[wanted]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=0.01)
    for _ in range(epochs):
        for batch in torch.multinomial(share, len(ready), replacement=True, generator=generator).split(16):
            outputs = []
            for at in batch.tolist():
                keys, values = ready[at]
                kept = torch.bernoulli(torch.full((len(keys),), 0.9), generator=generator) / 0.9
                outputs.append(model(keys, values, kept))
            optimizer.zero_grad()
            cross_entropy(torch.stack(outputs), wanted[batch]).backward()
            optimizer.step()
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
