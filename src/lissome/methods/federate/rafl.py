"""RaFL — the best architecture for each client's budget, and joint learning although they differ (Yu et al. 2022).

arXiv 2211.05716. Once: every budget gets a Subnet of one pre-trained model, argmax quality s.t. cost ≤ b_i. In every
round client i trains its own model w_i, which stays there, beside the small knowledge network θ, each learning from the
examples and from the other (`lissome.engine.federate.mutual`). θ_i goes back and is averaged, θ ← Σ n_i·θ_i / Σ n_i, or
all θ_i teach one on public examples without labels (`lissome.engine.federate.fuse`).

Differs: architectures are found by a search instead of drawn until one falls into a tolerance; quality before training
is closeness to the whole hidden states; the peer counts by KL and is detached (published code: squared
error of logits, gradients of both mixed). What is shared is a setting: nothing, knowledge, common weights, or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.seeds import derive
from lissome.data.labelled import Labelled
from lissome.data.sources import read_corpus
from lissome.engine.classify import encode
from lissome.engine.federate.allocate import Allocator
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import ClientProgram
from lissome.engine.federate.fuse import Distilled, Fusion
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Classes
from lissome.engine.federate.merge import Merger
from lissome.engine.federate.method import ClientSite, FederatedConfig, FederatedMethod, ServerSite
from lissome.engine.federate.mutual import KNOWLEDGE, MutualClient, bound_of, knowledge
from lissome.engine.federate.norms import moments_of, take_moments
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program
from lissome.engine.federate.public import refuse_judged
from lissome.engine.federate.subnets import SubnetProgram, share_space
from lissome.engine.train import TrainConfig
from lissome.models.model import Model
from lissome.models.space import Axis, Space, Subnet


class RaFL(FederatedMethod):
    """Searched architectures per budget that exchange knowledge."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"federated"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FederatedConfig):
        """Settings: those that all federated methods share, how architectures are found, and what is exchanged."""

        share: Literal["none", "knowledge", "overlap", "both"] = option(
            "knowledge", "what clients share: nothing, a small knowledge network, the weights that their models have "
            "in common, or both"
        )  # fmt: skip
        allocate: Literal["search", "random", "largest"] = option(
            "search", "how a budget's architecture is found; largest: all dims shrunk alike"
        )
        trials: int = option(60, "of the search: architectures to look at per budget", low=5)
        elastic: tuple[str, ...] = option(("width", "groups"), "kinds of dims that architectures differ in")
        shares: tuple[float, ...] = option((1.0, 0.75, 0.5, 0.25), "sizes of a dim, as shares of the whole")
        depth: bool = option(True, "whether architectures may leave out branches")
        knowledge: str = option("block_params<=25%", "budget of the knowledge network, which every client also holds")
        peer: float = option(1.0, "weight of the other network's opinion beside the task", low=0.0)
        fuse: Literal["average", "distil"] = option("average", "how knowledge networks are merged")
        public: str = option("", "of distil: JSON lines with public text, that nobody is judged by")
        temperature: float = option(1.0, "of distil", low=0.01)
        distil_steps: int = option(50, "of distil: optimizer steps in a round", low=1)
        distil_lr: float = option(1e-4, "of distil: learning rate", low=0.0)

        def __post_init__(self) -> None:
            super().__post_init__()
            Budget.parse(self.knowledge)
            if self.trains != "all":
                raise ConfigError("clients of RaFL train their own architectures whole; leave trains as it is.")
            if self.proximal:
                raise ConfigError(
                    "clients of RaFL train models of their own, which come from nobody; leave proximal out."
                )
            if self.common < 1:
                raise ConfigError("clients of RaFL have models of their own already; leave common out.")
            if self.private:
                raise ConfigError("clients of RaFL keep all of their models; say with share what travels.")
            if self.fuse == "distil" and not self.public:
                raise ConfigError("fuse=distil needs public texts; give public=FILE, or fuse=average.")
            if (self.private_updates or self.secure) and self.share == "none":
                raise ConfigError("noise and secure are for what is shared; share=none shares nothing: leave them out.")
            if self.fuse == "distil" and self.bound is not None:
                raise ConfigError("fuse=distil merges opinions, whose updates have no norm; leave bound out.")

        def alone(self) -> Self:
            """As of all: clients keep their models anyhow, and share nothing."""
            return replace(self, share="none", fuse="average", noise=0.0, secure=False)

        @property
        def overlaps(self) -> bool:
            """Whether weights are merged where they overlap."""
            return self.share in {"overlap", "both"}

        @property
        def teaches(self) -> bool:
            """Whether a knowledge network travels."""
            return self.share in {"knowledge", "both"}

    config: Config

    def server(self, site: ServerSite) -> Program:
        """Return the server's side."""
        program = _Server.of(site, self.config, _space(site.model, self.config))
        program.begin(self.config, site)
        return program

    def client(self, site: ClientSite) -> ClientProgram:
        """Return a client's side."""
        return MutualClient(
            facts=site.facts, base=site.model, lesson=site.lesson, config=self.config.training(len(site.lesson)),
            peer=self.config.peer, moments=self.config.moments,
        )  # fmt: skip


class _Server(SubnetProgram):
    """Allocates architectures, and merges what is shared."""

    own_norms = True

    def begin(self, config: RaFL.Config, site: ServerSite) -> None:
        """Find the knowledge network's size, and put its tensors beside those of the whole model."""
        assert self.planner is not None
        self.config = config
        self.allocator = Allocator(site.model, self.planner, config.allocate, trials=config.trials, seed=site.seed)
        self.small = self.planner.largest(Budget.parse(config.knowledge))
        if not config.overlaps:
            self.tensors = {}
        if config.teaches:
            bound = self._network()
            self.tensors |= {KNOWLEDGE + name: value for name, value in bound.values(list(bound.trained())).items()}
            self.tensors |= moments_of(bound.model, KNOWLEDGE)
        if config.fuse == "distil" and config.teaches:
            self.change(merger=_distilled(config, site, self._network))

    def choose(self, client: Profile, rng: Random) -> Subnet | None:
        """Return the architecture of a client's budget; without a budget, the whole model."""
        return self.allocator.of(client.bounds) if client.bounds else None

    def judged(
        self, round: int, clients: Sequence[Profile], trained: Mapping[str, Subnet | None], rng: Random
    ) -> dict[str, Subnet | None]:
        """Let every client evaluate its own architecture."""
        return {one.name: self.choose(one, rng) for one in clients}

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return the knowledge network whole, and of the whole model what an architecture keeps."""
        own = [name for name in self.tensors if not name.startswith(KNOWLEDGE)]
        slices = Layout.of_subnet(self.model, subnet, own)
        whole = Layout.whole(name for name in self.tensors if name.startswith(KNOWLEDGE))
        return Layout({**slices.places, **whole.places})

    def settings(self, phase: Phase, round: int, client: Profile) -> dict[str, Any]:
        """Say which Subnet the knowledge network is, and whether weights overlap."""
        found = {**super().settings(phase, round, client), "overlap": self.config.overlaps}
        return {**found, "knowledge": self.small.to_json()} if self.config.teaches else found

    def evaluate(self, round: int) -> dict[str, float]:
        """Score the knowledge network on the server's own data, else the whole model where weights overlap."""
        if self._lesson is None or not self.tensors:
            return {}
        bound = self.loaded()
        bound.module.eval()
        return self._lesson.score(bound.module)[1]

    def loaded(self) -> Bound:
        """Return the knowledge network, or the whole model where there is none, with the global tensors in it."""
        if not self.config.teaches:
            return super().loaded()
        bound = self._network()
        bound.load(knowledge(self.tensors))
        take_moments(bound.model, self.tensors, KNOWLEDGE)
        return bound

    def outcome(self) -> Model | None:
        """Return the knowledge network as the global model, where there is one."""
        return self.loaded().model if self.config.teaches else None

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The architectures that were found."""
        return {}, self.allocator.state()

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Take them back."""
        self.allocator.restore(value)

    def _network(self) -> Bound:
        assert self._lesson is not None
        return bound_of(self.model, self.small, self._lesson)


def _space(model: Model, config: RaFL.Config) -> Space:
    """Return the sizes of dims, and where depth may vary which branches stay."""
    widths = share_space(model, config.elastic, config.shares)
    if not config.depth:
        return widths
    keeps = [axis for axis in model.space().axes if axis.choices == (0, 1)]
    owner, names = model.anatomy.owners, {axis.name for axis in keeps}
    tied = (
        Axis(axis.name, axis.choices, switch=owner[axis.name][0])
        if len(owner[axis.name]) == 1 and owner[axis.name][0] in names
        else axis
        for axis in widths.axes
    )
    return Space((*keeps, *tied), model.space().quorums)


def _distilled(config: RaFL.Config, site: ServerSite, build: Any) -> Merger:
    """Return the merger that teaches one knowledge network by all of them."""
    documents = [one.text for one in read_corpus(Path(config.public)).documents]
    texts = tuple(dict.fromkeys(documents))
    rows = encode(site.model, Labelled(config.public, texts, (0,) * len(texts), ("unlabelled",)))
    lesson = site.lesson
    if not isinstance(lesson, Classes):
        raise ConfigError("fuse=distil is for classes of texts; use fuse=average.")
    refuse_judged(rows.ids, lesson.held_out.ids)
    training = TrainConfig(steps=config.distil_steps, lr=config.distil_lr, batch=config.batch, schedule="constant")
    fusion = Fusion(
        build=build, public=Classes(rows, rows.some([]), lesson.classes, lesson.seed), config=training,
        temperature=config.temperature, seed=derive(site.seed, "distil"), prefix=KNOWLEDGE,
    )  # fmt: skip
    return partial(Distilled, fusion=fusion)
