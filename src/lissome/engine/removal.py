"""Removal from start to end, whatever the method: order the units, remove in stages, cut, measure, heal.

A method of greedy removal is a list of `Stage` and a few settings. Everything happens on a working copy in a fast
number type; every accepted step is checkpointed, so that a killed job continues. Where a budget is only predicted (a
latency table errs by a few percent), the cut model is measured, the prediction corrected, and the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch

from lissome.core.config import MethodConfig, option
from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.method import Context, CurvePoint, ModelCard, Outcome, Plan
from lissome.cost.duration import search_seconds, speeds_here, training_seconds
from lissome.cost.expected import expected_of_removal
from lissome.cost.memory import kept_weights, predict_fit
from lissome.cost.peak import give_back
from lissome.data.text import spread
from lissome.engine.calibrate import orders
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.greedy import (
    CAREFUL,
    QUICK,
    Greedy,
    Laziness,
    Move,
    Rank,
    Trace,
    damage_per,
    lowest_loss,
    moves,
    within,
)
from lissome.engine.judge import Divergence
from lissome.engine.recover import RecoverConfig, recover
from lissome.engine.target import Target
from lissome.engine.walk import Walk
from lissome.models.adapters.elastic import check_sides
from lissome.models.binding import Masking, extract, reorder
from lissome.models.model import Model
from lissome.models.paging import park, spill
from lissome.models.precision import fast_dtype, in_dtype
from lissome.models.space import Space, Subnet

TERMS = frozenset({"params", "block_params", "disk", "memory", "macs", "latency", "prefill", "decode"})
"""Budget terms that removal can follow."""

_ATTEMPTS = 4  # a latency table errs by a few percent, so that one correction is nearly always enough


@dataclass(frozen=True, kw_only=True)
class RemovalConfig(MethodConfig):
    """Settings that methods of removal share."""

    damage: Literal["auto", "loss", "kl"] = option(
        "auto", "what a removal raises least: calibration loss, or KL from the original; auto: kl for split=auto"
    )
    score: Literal["activation", "magnitude", "none"] = option(
        "activation", "order of channels and heads; none keeps it"
    )
    width_step: int | None = option(None, "MLP channels per cut; default about an eighth of the width", low=1)
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
    recover_lr: float = option(2e-3, "peak learning rate of the recovery", low=0.0, high=1.0)
    recover_batch: int = option(4, "windows per recovery step", low=1)
    recover_rank: int = option(16, "rank of the recovery's adapters (the paper's)", low=1)

    def judged_by(self, competing: bool) -> Literal["loss", "kl"]:
        """Return what damage is; `competing` says whether unlike kinds compete for a budget."""
        if self.damage != "auto":
            return self.damage
        return "kl" if competing else "loss"


def shares(split: str) -> tuple[float, float, float] | None:
    """Read three shares of the cut such as ``44:52:4``, scaled to sum to 1; None for ``auto``.

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
        raise ConfigError(f"split must be auto or three shares like 44:52:4, got {split!r}.")
    a, b, c = (part / sum(parts) for part in parts)
    return a, b, c


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Kinds of moves that compete, and until when.

    Attributes:
        kinds: As in `lissome.engine.greedy.moves`.
        share: Share of the way to the budget at which the stage ends; 1: when the budget holds.
        count: Number of removals to make instead, whatever the budget.
        thrifty: Rank by damage per saving in the terms that are not met yet, not by damage alone.
    """

    kinds: tuple[str, ...]
    share: float = 1.0
    count: int | None = None
    thrifty: bool = False


def in_turn(kinds: Sequence[tuple[str, ...]], split: str) -> tuple[Stage, ...]:
    """Return stages that make shares of the cut one after the other, each making up for what those before it missed.

    Args:
        kinds: Kinds of each stage.
        split: As in `shares`; ``auto`` lets all kinds compete in one stage, by damage per saving.
    """
    parts = shares(split)
    if parts is None:
        return (Stage(kinds=tuple(kind for group in kinds for kind in group), thrifty=True),)
    ends = accumulate(parts)
    return tuple(Stage(kinds=group, share=end) for group, end in zip(kinds, ends, strict=True))


def expected_plan(
    card: ModelCard, figures: Mapping[str, float], config: RemovalConfig, *, damage: str, competing: bool, kinds: int
) -> Plan:
    """Plan a removal: its peak memory and its time.

    Args:
        card: The original.
        figures: What the result stays within, by budget term; none, when that is not known.
        config: Settings.
        damage: As in `Removal`.
        competing: Whether unlike kinds compete in every stage.
        kinds: Moves that a block has (attention, MLP, width …).

    Raises:
        ConfigError: When no layer has the rank of the recovery.
    """
    if config.recover_steps:
        check_sides(config.recover_rank, (one.stored for one in card.linears.values()), card.name)
    kept = kept_weights(card, figures)
    memory = predict_fit(card, windows=card.windows, recover=config.recover_steps > 0, kept=kept)
    # what scans take does not follow from operations
    seconds = None if "mixer" in card.tags else _seconds(card, kept, config, _laziness(damage, competing), kinds)
    expected = expected_of_removal(card, figures)
    return Plan(
        figures=expected.figures, at_most=expected.at_most, notes=expected.notes, seconds=seconds,
        peak_memory=memory.total, memory_parts=memory.parts,
    )  # fmt: skip


def _laziness(damage: str, competing: bool) -> Laziness:
    """Return how little is scored: what is known of `QUICK` was measured where unlike kinds compete."""
    return QUICK if damage == "kl" and competing else CAREFUL


def _seconds(card: ModelCard, kept: float, config: RemovalConfig, lazy: Laziness, kinds: int) -> float:
    speeds, length = speeds_here(), card.windows[1]
    inside = 1 - (1 - kept) * card.figures["params"] / card.figures["block_params"]
    return search_seconds(
        card, speeds, kept=inside, ordering=config.order_windows * length, kinds=kinds,
        scored=1 if lazy is QUICK else 3 + card.layers / 2, looked=1 / lazy.looked,
    ) + training_seconds(
        card, speeds, tokens=config.recover_steps * config.recover_batch * length, kept=inside
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A job of removal.

    Attributes:
        model: The original, without adapters; its units are put in order in place: its function stays.
        config: Settings; with those of the method itself, because a checkpoint is tied to all of them.
        context: What the method was given.
        stages: In order.
        damage: What a removal raises least: ``"loss"`` of the calibration text, or ``"kl"`` from the original.
        ordered: Dims whose units are put in order of importance first.
        cliff: Largest relative rise of perplexity (expected, for ``"kl"``) by one removal; none: any.
        small: In recovery, tensors that no adapter reaches are trained themselves up to so many numbers.
        advice: What a user can do when no move is left and the budget does not hold.
    """

    model: Model
    config: RemovalConfig
    context: Context
    stages: tuple[Stage, ...]
    damage: Literal["loss", "kl"]
    ordered: tuple[str, ...] = ()
    cliff: float | None = None
    small: int = 0
    advice: str = ""

    def run(self) -> Outcome:
        """Order, remove step by step, cut, and recover; continues from the context's folder.

        The search ends early when every move that is left lies beyond the cliff, or when none is left of a number of
        removals: the accepted steps are kept, and `Outcome.details` says why under ``ended``.

        Raises:
            BudgetUnmetError: When the budget cannot be reached, or no move is left before it holds.
        """
        if any(stage.count is None for stage in self.stages):
            self._target.require_reachable(self._space)
        ranking = self._reorder()
        trace, small, ended = self._cut()
        details: dict[str, Any] = {"subnet": trace.subnet.to_json(), "scored": sum(step.scored for step in trace.steps)}
        return Outcome(
            kind="model", value=self._recover(small), curve=self._curve(trace), space=self._space.to_json(),
            tensors=ranking, details=details | ({"ended": ended} if ended else {}),
        )  # fmt: skip

    @cached_property
    def _space(self) -> Space:
        return self.model.space(**({"width": self.config.width_step} if self.config.width_step else {}))

    @cached_property
    def _target(self) -> Target:
        context = self.context
        return Target(
            context.budget, context.original, context.cost.figures, margin=self.config.margin,
            exact=frozenset(name for name in context.budget.names if context.cost.provenance(name) == "counted"),
        )  # fmt: skip

    @property
    def _dtype(self) -> torch.dtype:
        parameter = next(self.model.module.parameters())
        chosen: torch.dtype = (
            fast_dtype(parameter.device) if self.config.precision == "auto" else getattr(torch, self.config.precision)
        )
        return chosen if parameter.dtype == torch.float32 else parameter.dtype

    def _reorder(self) -> dict[str, torch.Tensor]:
        """Most important units first; the function of the model is unchanged."""
        dims = {dim.name for branch in self.model.anatomy.branches for dim in branch.dims}
        if self.config.score == "none" or dims.isdisjoint(self.ordered):
            return {}
        work = in_dtype(self.model, self._dtype)
        windows = spread(self.context.data.recovery, self.config.order_windows)
        walk = Walk(work, windows)
        ranking = orders(work, self.ordered, score=self.config.score, walk=walk, events=self.context.events)
        reorder(self.model, ranking)
        return ranking

    def _cut(self) -> tuple[Trace, Model, str]:
        """Remove until the budget holds by measurement too, where a term was only predicted."""
        for _ in range(_ATTEMPTS):
            trace, ended = self._search()
            give_back()  # the working copy and the hidden states of the search
            small = extract(self.model, trace.subnet, space=self._space)
            self._target.correct(trace.subnet, self.context.confirm(small))
            if ended or self._by_count or self._target.holds(trace.subnet):
                break
        return trace, small, ended

    def _search(self) -> tuple[Trace, str]:
        """All stages on a working copy, which is gone again when the model itself is cut; continues a former search."""
        work = in_dtype(self.model, self._dtype)
        walk = Walk(
            work, self.context.data.calibration[: self.config.windows], folder=self.context.folder / "hidden",
            memory_limit=self.context.memory_limit,
        )  # fmt: skip
        masking = Masking(work.binding, self._space)
        checkpoint = Checkpoint(self.context.folder / "greedy", self._key())
        try:
            judge = Divergence(walk) if self.damage == "kl" else None
            lazy = _laziness(self.damage, all(stage.thrifty for stage in self.stages))
            greedy = Greedy(
                masking, walk, judge=judge, lazy=lazy if self.config.lazy else None, checkpoint=checkpoint,
                events=self.context.events,
            )  # fmt: skip
            return greedy.trace, self._stages(greedy)
        finally:
            masking.restore()

    def _key(self) -> dict[str, Any]:
        """What the removal depends on; a checkpoint of anything else is refused."""
        settings = {key: value for key, value in self.config.to_mapping().items() if not key.startswith("recover")}
        return {
            "config": settings,
            "budget": str(self.context.budget),
            "seed": self.context.seed,
            "data": self.context.data.fingerprint,
        }

    @property
    def _by_count(self) -> bool:
        """Whether numbers alone say when it ends."""
        return self.stages[-1].count is not None

    def _stages(self, greedy: Greedy) -> str:
        """Run the stages; returns why they ended before their time, where later ones did not make up for it."""
        early: list[str] = []
        cliffs = 0
        for stage in self.stages:
            enough, goal = self._until(stage, greedy)
            rank = self._by_need() if stage.thrifty else lowest_loss
            greedy.run(stage.kinds, rank=self._limited(rank), enough=enough, goal=goal)
            if not enough(greedy.trace.subnet):
                refused = self._refused(stage, greedy)
                early.append(self._why(stage, greedy, refused))
                cliffs += bool(refused)
        for reason in early:
            self.context.events.message(reason)
        if self._by_count:
            return "; ".join(early)
        if self._target.holds(greedy.trace.subnet):
            return ""
        loads = self._target.loads(greedy.trace.subnet)
        unmet = ", ".join(f"{name} at {load:.1%} of its bound" for name, load in loads.items())
        if not cliffs:
            raise BudgetUnmetError(f"no move is left but the budget is not met ({unmet}); {self.advice}")
        return f"{'; '.join(early)}; the budget is not met ({unmet})"

    def _until(self, stage: Stage, greedy: Greedy) -> tuple[Callable[[Subnet], bool], Callable[[Subnet], float]]:
        """Return when a stage has gone far enough, and which share of its way a Subnet has gone."""
        if stage.count is not None:
            count = stage.count
            return lambda _: self._done(stage, greedy) >= count, lambda _: self._done(stage, greedy) / max(1, count)
        progress, holds = self._target.progress(self._space), self._target.holds
        early = stage.share < 1.0 - 1e-9
        return lambda subnet: holds(subnet) or (early and progress(subnet) >= stage.share), progress

    def _by_need(self) -> Rank:
        """Rank by damage per saving in the terms that are not met yet."""

        def rank(damage: float, before: Subnet, after: Subnet) -> float:
            return damage_per(self._target.weight(before))(damage, before, after)

        return rank

    def _limited(self, rank: Rank) -> Rank:
        return rank if self.cliff is None else within(math.log1p(self.cliff), rank)

    def _refused(self, stage: Stage, greedy: Greedy) -> list[tuple[float, Move]]:
        """Moves that are left but lie beyond the cliff, and the damage of each."""
        left = moves(self._space, greedy.walk.model.anatomy, greedy.trace.subnet, stage.kinds)
        damages = [(greedy.trace.stale[str(move)], move) for move in left]
        return [pair for pair in damages if self.cliff is not None and pair[0] > math.log1p(self.cliff)]

    def _why(self, stage: Stage, greedy: Greedy, refused: list[tuple[float, Move]]) -> str:
        """Say why a stage ended before its time."""
        kinds, done = "+".join(stage.kinds), self._done(stage, greedy)
        if not refused:
            return f"{kinds}: nothing is left to remove after {done} removals"
        damage, move = min(refused, key=lambda pair: pair[0])
        return (
            f"{kinds}: stopped at the cliff after {done} removals: the least harmful one left, {move}, would raise "
            f"perplexity by {math.expm1(damage):.0%} (cliff={self.cliff:g})"
        )

    def _done(self, stage: Stage, greedy: Greedy) -> int:
        """Removals of a stage's kinds; stages with numbers share none, so that a continued search knows its place."""
        return sum(step.move.kind in stage.kinds for step in greedy.trace.steps)

    def _recover(self, small: Model) -> Model:
        config = self.config
        if not config.recover_steps:
            return small
        park(self.model)  # its memory is needed now; only its function will be asked for again, not its order
        small = spill(small, self.context.folder / "cut.safetensors")
        give_back()
        settings = RecoverConfig(
            steps=config.recover_steps, lr=config.recover_lr, batch=config.recover_batch, rank=config.recover_rank,
            small=self.small,
        )  # fmt: skip
        return recover(small, self.context.data.recovery, config=settings, context=self.context)

    def _curve(self, trace: Trace) -> tuple[CurvePoint, ...]:
        losses = [trace.start_nll, *(step.nll for step in trace.steps)]
        changes = ["original", *(str(step.move) for step in trace.steps)]
        steps = zip(changes, trace.subnets(self._space), losses, strict=True)
        return tuple(
            CurvePoint(
                step=index, change=change, subnet=subnet.to_json(), figures=self.context.cost.figures(subnet),
                quality={"ppl": math.exp(min(loss, 700.0))},
            )
            for index, (change, subnet, loss) in enumerate(steps)
        )  # fmt: skip
