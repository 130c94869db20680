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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, option
from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.method import Context, CurvePoint, Method, ModelCard, Outcome, Plan, expected_figures
from lissome.cost.duration import search_seconds, speeds_here, training_seconds
from lissome.cost.memory import kept_weights, predict_fit
from lissome.cost.peak import give_back
from lissome.data.text import spread
from lissome.engine.calibrate import orders
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.greedy import CAREFUL, QUICK, Greedy, Rank, Trace, damage_per, lowest_loss
from lissome.engine.judge import Divergence
from lissome.engine.recover import RecoverConfig, recover
from lissome.engine.target import Target
from lissome.engine.walk import Walk
from lissome.models.binding import Masking, extract, reorder
from lissome.models.model import Model
from lissome.models.paging import park, spill
from lissome.models.precision import fast_dtype, in_dtype
from lissome.models.space import Space, Subnet

_BLOCKS, _WIDTHS = ("attention", "mlp"), ("width",)
_HEADS = {"groups": ("groups",), "queries": ("queries",), "both": ("groups", "queries"), "none": ()}
_ATTEMPTS = 4  # a latency table errs by a few percent, so that one correction is nearly always enough
_TERMS = frozenset({"params", "block_params", "disk", "memory", "macs", "latency", "prefill", "decode"})


class MultiPruner(Method):
    """Training-free removal of blocks, MLP channels and heads, with optional LoRA recovery."""

    needs: ClassVar[frozenset[str]] = frozenset({"decoder", "dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"pruned"})
    budget_terms: ClassVar[frozenset[str]] = _TERMS

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Settings of MultiPruner."""

        split: str = option("auto", "auto, or shares blocks:channels:heads of the cut such as 44:52:4")
        damage: Literal["auto", "loss", "kl"] = option(
            "auto", "what a removal raises least: calibration loss, or KL from the original; auto: kl for split=auto"
        )
        score: Literal["activation", "magnitude", "none"] = option(
            "activation", "order of channels and heads; none keeps it"
        )
        width_step: int | None = option(None, "MLP channels per cut; default about an eighth of the width", low=1)
        heads: Literal["auto", "groups", "queries", "both", "none"] = option(
            "auto", "what the head stage removes; auto: both, but none for split=auto and grouped queries"
        )
        windows: int | None = option(None, "calibration windows used; default all that the data section gives", low=1)
        order_windows: int = option(
            32, "windows of the recovery text that order channels and heads; 4 give noisy ranks", low=1
        )
        lazy: bool = option(True, "score only moves that may be best; false scores all of them at every step")
        precision: Literal["auto", "float32", "bfloat16"] = option(
            "auto", "number type of the search; auto takes what this device multiplies fastest"
        )
        margin: float = option(0.02, "share by which predicted terms undershoot their bound", low=0.0, high=0.5)
        recover_steps: int = option(
            32, "LoRA steps after the cut; 32 give back about half of the lost log-perplexity, 0 does none", low=0
        )
        recover_lr: float = option(2e-3, "peak learning rate of the recovery", low=0.0)
        recover_batch: int = option(4, "windows per recovery step", low=1)
        recover_rank: int = option(16, "rank of the recovery's adapters (the paper's)", low=1)

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
        kept = kept_weights(card, figures)
        memory = predict_fit(card, windows=card.windows, recover=self.config.recover_steps > 0, kept=kept)
        return Plan(
            figures=figures, peak_memory=memory.total, memory_parts=memory.parts, seconds=self._seconds(card, kept)
        )

    def _seconds(self, card: ModelCard, kept: float) -> float:
        speeds, length = speeds_here(), card.windows[1]
        inside = 1 - (1 - kept) * card.figures["params"] / card.figures["block_params"]
        quick = self._judged_by() == "kl"
        return search_seconds(
            card, speeds, kept=inside, ordering=self.config.order_windows * length, kinds=3,
            scored=1 if quick else 3 + card.layers / 2, looked=0.25 if quick else 0.5,
        ) + training_seconds(
            card, speeds, tokens=self.config.recover_steps * self.config.recover_batch * length, kept=inside
        )  # fmt: skip

    def run(self, model: Model, context: Context) -> Outcome:
        """Reorder, remove step by step, cut, and recover.

        The model is reordered in place, which leaves its function unchanged.

        Raises:
            BudgetUnmetError: When no move is left before the bounds hold.
        """
        config = self.config
        space = model.space(**({"width": config.width_step} if config.width_step else {}))
        target = Target(
            context.budget, context.original, context.cost.figures, margin=config.margin,
            exact=frozenset(name for name in context.budget.names if context.cost.provenance(name) == "counted"),
        )  # fmt: skip
        target.require_reachable(space)
        ranking = self._reorder(model, spread(context.data.recovery, config.order_windows))
        trace, small = self._cut(model, space, target, context)
        return Outcome(
            kind="model",
            value=self._recover(model, small, context),
            curve=self._curve(trace, space, context),
            space=space.to_json(),
            tensors=ranking,
            details={"subnet": trace.subnet.to_json(), "scored": sum(step.scored for step in trace.steps)},
        )

    def _reorder(self, model: Model, windows: Tensor) -> dict[str, Tensor]:
        """Step 0: most important units first; the function of the model is unchanged."""
        if self.config.score == "none":
            return {}
        work = in_dtype(model, self._dtype(model))
        ranking = orders(work, ("width", "groups", "queries"), score=self.config.score, walk=Walk(work, windows))
        reorder(model, ranking)
        return ranking

    def _cut(self, model: Model, space: Space, target: Target, context: Context) -> tuple[Trace, Model]:
        """Remove until the budget holds by measurement too, where a term was only predicted."""
        for _ in range(_ATTEMPTS):
            trace = self._search(model, space, target, context)
            give_back()  # the working copy and the hidden states of the search
            small = extract(model, trace.subnet, space=space)
            target.correct(trace.subnet, context.confirm(small))
            if target.holds(trace.subnet):
                break
        return trace, small

    def _search(self, model: Model, space: Space, target: Target, context: Context) -> Trace:
        """Steps 1-3 on a working copy, which is gone again when the model itself is cut; continues a former search."""
        work = in_dtype(model, self._dtype(model))
        windows = context.data.calibration[: self.config.windows]
        walk = Walk(work, windows, folder=context.folder / "hidden", memory_limit=context.memory_limit)
        masking = Masking(work.binding, space)
        checkpoint = Checkpoint(context.folder / "greedy", self._key(context))
        try:
            judge, lazy = (Divergence(walk), QUICK) if self._judged_by() == "kl" else (None, CAREFUL)
            greedy = Greedy(
                masking, walk, judge=judge, lazy=lazy if self.config.lazy else None, checkpoint=checkpoint,
                events=context.events,
            )  # fmt: skip
            return self._remove(greedy, target, space)
        finally:
            masking.restore()

    def _dtype(self, model: Model) -> torch.dtype:
        parameter = next(model.module.parameters())
        chosen: torch.dtype = (
            fast_dtype(parameter.device) if self.config.precision == "auto" else getattr(torch, self.config.precision)
        )
        return chosen if parameter.dtype == torch.float32 else parameter.dtype

    def _key(self, context: Context) -> dict[str, Any]:
        """What the removal depends on; a checkpoint of anything else is refused."""
        settings = {key: value for key, value in self.config.to_mapping().items() if not key.startswith("recover")}
        return {
            "config": settings,
            "budget": str(context.budget),
            "seed": context.seed,
            "data": context.data.fingerprint,
        }

    def _remove(self, greedy: Greedy, target: Target, space: Space) -> Trace:
        """Steps 1-3, or all kinds at once with ``split=auto``."""
        progress, split = target.progress(space), shares(self.config.split)
        heads = self._heads(greedy.walk.model)
        if split is None:
            greedy.run((*_BLOCKS, *_WIDTHS, *heads), rank=_by_need(target), enough=target.holds, goal=progress)
        else:
            reached = 0.0
            for kinds, share in zip((_BLOCKS, _WIDTHS, heads), split, strict=True):
                reached += share
                greedy.run(kinds, rank=lowest_loss, enough=_until(progress, target, reached), goal=progress)
        if not target.holds(greedy.trace.subnet):
            left = ", ".join(
                f"{name} at {load:.1%} of its bound" for name, load in target.loads(greedy.trace.subnet).items()
            )
            raise BudgetUnmetError(
                f"no move is left but the budget is not met ({left}); allow more kinds with --set split=auto."
            )
        return greedy.trace

    def _judged_by(self) -> str:
        if self.config.damage != "auto":
            return self.config.damage
        return "kl" if self.config.split == "auto" else "loss"

    def _heads(self, model: Model) -> tuple[str, ...]:
        """Kinds of the head stage; the authors advise none where query heads share keys and values."""
        if self.config.heads != "auto":
            return _HEADS[self.config.heads]
        attentions = [branch for branch in model.anatomy.branches if branch.kind == "attention"]
        grouped = any(dim.size > 1 for branch in attentions for dim in branch.dims if dim.name == "queries")
        return () if grouped and self.config.split == "auto" else _HEADS["both"]

    def _recover(self, model: Model, small: Model, context: Context) -> Model:
        if not self.config.recover_steps:
            return small
        park(model)  # its memory is needed now; only its function will be asked for again, not its order
        small = spill(small, context.folder / "cut.safetensors")
        give_back()
        settings = RecoverConfig(
            steps=self.config.recover_steps, lr=self.config.recover_lr, batch=self.config.recover_batch,
            rank=self.config.recover_rank,
        )  # fmt: skip
        return recover(small, context.data.recovery, config=settings, context=context)

    def _curve(self, trace: Trace, space: Space, context: Context) -> tuple[CurvePoint, ...]:
        losses = [trace.start_nll, *(step.nll for step in trace.steps)]
        changes = ["original", *(str(step.move) for step in trace.steps)]
        return tuple(
            CurvePoint(
                step=index,
                change=change,
                subnet=subnet.to_json(),
                figures=context.cost.figures(subnet),
                quality={"ppl": math.exp(min(loss, 700.0))},
            )
            for index, (change, subnet, loss) in enumerate(zip(changes, trace.subnets(space), losses, strict=True))
        )


def shares(split: str) -> tuple[float, float, float] | None:
    """Read ``blocks:channels:heads`` as shares that sum to 1; None for ``auto``.

    Raises:
        ConfigError: When it is neither.
    """
    if split == "auto":
        return None
    try:
        parts = [float(part) for part in split.split(":")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) < 0 or not math.isfinite(sum(parts)) or sum(parts) <= 0:
        raise ConfigError(f"split must be auto or three shares like 44:52:4 (blocks:channels:heads), got {split!r}.")
    a, b, c = (part / sum(parts) for part in parts)
    return a, b, c


def _by_need(target: Target) -> Rank:
    """Rank by damage per saving in the terms that are not met yet."""

    def rank(damage: float, before: Subnet, after: Subnet) -> float:
        return damage_per(target.weight(before))(damage, before, after)

    return rank


def _until(progress: Callable[[Subnet], float], target: Target, share: float) -> Callable[[Subnet], bool]:
    """End a stage at its share of the way; the last stage (share 1) at the budget itself."""
    return lambda subnet: target.holds(subnet) or (share < 1.0 - 1e-9 and progress(subnet) >= share)
