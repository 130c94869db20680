"""What a federated method is: one class with a server's side, a client's side, and what both do to the model first."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError, unknown_name
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan
from lissome.core.protocols import CostOracle
from lissome.core.seeds import derive
from lissome.engine.federate.client import ClientProgram
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.merge import Bounded, Damped, Holders, Mean, Merger, Overlap, Private, Trimmed
from lissome.engine.federate.outer import Adam, Momentum, Outer, Replace
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program
from lissome.engine.federate.training import Lesson, TrainingClient
from lissome.engine.train import TrainConfig
from lissome.models.adapters import add_lora
from lissome.models.labels import has_classes, head_parameters
from lissome.models.model import Model

_LEAST_NOISE = 0.01


@dataclass(frozen=True, kw_only=True)
class FederatedConfig(MethodConfig):
    """Settings that federated methods share."""

    trains: Literal["all", "adapters", "head"] = option(
        "all", "what is trained and exchanged: everything, low-rank adapters with the head, or the head alone"
    )
    freeze: tuple[str, ...] = option(
        ("*embeddings*", "*embed_tokens*"),
        "patterns of names that are never trained: embeddings are half of a small model's bytes, and show which words "
        "a client has",
    )
    private: tuple[str, ...] = option((), "patterns of names that stay with each client, such as classifier.*")
    common: float = option(
        1.0, "personal models: clients are judged by common·(global) + (1 − common)·(what they trained last); "
        "1: by the global one", low=0.0, high=1.0,
    )  # fmt: skip
    rank: int = option(8, "rank of the adapters", low=1)
    alpha: float = option(16.0, "adapters are scaled by alpha / rank", low=0.0)
    epochs: float = option(1.0, "passes over a client's examples in a round", low=0.0, high=1e6)
    steps: int | None = option(None, "optimizer steps in a round instead of epochs; equal work for all clients", low=1)
    lr: float | None = option(
        None, "learning rate of the clients; default 3e-4 with adamw where everything is trained, which suits "
        "pre-trained weights, else 1e-3", low=0.0,
    )  # fmt: skip
    decay: float = option(1.0, "factor on it from round to round", low=0.0, high=1.0)
    batch: int = option(16, "examples per step", low=1)
    optimizer: Literal["adamw", "sgd"] = option("adamw", "of the clients")
    weight_decay: float = option(0.0, "of the clients", low=0.0)
    proximal: float = option(
        0.0, "FedProx: weight of the squared distance to the weights that came, beside the task", low=0.0
    )
    moments: bool = option(False, "clients keep their optimizer's moments and their place in the data between rounds")
    down: str = option("raw", "codec of what goes to clients: words joined by +: raw, fp16, bf16, int8, pack")
    up: str = option("raw", "codec of what comes back: also delta, top=5%, feedback")
    merge: Literal["overlap", "damped", "mean", "trimmed"] = option(
        "overlap", "mean over those who hold a coordinate; damped: the others count as unchanged; mean: whole tensors "
        "only; trimmed: without the extremes"
    )  # fmt: skip
    trim: float = option(0.1, "of trimmed: share that goes at either end", low=0.0, high=0.49)
    bound: float | None = option(None, "largest L2 norm of a client's update; longer ones are shortened", low=1e-9)
    noise: float = option(
        0.0, "differential privacy: noise on the sum of updates, times `bound`; every client counts alike then",
        low=0.0,
    )  # fmt: skip
    noise_clients: int | None = option(
        None, "of noise: clients wanted in a round; the sum of a coordinate is divided by how many of them are planned "
        "to hold it", low=1,
    )  # fmt: skip
    delta: float = option(1e-5, "of noise: probability with which epsilon does not hold", low=1e-12, high=0.5)
    secure: bool = option(False, "secure aggregation: the server learns the sum of updates alone; needs merge=mean")
    secure_largest: float = option(
        1.0, "of secure: largest change of a number in a round; a step is 2⁻²⁰ of it", low=1e-9
    )
    outer: Literal["replace", "momentum", "adam"] = option("replace", "optimizer of the server")
    outer_lr: float = option(0.7, "its step, where it has one", low=0.0)
    outer_momentum: float = option(0.9, "its momentum", low=0.0, high=0.9999)

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.down, self.up):
            Codec.parse(text)
        if Codec.parse(self.down).delta:
            raise ConfigError("down: the server does not know what clients have kept; delta is for what comes back.")
        if Codec.parse(self.down).top < 1:
            raise ConfigError("down: what top leaves out would be zero at the clients; it is for what comes back.")
        if Codec.parse(self.up).top < 1 and not Codec.parse(self.up).delta:
            raise ConfigError(f"up: what top leaves out of whole tensors would be zero; write delta+{self.up}.")
        if 0 < self.noise < _LEAST_NOISE:
            promised = 0.5 / self.noise / self.noise
            raise ConfigError(
                f"noise={self.noise:g} promises nothing (epsilon is beyond {promised:.3g} after one round); "
                f"give at least {_LEAST_NOISE}, or 0 for none."
            )
        if self.private_updates and (self.bound is None or self.noise_clients is None or self.merge != "overlap"):
            raise ConfigError("noise needs bound, the norm that updates are shortened to, noise_clients, and no merge.")

    @property
    def rate(self) -> float:
        """Learning rate of the first round."""
        if self.lr is not None:
            return self.lr
        return 3e-4 if self.trains == "all" and self.optimizer == "adamw" else 1e-3

    @property
    def private_updates(self) -> bool:
        """Whether updates are merged with noise."""
        return self.noise > 0

    def check_late(self) -> None:
        """Check that an answer of an earlier round can join a later one.

        Raises:
            ConfigError: When it cannot; says why.
        """
        if self.secure:
            raise ConfigError("the masks of a late answer are those of a sum that is over; with secure, set late=drop.")

    def alone(self) -> Self:
        """Return the settings with which clients train all the same, but nothing travels.

        Raises:
            ConfigError: When clients do nothing then.
        """
        return replace(self, private=("*",), noise=0.0, secure=False)

    def pooled(self) -> Self:
        """Return the settings for one client that has all the data: nobody to hide from, and none to be outweighed."""
        return replace(self, bound=None, noise=0.0, secure=False)

    def training(self, examples: int) -> TrainConfig:
        """Settings of the training loop for one round with so many examples."""
        steps = self.steps or max(1, math.ceil(self.epochs * examples / self.batch))
        return TrainConfig(
            steps=steps, lr=self.rate, batch=min(self.batch, max(1, examples)), optimizer=self.optimizer,
            weight_decay=self.weight_decay, schedule="constant",
        )  # fmt: skip

    def merger(self, planned: Callable[[], Holders] | None = None) -> Merger:
        """What clients' tensors are merged by.

        Args:
            planned: With noise: gives how many clients are planned to hold each coordinate (default: all hold all).
        """
        if self.private_updates:
            assert self.bound is not None
            assert self.noise_clients is not None
            return partial(Private, clip=self.bound, noise=self.noise, clients=self.noise_clients, planned=planned)
        known: dict[str, Merger] = {
            "overlap": Overlap, "damped": Damped, "mean": Mean, "trimmed": partial(Trimmed, share=self.trim),
        }  # fmt: skip
        inner = known[self.merge]
        return inner if self.bound is None else partial(Bounded, norm=self.bound, inner=inner)

    def server_optimizer(self) -> Outer:
        """What moves the global tensors."""
        if self.outer == "momentum":
            return Momentum(self.outer_lr, self.outer_momentum)
        return Adam(self.outer_lr, self.outer_momentum) if self.outer == "adam" else Replace()

    def phase(self, **changes: Any) -> Phase:
        """The phase in which clients train."""
        found = {"merger": self.merger(), "down": Codec.parse(self.down), "up": Codec.parse(self.up)}
        return Phase(**{**found, **changes})


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerSite:
    """What the server's side of a method starts from.

    Attributes:
        model: The whole model, as `FederatedMethod.prepare` left it.
        lesson: What is learned, with the server's own examples held out.
        cost: What a Subnet of the model costs.
        seed: Of all that is drawn.
        folder: For whatever it must keep beside the checkpoints.
        kinds: Kinds of devices that are planned: a budget, and its share of the clients; empty: nothing is known.
    """

    model: Model
    lesson: Lesson
    cost: CostOracle
    seed: int
    folder: Path
    kinds: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientSite:
    """What a client's side of a method starts from.

    Attributes:
        facts: Who the client is.
        model: The whole model, as `FederatedMethod.prepare` left it; shared with others, not to be changed.
        lesson: What is learned, with this client's examples.
        seed: Of the federation.
        new_head: Whether the model was given a new head for the classes of this federation.
    """

    facts: Profile
    model: Model
    lesson: Lesson
    seed: int
    new_head: bool = False


class FederatedMethod(Method):
    """Base of federated methods; a subclass gives at least the server's side."""

    Config: ClassVar[type[MethodConfig]] = FederatedConfig
    config: Any

    def prepare(self, model: Model, seed: int) -> None:
        """Do to a model, in place, what server and clients must both have done: freeze, add adapters, reorder.

        Args:
            model: The whole model.
            seed: Of all that is drawn, the same on both sides.

        Raises:
            ConfigError: When a pattern freezes nothing.
        """
        config = self.config
        if config.trains == "adapters":
            self.put_adapters(model, derive(seed, "adapters"))
        elif config.trains == "head":
            model.module.requires_grad_(False)
        if config.trains != "all" and has_classes(model):
            for parameter in head_parameters(model):
                parameter.requires_grad_(True)
        self._require_frozen(model)
        for name, parameter in model.module.named_parameters():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.freeze):
                parameter.requires_grad_(False)

    def _require_frozen(self, model: Model) -> None:
        """Refuse a pattern that was given and freezes nothing: what it was meant for would be trained, and travel."""
        names = [name for name, _ in model.module.named_parameters()]
        for pattern in self.config.freeze:
            if pattern not in FederatedConfig.freeze and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                known = dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in names)
                raise ConfigError(unknown_name("tensor of freeze", pattern, known))

    def put_adapters(self, model: Model, seed: int) -> None:
        """Put adapters on a model, in place; by default of one rank on all linear layers."""
        add_lora(model, rank=self.config.rank, alpha=self.config.alpha, seed=seed)

    def server(self, site: ServerSite) -> Program:
        """Return the server's side."""
        raise NotImplementedError

    def client(self, site: ClientSite) -> ClientProgram:
        """Return a client's side; by default one that trains its Subnet."""
        return TrainingClient(**self.training(site))

    def training(self, site: ClientSite) -> dict[str, Any]:
        """Return what a `TrainingClient` is built from, by name."""
        config = self.config
        # With SGD its larger gradients move a new head further by themselves; adapters learn at rates that suit it too.
        fast_head = site.new_head and config.optimizer == "adamw" and config.trains == "all"
        return {
            "facts": site.facts, "base": site.model, "lesson": site.lesson,
            "config": config.training(len(site.lesson)), "private": config.private, "moments": config.moments,
            "proximal": config.proximal, "common": config.common, "fast_head": fast_head,
        }  # fmt: skip

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Refuse: a federated method is not a step of `fit`."""
        raise ConfigError(f"{type(self).__name__} trains across clients; run it with: lissome federate RECIPE.toml")

    def run(self, model: Any, context: Context) -> Outcome:
        """Refuse: a federated method is not a step of `fit`."""
        raise ConfigError(f"{type(self).__name__} trains across clients; run it with: lissome federate RECIPE.toml")
