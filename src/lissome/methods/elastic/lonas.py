"""LoNAS: tune and shrink a frozen language model at once: elastic low-rank adapters beside elastic frozen layers.

Problem: a model is to be both tuned and smaller, with little to train. Munoz, Yuan, Zheng, Jain, "LoNAS: Elastic
Low-Rank Adapters for Efficient Large Language Models" (LREC-COLING 2024, ACL Anthology 2024.lrec-main.940; see also
arXiv 2501.16372): adapters ``y = W[:n, :m] x + (alpha / r_max) · B[:n, :r] A[:r, :m] x`` are trained on a frozen W
with rank r and widths n and m drawn anew for each micro-batch; the width of B is that of W, so that adapter and weight
always have one shape, and can be merged into one smaller dense layer. A search for (cost, quality) follows:
`lissome search`.

Differs from the published code, and why:

- Whole KV groups are cut where keys and values are shared.
- Extraction merges the adapters, since the base is dense; costs are counted of the merged model.
- ``order`` sorts neurons and heads, perhaps after a warm-up of the adapters (``warm_steps``); the published code keeps
  the original order, and so does the default. What is best depends on the model and the task.
- ``paths=sandwich`` is there to compare with; the published configurations switch it off. With ``distil`` its smaller
  sub-networks learn from the largest one (in-place distillation, Yu & Huang 2019, arXiv 1903.05134).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.method import Context, Outcome
from lissome.core.seeds import derive
from lissome.engine.elastic import Elastic
from lissome.engine.hooks import Hooks
from lissome.engine.paths import RandomPath, Sandwich
from lissome.engine.spaces import Widths, elastic_space
from lissome.engine.supermethod import Making, SupernetConfig, SupernetMethod
from lissome.models.adapters import Design, adapters, add_adapters
from lissome.models.adapters.elastic import adaptable, check_ranks, check_sides, linear_shapes
from lissome.models.anatomy import Dim
from lissome.models.model import Model
from lissome.models.space import Space

_CHANNELS = frozenset({"width", "channels"})


class LoNAS(SupernetMethod):
    """Elastic adapters tied to elastic frozen widths."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense", "text"})

    @dataclass(frozen=True, kw_only=True)
    class Config(SupernetConfig):
        """Settings of LoNAS."""

        lr: float = option(3e-4, "peak learning rate; cosine to 0 after a warm-up of 5 %", low=0.0, high=10.0)
        tune_steps: int | None = option(
            0, "steps in which the whole model is trained first; the paper freezes it", low=0
        )
        ranks: tuple[int, ...] | None = option(
            None, "ranks to choose from, descending; none: 8,4,2 for an encoder, 32,28 for a language model", low=1
        )
        alpha: float | None = option(
            None, "products are scaled by alpha over the largest rank; none: twice that", low=0.0
        )
        dropout: float = option(0.1, "of the adapters' inputs", low=0.0, high=0.9)
        adapt: Literal["paper", "all"] = option(
            "paper",
            "layers with adapters: queries and values of an encoder, all but outputs of attentions else; or all",
        )
        widths: tuple[float, ...] = option((1.0, 0.875, 0.75, 0.625, 0.5), "shares of neurons", low=0.01, high=1.0)
        heads: tuple[float, ...] | None = option(
            None, "shares of heads; none: 1,0.75,0.5 for an encoder, all of a language model's stay", low=0.01, high=1.0
        )
        multiple: int = option(8, "neurons are rounded down to a multiple", low=1)
        min_width: int = option(32, "neurons that stay at least", low=1)
        paths: Literal["random", "sandwich"] = option("random", "sub-networks of a step: one, or the ends and one")
        even: float = option(
            0.0, "of a sandwich: share of steps in which the one between is at the same place of every axis", low=0.0,
            high=1.0,
        )  # fmt: skip
        distil: float = option(
            0.0, "share of what the largest sub-network says in the loss of the others; needs paths=sandwich", low=0.0,
            high=1.0,
        )  # fmt: skip
        temperature: float = option(2.0, "by which logits are divided there; of text always 1", low=0.01)
        order: Literal["none", "l1", "l2", "wanda", "first_order", "random"] = option(
            "none", "what sorts neurons and heads before the training; none keeps their order"
        )
        warm_steps: int = option(0, "steps in which the adapters of the whole model are trained before that", low=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.ranks is not None:
                check_ranks(self.ranks)
            if self.distil and self.paths != "sandwich":
                raise ConfigError("distil teaches the others of a sandwich; set paths=sandwich too.")

    config: Config

    def run(self, model: Model, context: Context) -> Outcome:
        """Put adapters on a frozen copy, train them at all ranks and widths; continues after a kill.

        Raises:
            ConfigError: When no layer has the largest rank.
            SubnetError: When nothing is left to choose.
            DataError: When there are no examples to train on or to choose by.
            NumericsError: When training fails; names the step.
        """
        config = self.config
        if config.ranks is not None:
            check_sides(config.ranks[0], (one.stored for one in linear_shapes(model).values()), model.name)
        making = Making(model, context, config)
        making.tune()
        given = making.quality()
        self.adapt(making.model, seed=derive(context.seed, "adapters"))
        if config.warm_steps:
            making.train("warm", Hooks(), steps=config.warm_steps, part="given")
        space = self._space(making.model)
        making.sort(config.order, [name for name in space.by_name if not name.endswith(".rank")])
        sampler = Sandwich(space, even=config.even) if config.paths == "sandwich" else RandomPath(space)
        elastic = Elastic(making.model, sampler)
        loss = None
        if config.distil:
            loss = making.objective.lesson(making.model, elastic, share=config.distil, temperature=config.temperature)
        making.train("train", elastic, loss=loss, part="given")
        numbers = [value.numel() for value in making.model.module.parameters()]
        learnt = [value.numel() for value in making.model.module.parameters() if value.requires_grad]
        return making.outcome(space, given=given, details={"trained": sum(learnt), "of": sum(numbers)})

    def adapt(self, model: Model, *, seed: int) -> None:
        """Put adapters on, in place: one group for what reads a branch's input; what writes its output has one rank."""
        config, encoder = self.config, model.anatomy.task == "encoder"
        ranks = config.ranks or ((8, 4, 2) if encoder else (32, 28))
        alpha = 2.0 * ranks[0] if config.alpha is None else config.alpha
        groups, writers = _groups(model, everything=config.adapt == "all")
        add_adapters(model, Design(ranks=ranks, alpha=alpha, dropout=config.dropout, groups=groups), seed=seed)
        for name, adapter in adapters(model.module).items():
            if name in writers:
                adapter.ranks = ranks[:1]
        model.reread()

    def _space(self, model: Model) -> Space:
        """Ranks, neurons, and heads where they are elastic."""
        config = self.config
        usual = (1.0, 0.75, 0.5) if model.anatomy.task == "encoder" else (1.0,)
        neurons = Widths(shares=config.widths, least=config.min_width, multiple=config.multiple)
        heads = Widths(shares=config.heads or usual)

        def rule(name: str, dim: Dim) -> tuple[int, ...]:
            return neurons(name, dim) if dim.kind in _CHANNELS else heads(name, dim)

        return elastic_space(model, rule, kinds=("width", "rank"))


def _groups(model: Model, *, everything: bool) -> tuple[dict[str, str], frozenset[str]]:
    """The group of each layer with an adapter, and those layers that write a branch's output."""
    found: dict[str, str] = {}
    writers: set[str] = set()
    known, encoder = frozenset(adaptable(model)), model.anatomy.task == "encoder"
    for branch in model.anatomy.branches:
        made = {cut.parameter for dim in branch.dims for cut in dim.cuts if not cut.reads}
        readers = [name for name in branch.linears if f"{name}.weight" in made and name in known]
        others = [name for name in branch.linears if name in known and name not in readers]
        if not everything:
            if encoder:
                readers = [name for name in readers if branch.kind == "attention" and not name.endswith(".key")]
                others = []
            elif branch.kind == "attention":
                others = []
        label = "+".join(name.rpartition(".")[2] for name in readers)
        found |= dict.fromkeys(readers, label) | {name: name.rpartition(".")[2] for name in others}
        writers |= set(others)
    return found, frozenset(writers)
