"""How many tokens a model can read at once, where it learned a vector for each position."""

from __future__ import annotations

from torch import nn

from lissome.models.model import Model

_NAMES = frozenset({"position_embeddings", "embed_positions", "wpe"})


def most_positions(model: Model) -> int | None:
    """Return how many tokens a text model has positions for; None where positions are computed, for any number."""
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _NAMES:
            # The first rows of some stand for padding: RoBERTa counts from behind it, OPT says by how many.
            first = getattr(part, "offset", 0 if part.padding_idx is None else part.padding_idx + 1)
            return part.num_embeddings - int(first)
    return None
