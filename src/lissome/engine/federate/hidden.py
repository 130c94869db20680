"""Tokens that are hidden from an encoder, which guesses them (Devlin et al. 2018, arXiv 1810.04805).

Of a window 15 % of the tokens are to be guessed. Eight in ten of these give way to the mask token, one to a drawn one,
and one stays as it is, so that an encoder cannot tell which those are. What is hidden of windows to learn from is drawn
anew each time, of those that it is judged by always the same.
"""

# N windows, T tokens, V words of the vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissome.core.errors import DataError
from lissome.core.seeds import derive
from lissome.engine.federate.lessons import Examples, task_of
from lissome.engine.hooks import Task
from lissome.models.model import Model

_SHARE = 0.15
_MASKED, _DRAWN = 0.8, 0.1
_IGNORED = -100  # a target that cross entropy leaves out
_BATCH = 8  # windows of a forward pass that judges: logits of all words are large


@dataclass(frozen=True, eq=False)
class HiddenTokens:
    """Windows of which tokens are hidden: ``{"ids": LongTensor[T], "targets": LongTensor[T]}``.

    Attributes:
        windows: LongTensor[N, T].
        mask: Id of the mask token.
        special: Ids that are never hidden.
        vocabulary: V.
        fixed: Hide the same tokens of a window each time. Otherwise draws come from torch's global generator, which the
            training loop seeds for every step.
    """

    windows: Tensor
    mask: int
    special: tuple[int, ...]
    vocabulary: int
    fixed: bool = False

    @classmethod
    def of(cls, windows: Tensor, model: Model) -> HiddenTokens:
        """Hide tokens of windows as a model's tokenizer does it.

        Raises:
            DataError: When the tokenizer has no mask token.
        """
        tokenizer = model.tokenizer
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise DataError(f"{model.name} has no mask token to hide tokens with; give an encoder with its tokenizer.")
        return cls(windows, tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), model.anatomy.vocabulary)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one example; targets are those of hidden tokens, and -100 elsewhere."""
        row = self.windows[index]
        seed = derive(0, "hidden", row.numpy().tobytes().hex()) if self.fixed else None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        open_to = (~torch.isin(row, torch.tensor(self.special))).nonzero()[:, 0]
        count = min(len(open_to), max(1, round(_SHARE * len(row))))
        places = open_to[torch.randperm(len(open_to), generator=generator)[:count]]
        kind = torch.rand(count, generator=generator)
        drawn = torch.randint(self.vocabulary, (count,), generator=generator)
        ids, targets = row.clone(), torch.full_like(row, _IGNORED)
        targets[places] = row[places]
        ids[places] = torch.where(kind < _MASKED, self.mask, torch.where(kind < _MASKED + _DRAWN, drawn, row[places]))
        return {"ids": ids, "targets": targets}

    def some(self, indices: Sequence[int]) -> HiddenTokens:
        """Return the windows at some positions."""
        return self._with(self.windows[list(indices)], self.fixed)

    def judging(self) -> HiddenTokens:
        """Return the windows with the same tokens hidden each time."""
        return self._with(self.windows, True)

    def _with(self, windows: Tensor, fixed: bool) -> HiddenTokens:
        return HiddenTokens(windows, self.mask, self.special, self.vocabulary, fixed)

    def batch(self, start: int) -> dict[str, Tensor]:
        """Return some windows together, from a position on."""
        rows = [self[at] for at in range(start, min(start + _BATCH, len(self)))]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True, eq=False)
class Hidden(Examples[HiddenTokens]):
    """Hidden tokens of windows of text, for encoders.

    Attributes:
        data: Windows to learn from.
        held_out: Windows to be judged by; may be empty.
        classes: V.
        seed: Unused.
    """

    def around(self, model: Model) -> nn.Module:
        """Return the encoder with a score for every word at every position."""
        return Guesser(model)

    def task(self, module: Any) -> Task:
        """Return the task of guessing what is hidden."""
        return task_of(self, module)

    def outputs(self, module: Any, examples: Any) -> Tensor:
        """Return the logits [B, T, V] of windows."""
        logits: Tensor = module(examples["ids"].to(next(module.parameters()).device))
        return logits.float()

    def losses(self, logits: Tensor, examples: Any) -> Tensor:
        """Return the mean loss of each window over its hidden tokens, in nats."""
        targets = examples["targets"].to(logits.device)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        losses: Tensor = each.sum(1) / (targets != _IGNORED).sum(1).clamp_min(1)
        return losses

    @torch.no_grad()
    def score(self, module: Any) -> tuple[int, dict[str, float]]:
        """Return how many windows are held out, the mean loss of hidden tokens, and the share guessed."""
        if not len(self.held_out):
            return 0, {}
        held, losses, right = self.held_out.judging(), list[Tensor](), list[Tensor]()
        for start in range(0, len(held), _BATCH):
            examples = held.batch(start)
            logits, targets = self.outputs(module, examples), examples["targets"]
            losses.append(self.losses(logits, examples).cpu())
            hidden = targets != _IGNORED
            right.append((logits.argmax(-1).cpu() == targets)[hidden].float())
        return len(held), {"loss": float(torch.cat(losses).double().mean()), "accuracy": float(torch.cat(right).mean())}


class Guesser(nn.Module):
    """An encoder that gives a score for every word at every position.

    By its own head where it has one; otherwise the score of a word is the product of its embedding and the last hidden
    state, which needs no weights of its own.

    Args:
        model: Its module is shared, not copied.

    Raises:
        UnsupportedModelError: When the model is no encoder of text.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        model.anatomy.require("encoder", "guessing hidden tokens")
        self.module: Any = model.module

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of windows LongTensor[B, T]."""
        if self.module.get_output_embeddings() is not None:
            logits: Tensor = self.module(input_ids=ids).logits
            return logits
        states: Tensor = self.module.base_model(input_ids=ids).last_hidden_state
        words: Tensor = self.module.get_input_embeddings().weight
        return states @ words.to(states.dtype).T
