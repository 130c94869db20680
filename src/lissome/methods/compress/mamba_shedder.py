"""Mamba-Shedder: remove Mamba blocks, or only their scans, by the model's own perplexity; hybrids in stages.

Problem: a state-space model, or a hybrid of Mamba and attention, is too slow or too big, and there is no time to train.
Munoz, Yuan, Jain, "Mamba-Shedder: Post-Transformer Compression for Efficient Selective Structured State Space Models"
(NAACL 2025, arXiv 2501.17088): remove, one at a time, the structure whose removal leaves the lowest perplexity on
calibration text. A Mamba block goes as a whole (h stays h), or its scan alone: then ``y = x`` after the convolution,
before gate, norm and output projection. In hybrids three stages follow each other: blocks, attentions and MLPs
compete; then groups of MLP channels; then the scans of the mixers that are left.

Differs from the paper, and why:

- ``steps`` gives numbers of removals, as the paper does; without it the cut is any budget, which all that the model has
  competes for by damage per saving, because which part is cheap differs between models. Damage is then the divergence
  from the original, which one text's noise does not fool; with ``steps`` or a ``split`` it is perplexity.
- It stops at the cliff: a removal that would raise perplexity by more than ``cliff`` is not made. In the published
  results one scan too many takes perplexity from 6.5 to 15.
- Scans are cut out, not masked: dead rows of projections, convolved channels and states are gone from the file too.
- MLP channels are put in order of importance first, as MultiPruner does; the paper keeps the first ones.
- A short recovery is on by default: adapters on the layers that take them, and the small tensors of the blocks
  (convolutions, norms, decays, narrow projections) themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lissome.core.budget import Budget
from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan, expected_figures
from lissome.engine.removal import TERMS, Removal, RemovalConfig, Stage, expected_plan, in_turn, shares
from lissome.models.adapters import merged_copy
from lissome.models.anatomy import Anatomy
from lissome.models.model import Model

_STAGES = (("blocks", "attention", "mlp"), ("width",), ("ssm",))
"""Targets of the paper's three stages."""
_SMALL = (
    1 << 20
)  # numbers of a tensor that is trained itself: all of narrow models, convolutions and norms of wide ones


class MambaShedder(Method):
    """Training-free removal of Mamba blocks, scans, attentions, MLPs and MLP channels, with optional recovery."""

    needs: ClassVar[frozenset[str]] = frozenset({"mixer", "dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"pruned"})
    budget_terms: ClassVar[frozenset[str]] = TERMS

    @dataclass(frozen=True, kw_only=True)
    class Config(RemovalConfig):
        """Settings of Mamba-Shedder."""

        targets: tuple[Literal["blocks", "ssm", "attention", "mlp", "width"], ...] | None = option(
            None, "what may go; default all that the model has, with one number of steps blocks, attention and mlp"
        )
        steps: int | tuple[int, int, int] | None = option(
            None, "removals to make, whatever the budget: one number, or those of the stages blocks,width,ssm", low=0
        )
        split: str = option("auto", "auto: all targets compete; or shares blocks:width:ssm of the cut, one by one")
        cliff: float | None = option(
            0.1, "largest rise of perplexity by one removal, as a share; none removes on", low=0.0
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if shares(self.split) is not None and self.steps is not None:
                raise ConfigError("steps gives numbers and split gives shares of the cut; set one of them.")
            if self.targets == ():
                raise ConfigError(f"targets is empty; name some of {', '.join(sum(_STAGES, ()))}.")

    config: Config

    @property
    def follows_budget(self) -> bool:
        """Whether the budget decides how much goes; with ``steps`` it is only held against the result."""
        return self.config.steps is None

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the result: the budget's bounds, as far as removal can reach them; nothing for numbers of steps.

        Raises:
            BudgetUnmetError: When removal alone cannot reach a bound.
        """
        figures = expected_figures(card, budget) if self.follows_budget else {}
        plan = expected_plan(card, figures, self.config, damage=self._damage(), competing=self._compete, kinds=2)
        note = f"steps={self.config.to_mapping().get('steps')} says how much goes; what that saves is known afterwards"
        return plan if self.follows_budget else replace(plan, notes=(note,))

    def run(self, model: Model, context: Context) -> Outcome:
        """Remove step by step, cut, and recover.

        Raises:
            ConfigError: When the model has nothing of a target or a stage.
            BudgetUnmetError: When no move is left before the bounds hold; not when the cliff ends it.
        """
        return Removal(
            model=merged_copy(model),  # recovery puts adapters of its own on
            config=self.config,
            context=context,
            stages=self._stages(model.anatomy),
            damage=self._damage(),
            ordered=("width",),
            cliff=self.config.cliff,
            small=_SMALL,
            advice="allow more with --set targets, or split=auto.",
        ).run()

    @property
    def _compete(self) -> bool:
        return self.follows_budget and self.config.split == "auto"

    def _damage(self) -> Literal["loss", "kl"]:
        return self.config.judged_by(self._compete)

    def _stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        config, present = self.config, _present(anatomy)
        default = _STAGES[0] if isinstance(config.steps, int) else tuple(present)
        for target in config.targets or ():
            if target not in present:
                raise ConfigError(
                    f"targets={target}: this {anatomy.architecture} has none; it has {', '.join(present)}."
                )
        wanted = [tuple(target for target in group if target in (config.targets or default)) for group in _STAGES]
        groups = [tuple(present[target] for target in group if target in present) for group in wanted]
        if config.steps is None:
            stages = [stage for stage in in_turn(groups, config.split) if stage.kinds]
            return (*stages[:-1], replace(stages[-1], share=1.0))  # the last one that there is goes to the budget
        if isinstance(config.steps, int):
            return (Stage(kinds=tuple(kind for group in groups for kind in group), count=config.steps),)
        for targets, kinds, count in zip(_STAGES, groups, config.steps, strict=True):
            if count and not kinds:
                raise ConfigError(
                    f"steps={','.join(map(str, config.steps))}: there is nothing of {'/'.join(targets)} to remove in "
                    f"this {anatomy.architecture}, which has {', '.join(present)}; put 0 there."
                )
        return tuple(Stage(kinds=kinds, count=count) for kinds, count in zip(groups, config.steps, strict=True))


def _present(anatomy: Anatomy) -> dict[str, str]:
    """What a model has, by target: the branch kind or the dim."""
    kinds = {branch.kind for branch in anatomy.branches}
    kinds |= {dim.name for branch in anatomy.branches for dim in branch.dims if dim.size}
    return {
        target: kind
        for group in _STAGES
        for target in group
        if (kind := "mixer" if target == "blocks" else target) in kinds
    }
