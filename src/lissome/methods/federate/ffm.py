"""FFM — every stage of a foundation model's life across silos (Yu et al. 2023, arXiv 2305.11414).

The paper states the paradigm: min over φ of Σ_i (n_i/n)·E_{D_i} ℓ(θ, φ; x), where θ stays frozen, φ alone is exchanged,
and what is φ and ℓ makes the stage. It has no code; the algorithms are the common ones that each setting cites:

- ``finetune``: φ is everything, low-rank adapters, or the head. Adapters are merged as factors (FedIT, 2305.05644), as
  products (FlexLoRA, 2402.11505), with A frozen (FFA-LoRA, 2403.12313), or folded into the weights (FLoRA, 2409.05976).
- ``prompt``: φ is virtual tokens before every input (2104.08691). ``prompt-search``: the same without gradients
  (FedBPT, 2310.01467): clients score candidates, the server moves towards the better ones.
- ``continual``: data come in slices of time; replay, EWC (1612.00796) or the old model's opinion (1606.09282) keep what
  was learned before; clients take part when new rows came or their loss rises, if so wanted.
- ``retrieve``: nothing is trained; queries go out, clients rank their own documents, the server merges the lists.
- ``pretrain``: φ is everything, ℓ the next token, and the server takes a Nesterov step (DiLoCo, 2311.08105); where it
  has public text, it alternates with steps on that.

The arms that it is compared with (centralised, local, zero-shot) are settings of any federation: ``arm = "local"``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.seeds import derive
from lissome.engine.federate.blackbox import MOST, WIDEST, Projection, PromptScorer, PromptSearch
from lissome.engine.federate.client import ClientProgram
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.continual import MOST_SLICES, ContinualClient
from lissome.engine.federate.lora import FoldingClient, FoldingProgram, Products, folded_tensors, folds
from lissome.engine.federate.method import ClientSite, FederatedConfig, FederatedMethod, ServerSite
from lissome.engine.federate.program import Program
from lissome.engine.federate.public import ServerPhase, public_lesson
from lissome.engine.federate.retrieval import Librarian, Retrieval
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.triggers import Triggered
from lissome.models.adapters import Design, adaptable, adapters, add_adapters, rank_space
from lissome.models.adapters.elastic import labels
from lissome.models.adapters.prompts import add_prompt
from lissome.models.fresh import fresh_weights
from lissome.models.labels import has_classes, head_parameters
from lissome.models.model import Model

_LEARN = ("finetune", "pretrain", "continual")
_LONGEST = 10_000  # a list of documents that somebody reads
_MOST_TOKENS = 4096  # more than any prompt that was ever tuned has; positions, where a model counts them, are fewer


class FFM(FederatedMethod):
    """The stages of a foundation model's life, federated."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"federated"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FederatedConfig):
        """Settings: those that all federated methods share, and the stage."""

        recipe: Literal["finetune", "pretrain", "prompt", "prompt-search", "continual", "retrieve"] = option(
            "finetune", "which stage"
        )
        trains: Literal["all", "adapters", "head"] = option(
            "adapters", "what is trained and exchanged: everything, low-rank adapters with the head, or the head alone"
        )
        lora: Literal["factors", "product", "freeze-a", "stack"] = option(
            "factors", "how adapters are merged: factor by factor; their products, factored again; B alone, A frozen; "
            "products folded into the weights, after which adapters start anew"
        )  # fmt: skip
        tokens: int = option(16, "of prompt and prompt-search: virtual tokens", low=1, high=_MOST_TOKENS)
        candidates: int = option(20, "of prompt-search: candidates of a round", low=4, high=MOST)
        dimensions: int = option(50, "of prompt-search: numbers of a candidate", low=1, high=WIDEST)
        slices: int = option(
            4, "of continual: slices of time, each a part of a client's rows in their order", low=1, high=MOST_SLICES
        )
        period: int = option(1, "of continual: rounds that a slice lasts", low=1)
        protect: Literal["none", "replay", "ewc", "distil"] = option("replay", "of continual: against forgetting")
        memory: int = option(100, "of replay: most examples of earlier slices, private to each client", low=1)
        strength: float | None = option(None, "of ewc and distil: weight beside the task (default: 100 and 1)", low=0.0)
        results: int = option(5, "of retrieve: documents of a list", low=1, high=_LONGEST)
        trigger: Literal["always", "samples", "drift"] = option(
            "always", "of continual: which clients take part: all; those with new rows; those whose loss rises"
        )
        trigger_samples: int = option(1, "of trigger=samples: rows that came since a client last learned", low=1)
        trigger_drift: float = option(0.1, "of trigger=drift: how far above its moving mean the loss is, nats", low=0.0)
        trigger_clients: int = option(1, "of trigger: fewest triggered clients with which a round trains", low=1)
        public: str = option(
            "", "of pretrain, finetune and continual: public rows, in the form of the data, that the server itself "
            "learns from in every round"
        )  # fmt: skip
        public_steps: int = option(10, "of public: optimizer steps in a round", low=1)
        fresh: bool = option(False, "pretrain: start from new random weights instead of the model's own")

        def __post_init__(self) -> None:
            super().__post_init__()
            self._check_lora()
            if self.recipe.startswith("prompt") and self.lora != "factors":
                raise ConfigError(f"recipe={self.recipe} trains virtual tokens, no adapters; leave lora out.")
            if self.recipe == "continual" and (self.moments or self.lora == "stack"):
                raise ConfigError("recipe=continual keeps no moments, and goes with lora=factors, product or freeze-a.")
            if self.private_updates and (
                self.lora in {"product", "stack"} or self.recipe in {"prompt-search", "retrieve"}
            ):
                raise ConfigError(
                    f"noise is for updates that are averaged; it does not go with lora={self.lora} and "
                    f"recipe={self.recipe}."
                )
            if self.trigger != "always" and (self.recipe != "continual" or self.secure):
                raise ConfigError(f"trigger={self.trigger} is for recipe=continual, without secure.")
            if self.public and (self.recipe not in _LEARN or self.lora == "stack" or self.secure):
                raise ConfigError(f"public goes with {', '.join(_LEARN)}, and neither with lora=stack nor with secure.")
            if self.proximal and self.recipe in {"prompt-search", "retrieve"}:
                raise ConfigError(f"recipe={self.recipe} trains nothing at the clients; leave proximal out.")
            if self.common < 1 and (self.lora == "stack" or self.recipe in {"prompt-search", "retrieve"}):
                raise ConfigError(
                    "common mixes what clients train with what comes; here it is not the same: leave it out."
                )
            if self.fresh and self.recipe != "pretrain":
                raise ConfigError("fresh weights are for recipe=pretrain; there is nothing to fine-tune in them.")

        def _check_lora(self) -> None:
            if self.lora != "factors" and self.trains != "adapters":
                raise ConfigError(f"lora={self.lora} is about adapters; set trains=adapters.")
            if self.lora in {"product", "stack"} and (self.merge != "overlap" or self.bound is not None):
                raise ConfigError(f"lora={self.lora} merges products itself; leave merge and bound as they are.")
            if self.lora == "product" and self._keeps_factors:
                raise ConfigError(
                    "lora=product factors anew in every round, and what is kept of old factors fits no new ones; leave "
                    "outer, moments, common, the codec's feedback and protect=ewc out."
                )
            if self.lora == "stack" and Codec.parse(self.up).delta:
                raise ConfigError("lora=stack: adapters that come back start anew, and differ from nothing; no delta.")

        @property
        def _keeps_factors(self) -> bool:
            """Whether somebody remembers factors of an earlier round."""
            held = self.outer != "replace" or self.moments or self.common < 1 or Codec.parse(self.up).feedback
            return held or (self.recipe == "continual" and self.protect == "ewc")

        def check_late(self) -> None:
            """As of all; where factors are made anew in every round, a difference to older ones says nothing."""
            super().check_late()
            if self.lora == "product" and Codec.parse(self.up).delta:
                raise ConfigError(
                    "lora=product: a late difference is to factors that are gone; set late=drop, or up=raw."
                )

        def alone(self) -> Self:
            """As of all; the server learns nothing either, and there is nothing to fold.

            Raises:
                ConfigError: When clients do nothing then.
            """
            if self.recipe in {"prompt-search", "retrieve"}:
                raise ConfigError(f"clients of recipe={self.recipe} learn nothing by themselves; leave arm=local out.")
            return replace(super().alone(), public="", lora="factors" if self.lora == "stack" else self.lora)

    config: Config

    def prepare(self, model: Model, seed: int) -> None:
        """Draw new weights if that is asked for; freeze A, where B alone is trained."""
        if self.config.fresh:
            fresh_weights(model, derive(seed, "fresh"))
        if self.config.recipe.startswith("prompt"):
            add_prompt(model, self.config.tokens, seed=derive(seed, "prompt"))
            if self.config.recipe == "prompt" and has_classes(model):
                for parameter in head_parameters(model):
                    parameter.requires_grad_(True)
            return
        if self.config.recipe == "retrieve":
            model.module.requires_grad_(False)
            return
        super().prepare(model, seed)
        if self.config.lora == "freeze-a":
            for adapter in adapters(model.module).values():
                adapter.A.requires_grad_(False)

    def put_adapters(self, model: Model, seed: int) -> None:
        """Put adapters on all linear layers, whose ranks a device may halve."""
        ranks, known = [self.config.rank], labels(model)
        while ranks[-1] > 1:
            ranks.append(ranks[-1] // 2)
        groups = {name: known[name] for name in adaptable(model)}
        add_adapters(model, Design(ranks=tuple(ranks), alpha=self.config.alpha, groups=groups), seed=seed)

    def server(self, site: ServerSite) -> Program:
        """Return the server's side of the stage."""
        config = self.config
        if config.recipe == "retrieve":
            return Retrieval(site.model, site.lesson, config.results)
        if config.recipe == "prompt-search":
            search = PromptSearch.of(site, config)
            search.begin(self._projection(site.model, site.seed), config.candidates, site.seed)
            return search
        kind = FoldingProgram if config.lora == "stack" else SubnetProgram
        if config.trigger != "always":
            kind = Triggered
        ranked = config.recipe != "prompt" and config.trains == "adapters"
        program = kind.of(site, config, rank_space(site.model) if ranked else None)
        if isinstance(program, Triggered):
            program.least, program.sends = config.trigger_clients, config.trigger == "drift"
        if config.public:
            program.own = ServerPhase(
                lesson=public_lesson(site.model, site.lesson, config.public), seed=site.seed,
                config=replace(config.training(config.batch), steps=config.public_steps),
            )  # fmt: skip
        if not ranked:
            return program
        if config.lora == "stack":
            program.tensors = folded_tensors(site.model, program.tensors)
            program.change(merger=partial(Products, into=folds(site.model)))
        elif config.lora == "product":
            program.change(merger=Products)
        return program

    def client(self, site: ClientSite) -> ClientProgram:
        """Return a client's side of the stage."""
        if self.config.recipe == "retrieve":
            return Librarian(facts=site.facts, base=site.model, lesson=site.lesson, count=self.config.results)
        if self.config.recipe == "prompt-search":
            meaning = self._projection(site.model, site.seed)
            return PromptScorer(**self.training(site), projection=meaning, candidates=self.config.candidates)
        if self.config.recipe == "continual":
            return self._continual(site)
        return FoldingClient(**self.training(site)) if self.config.lora == "stack" else super().client(site)

    def _continual(self, site: ClientSite) -> ContinualClient:
        config = self.config
        return ContinualClient(
            **self.training(site), slices=config.slices, period=config.period, protect=config.protect,
            memory=config.memory, seed=site.seed, strength=config.strength, trigger=config.trigger,
            trigger_samples=config.trigger_samples, trigger_drift=config.trigger_drift,
        )  # fmt: skip

    def _projection(self, model: Model, seed: int) -> Projection:
        return Projection.of(model, self.config.dimensions, derive(seed, "projection"))
