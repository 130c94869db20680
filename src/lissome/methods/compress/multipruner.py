"""MultiPruner: remove blocks, then MLP channels, then attention heads, by the model's own perplexity.

Problem: a decoder is too slow or too big, and there is no time to train. Munoz, Yuan, Jain, "MultiPruner: Balanced
Structure Removal in Foundation Models" (arXiv 2501.09949): sort channels and KV groups once by importance (this leaves
the function unchanged), then remove, one at a time, the structure whose removal leaves the lowest perplexity on
calibration text: whole attention or MLP blocks until a share a of the cut is made, MLP channels until a + b, heads for
the rest c. ``split=100:0:0`` is BlockPruner (arXiv 2406.10594).

Differs from the paper, and why:

- The cut is any budget (parameters, latency, memory …), not a percentage of all parameters: the latter counts
  embeddings, which are 63 % of Gemma-3-270M.
- ``split=auto`` (default) lets all kinds compete at every step by damage per unit of budget saved, because a fixed
  split that suits one model ruins another.
- With ``split=auto`` damage is the divergence from the original's next-token distribution on the calibration text, not
  the text's perplexity: on a thousand tokens the latter is noisy, and can even fall where the model gets worse.
- Channels are ordered by weight times activation by default; ``score=magnitude`` is the paper's L1 order.
- Heads: whole KV groups, or one query head of every group, which also serves models with a single KV head. With
  ``split=auto`` they compete only where every query head has its own keys and values, as the authors advise.
- A short LoRA recovery is on by default (``recover_steps=0`` leaves the paper's training-free result).
- Scores start at the changed block and only moves that may be best are scored again (`lissome.engine.greedy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lissome.core.budget import Budget
from lissome.core.config import option
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan, expected_figures
from lissome.engine.removal import TERMS, Removal, RemovalConfig, expected_plan, in_turn, shares
from lissome.models.adapters import merged_copy
from lissome.models.model import Model

_BLOCKS, _WIDTHS = ("attention", "mlp"), ("width",)
_HEADS = {"groups": ("groups",), "queries": ("queries",), "both": ("groups", "queries"), "none": ()}


class MultiPruner(Method):
    """Training-free removal of blocks, MLP channels and heads, with optional LoRA recovery."""

    needs: ClassVar[frozenset[str]] = frozenset({"decoder", "dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"pruned"})
    budget_terms: ClassVar[frozenset[str]] = TERMS

    @dataclass(frozen=True, kw_only=True)
    class Config(RemovalConfig):
        """Settings of MultiPruner."""

        split: str = option("auto", "auto, or shares blocks:channels:heads of the cut such as 44:52:4")
        heads: Literal["auto", "groups", "queries", "both", "none"] = option(
            "auto", "what the head stage removes; auto: both, but none for split=auto and grouped queries"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            shares(self.split)

    config: Config

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the result: the budget's bounds, as far as removal can reach them.

        Raises:
            BudgetUnmetError: When removal alone cannot reach a bound.
        """
        figures = expected_figures(card, budget)
        competing = self.config.split == "auto"
        return expected_plan(card, figures, self.config, damage=self._judged_by(), competing=competing, kinds=3)

    def run(self, model: Model, context: Context) -> Outcome:
        """Reorder, remove step by step, cut, and recover.

        The model is reordered in place, which leaves its function unchanged.

        Raises:
            BudgetUnmetError: When no move is left before the bounds hold.
        """
        return Removal(
            model=merged_copy(model),  # recovery puts adapters of its own on
            config=self.config,
            context=context,
            stages=in_turn((_BLOCKS, _WIDTHS, self._heads(model)), self.config.split),
            damage=self._judged_by(),
            ordered=("width", "groups", "queries"),
            advice="allow more kinds with --set split=auto.",
        ).run()

    def _judged_by(self) -> Literal["loss", "kl"]:
        return self.config.judged_by(self.config.split == "auto")

    def _heads(self, model: Model) -> tuple[str, ...]:
        """Kinds of the head stage; the authors advise none where query heads share keys and values."""
        if self.config.heads != "auto":
            return _HEADS[self.config.heads]
        attentions = [branch for branch in model.anatomy.branches if branch.kind == "attention"]
        grouped = any(dim.size > 1 for branch in attentions for dim in branch.dims if dim.name == "queries")
        return () if grouped and self.config.split == "auto" else _HEADS["both"]
