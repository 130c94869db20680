"""Carries any inputs through a model one block at a time, so that a block can be changed before its outputs are used.

Unlike a `Walk`, which scores windows of text again and again, a stream passes every block once, in order, and serves
encoders and image models too: each batch keeps the arguments with which the model calls its blocks.
"""

# B examples of a batch, T tokens, D residual width

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lissome.core.errors import DataError, UnsupportedModelError
from lissome.engine.walk import Call, recording
from lissome.models.anatomy import TASKS
from lissome.models.model import Model

Inputs = Mapping[str, Tensor]
"""What a model reads by argument name: ``input_ids`` LongTensor[B, T], ``attention_mask`` too, or ``pixel_values``."""


@dataclass
class _Part:
    """One batch: hidden states [B, T, D] before the next block, how blocks are called, which tokens are no padding."""

    hidden: Tensor
    calls: list[Call]
    tokens: Tensor | None


class Stream:
    """All batches in front of one block.

    Args:
        model: The model; it may be changed behind the block that is next.
        batches: What it reads. The states of all batches are held: B·T·D numbers each.

    Raises:
        DataError: When there are no batches.
        UnsupportedModelError: When the blocks do not form one chain (an encoder-decoder).
    """

    def __init__(self, model: Model, batches: Iterable[Inputs]) -> None:
        if model.anatomy.task == "seq2seq":
            raise UnsupportedModelError(
                f"the blocks of {TASKS['seq2seq']} are two chains, and only one is followed; choose another model."
            )
        self._model = model
        self._rest: list[tuple[None, ...] | None] = []
        self._parts = [self._enter(batch) for batch in batches]
        if not self._parts:
            raise DataError("there is nothing to calibrate on; give at least one window of text.")

    @torch.no_grad()
    def _enter(self, batch: Inputs) -> _Part:
        module = self._model.module
        device = next(module.parameters()).device
        given = {name: value.to(device) for name, value in batch.items()}
        options = {"use_cache": False} if self._model.anatomy.task == "causal-lm" else {}
        blocks = [module.get_submodule(path) for path in self._model.anatomy.blocks]
        calls: list[Call] = []
        first: list[Tensor] = []
        with recording(blocks, calls, first, self._rest):
            module.base_model(**given, **options)  # type: ignore[operator]
        mask = given.get("attention_mask")
        return _Part(first[0], calls, mask.bool() if mask is not None else None)

    @torch.no_grad()
    def feed(self, block: int, notice: Callable[[Tensor | None], None] = lambda _: None) -> None:
        """Run a block on every batch and drop what it gives; `notice` first gets a batch's real tokens Bool[B, T]."""
        for part in self._parts:
            notice(part.tokens)
            self._run(block, part)

    @torch.no_grad()
    def advance(self, block: int) -> None:
        """Run a block on every batch; what it gives is what the next block sees."""
        for part in self._parts:
            part.hidden = self._run(block, part)

    def states(self) -> list[Tensor]:
        """Return the hidden states [B, T, D] of every batch."""
        return [part.hidden for part in self._parts]

    def _run(self, block: int, part: _Part) -> Tensor:
        call = part.calls[block]
        module = self._model.module.get_submodule(self._model.anatomy.blocks[block])
        result = module(part.hidden, *call.args, **call.kwargs)
        after: Tensor = result[0] if isinstance(result, tuple) else result
        return after


def windows_of(ids: Tensor, batch_tokens: int = 1024) -> list[dict[str, Tensor]]:
    """Cut windows LongTensor[N, T] into batches of about so many tokens, as a causal language model reads them."""
    size = max(1, batch_tokens // ids.shape[1])
    return [{"input_ids": ids[start : start + size]} for start in range(0, len(ids), size)]
