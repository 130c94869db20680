"""BootstrapNAS: make a super-network out of any pre-trained network, without annotations, and train it in stages.

Problem: one trained network is too large for one device and too small for another, and nobody wants to design and
train one for each. Munoz, Lyalyushkin, Akhauri, Senina, Kozlov, Jain, "Enabling NAS with Automated Super-Network
Generation" (AAAI-22 workshop, arXiv 2112.10878): channels that must change together, blocks that can be skipped and
kernels that can shrink are found in the traced network; its filters are sorted by the sum of their absolute weights, so
that a width w means the w strongest; then one random sub-network is trained at each step, with more and more choices
from stage to stage (progressive shrinking, Cai et al. 2020, arXiv 1908.09791). Sub-networks get batch norm statistics
of their own. A search for (cost, quality) follows: `lissome search`.

Differs from the published code (NNCF), and why:

- What is found comes from the recorded operations of one forward pass: heads, squeeze-and-excite, concatenations and
  grouped convolutions need no rule of their own, and what stays rigid is listed with its reason.
- A group's filters are sorted before the first stage that opens widths, and never again: later, the optimizer's moments
  would belong to other filters. Every stage has an optimizer of its own anyway.
- ``kernels=crop`` leaves the learnt matrix out that NNCF, and ``kernels=matrix`` here, multiplies into a crop.
- How many of the last blocks of a group are skipped is drawn evenly; the published code flips a coin for each block and
  drops what is illegal, which rarely reaches the ends. The choice is one number for each group, where the published
  search walks all subsets.
- A step trains the largest, one at random and the smallest (``paths=sandwich``), for one random path at each step, as
  published, rarely sees the ends. Nor is ``teacher=largest`` in the published code, in-place distillation (Yu & Huang
  2019, arXiv 1903.05134).
- ``streams`` gives channels of residual streams shares of their own: cutting them costs more than cutting the inside of
  blocks as much. ``sides=both`` also counts the weights that read a filter.
- No label smoothing; the published example for CIFAR-10 uses 0.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.method import Context, Outcome
from lissome.engine.elastic import Elastic
from lissome.engine.hooks import Loss
from lissome.engine.paths import PathSampler, RandomPath, Sandwich, depth_groups, kind_of
from lissome.engine.spaces import KINDS, Widths, elastic_space, narrowed
from lissome.engine.supermethod import Making, SupernetConfig, SupernetMethod
from lissome.models.anatomy import Dim
from lissome.models.crops import add_crops
from lissome.models.model import Model
from lissome.models.space import Space

_PART = re.compile(r"(?P<kind>[a-z]+)(?P<most>[1-9]\d*)?")


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """What one stage opens, and its part of the training steps."""

    kinds: tuple[str, ...]
    depth: int | None
    widths: int | None
    part: float

    @classmethod
    def parse(cls, text: str) -> _Stage:
        """Read ``depth2+width3:50``: blocks that may go at most, largest widths that are open, and weight of the stage.

        Raises:
            ConfigError: When it cannot be read.
        """
        kinds, _, part = text.partition(":")
        found = [_PART.fullmatch(each) for each in kinds.split("+")]
        most = {match["kind"]: match["most"] for match in found if match}
        if None in found or not set(most) <= set(KINDS) or not re.fullmatch(r"(\d+(\.\d+)?)?", part):
            raise ConfigError(
                f"{text!r} is no stage; write kinds of {', '.join(KINDS)} and perhaps a weight: depth2+width3:50."
            )
        limits = {kind: int(value) if value else None for kind, value in most.items()}
        return cls(
            kinds=tuple(most), depth=limits.get("depth"), widths=limits.get("width"), part=float(part) if part else 1.0
        )


class BootstrapNAS(SupernetMethod):
    """Automatic super-networks, trained by progressive shrinking."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SupernetConfig):
        """Settings of BootstrapNAS."""

        stages: tuple[str, ...] = option(
            ("kernel+depth2+width",), "what each stage opens, and its weight: depth1:25,depth2:40,depth2+width2:50"
        )
        widths: tuple[float, ...] | None = option(
            (1.0, 0.8, 0.6, 0.5), "shares of channels and heads; none: steps of width_step", low=0.01, high=1.0
        )
        streams: tuple[float, ...] | None = option(
            None, "shares of channels that run between blocks, along residual sums; none: as widths; 1: all stay",
            low=0.01, high=1.0,
        )  # fmt: skip
        width_step: int = option(32, "channels of a step, where widths=none", low=1)
        min_width: int = option(32, "channels that stay at least", low=1)
        multiple: int = option(8, "channels are rounded down to a multiple", low=1)
        max_widths: int | None = option(None, "choices of a width at most, the largest ones", low=1)
        order: Literal["l1", "l2", "wanda", "first_order", "random", "none"] = option(
            "l1", "what sorts filters before widths open; the published code has l1, its documentation l2"
        )
        sides: Literal["makes", "both"] = option(
            "makes", "weights that count for a filter: those that make it, as published, or those that read it too"
        )
        kernels: Literal["matrix", "crop"] = option(
            "matrix", "a smaller kernel: the centre of the next larger one, times a learnt matrix or as it is"
        )
        paths: Literal["random", "sandwich"] = option(
            "sandwich", "sub-networks of a step: one at random, as published, or the largest, one, and the smallest"
        )
        distil: float = option(0.0, "share of what the teacher says in the loss", low=0.0, high=1.0)
        teacher: Literal["given", "largest"] = option(
            "given", "the model that was given, or the largest sub-network of the same step (paths=sandwich)"
        )
        temperature: float = option(2.0, "by which logits are divided there", low=0.01)

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.stages:
                raise ConfigError("there must be a stage at least, such as kernel+depth+width.")
            for stage in self.stages:
                _Stage.parse(stage)
            if self.teacher == "largest" and not (self.distil and self.paths == "sandwich"):
                raise ConfigError(
                    "teacher=largest teaches the others of a sandwich; set paths=sandwich and distil too."
                )

    config: Config

    def run(self, model: Model, context: Context) -> Outcome:
        """Find what can change, sort the filters, train stage by stage; continues after a kill.

        Raises:
            SubnetError: When nothing is left to choose.
            DataError: When there are no examples to train on or to choose by.
            NumericsError: When training fails; names the step.
        """
        making = Making(model, context, self.config)
        stages = [_Stage.parse(text) for text in self.config.stages]
        space = self._space(making.model, stages)
        making.tune()
        given = making.quality()
        known = {kind_of(axis) for axis in space.axes}
        if "kernel" in known and self.config.kernels == "matrix":
            add_crops(making.model)
        stages = [stage for stage in stages if known.intersection(stage.kinds)]
        given_teacher = making.teacher() if self.config.distil and self.config.teacher == "given" else None
        whole, sorted_ = sum(stage.part for stage in stages), False
        for number, stage in enumerate(stages, start=1):
            if "width" in stage.kinds and not sorted_:
                making.sort(self.config.order, space.by_name, sides=self.config.sides)
                sorted_ = True
            opened = narrowed(space, stage.kinds, choices=stage.widths, depth=stage.depth)
            steps = max(1, round(self.config.steps * stage.part / whole))
            elastic = Elastic(making.model, self._sampler(opened))
            loss = self._lesson(making, given_teacher or elastic) if self.config.distil else None
            making.train(f"stage-{number}", elastic, steps=steps, loss=loss)
        return making.outcome(space, given=given, details={"stages": [" ".join(stage.kinds) for stage in stages]})

    def _space(self, model: Model, stages: Sequence[_Stage]) -> Space:
        """Everything that a stage opens: so many of the last blocks of each group, and sizes by the rule."""
        config = self.config
        kinds = tuple(dict.fromkeys(kind for stage in stages for kind in stage.kinds))
        limits = [stage.depth for stage in stages if "depth" in stage.kinds]
        most = None if None in limits else max((limit or 0 for limit in limits), default=0)
        rule = Widths(
            shares=config.widths, step=config.width_step, least=config.min_width, multiple=config.multiple,
            most=config.max_widths,
        )  # fmt: skip
        chains = [
            group if most is None else group[max(0, len(group) - most) :] for group in depth_groups(model.anatomy)
        ]
        streams = rule if config.streams is None else replace(rule, shares=config.streams)

        def sizes(name: str, dim: Dim) -> tuple[int, ...]:
            return (streams if dim.shared else rule)(name, dim)

        return elastic_space(model, sizes, kinds=kinds, chains=chains)

    def _lesson(self, making: Making, teacher: Model | Elastic) -> Loss:
        share, temperature = self.config.distil, self.config.temperature
        return making.objective.lesson(making.model, teacher, share=share, temperature=temperature)

    def _sampler(self, space: Space) -> PathSampler:
        return RandomPath(space) if self.config.paths == "random" else Sandwich(space)
