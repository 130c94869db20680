"""A federation before it starts: its recipe, read and checked, and both sides of its method."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

from lissome import __version__
from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, check_seed, option, read_toml, to_toml
from lissome.core.errors import ConfigError, unknown_name
from lissome.core.events import EventStream
from lissome.core.seeds import derive
from lissome.cost.activations import layer_outputs
from lissome.cost.oracle import SubnetCost
from lissome.data.partition import PartitionConfig
from lissome.engine.federate.client import LARGEST, Worker
from lissome.engine.federate.local import Device, LocalLink
from lissome.engine.federate.method import ClientSite, FederatedConfig, FederatedMethod, ServerSite
from lissome.engine.federate.profile import Profile, in_proportion
from lissome.engine.federate.program import Program
from lissome.engine.federate.rounds import RoundsConfig
from lissome.engine.federate.secure import masks
from lissome.engine.federate.secure.client import SecureClient
from lissome.engine.federate.secure.program import SecureProgram
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import Lesson
from lissome.engine.norms import batch_norms
from lissome.engine.recover import fingerprint
from lissome.models.labels import labels_of, outputs_of, puts_images_into_classes, with_image_labels, with_labels
from lissome.models.model import Model
from lissome.pipeline.loading import load
from lissome.pipeline.recipe import RecipeStep
from lissome.pipeline.silos import DataConfig, Silos, read_silos
from lissome.pipeline.tables import beside, only_step, said_of, table, tables

ARMS = ("federated", "centralised", "local", "zero-shot")
MOST_THREADS = 1024
"""Threads that a device may have; more is a slip of the hand."""

_TABLES = ("model", "seed", "arm", "data", "partition", "federation", "device", "step")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(MethodConfig):
    """A kind of device that clients have."""

    name: str = option("device", "what it is called in tables")
    share: float = option(1.0, "share of the clients that have it, relative to the other kinds", low=0.0, high=1e9)
    budget: str = option("", "what it can hold, such as params<=50%; empty: the whole model")
    seconds: float = option(1.0, "simulated seconds for one order", low=0.0, high=1e9)
    spread: float = option(0.0, "standard deviation of their logarithm", low=0.0, high=10.0)
    bandwidth: float | None = option(None, "simulated bytes per second, either way; none: no limit", low=1.0)
    dropout: float = option(0.0, "simulated probability that an order is never answered", low=0.0, high=1.0)
    threads: int = option(
        1, "threads that it trains with; back ends give the same bits with one alone", low=1, high=MOST_THREADS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget:
            Budget.parse(self.budget)

    def behaviour(self) -> Device:
        """How it behaves on the virtual clock."""
        return Device(
            seconds=self.seconds, spread=self.spread, dropout=self.dropout, bandwidth=self.bandwidth or math.inf
        )


@dataclass(frozen=True, kw_only=True)
class FederationRecipe:
    """What a recipe file of ``lissome federate`` says.

    Attributes:
        model: Anything that `lissome.load` reads.
        step: The one federated method, with its settings.
        data: What is learned, and what is held out.
        partition: How the data are dealt out.
        rounds: Settings of the loop.
        devices: Kinds of devices.
        seed: The one source of randomness.
        arm: ``"federated"``, or what that is compared with: ``"centralised"`` (one client with all data and no budget),
            ``"local"`` (clients train, but exchange nothing), ``"zero-shot"`` (nobody trains).
    """

    model: str
    step: RecipeStep
    data: DataConfig
    partition: PartitionConfig
    rounds: RoundsConfig
    devices: tuple[DeviceConfig, ...] = (DeviceConfig(),)
    seed: int = 0
    arm: str = "federated"

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ConfigError(unknown_name("arm", str(self.arm), ARMS))
        for part in (self.data, self.partition, self.rounds, *self.devices, self.step.config):
            part.check_finite()
        if self.rounds.late == "use" and isinstance(self.step.config, FederatedConfig):
            self.step.config.check_late()

    @classmethod
    def from_toml(cls, text: str, base: Path | None = None) -> FederationRecipe:
        """Read a recipe; paths of data are relative to `base`.

        It looks like this::

            model = "minilm"
            data = "reviews.jsonl"         # or a table [data] with source, test, held_out, length
            [partition]                    # optional
            scheme = "dirichlet"
            clients = 10
            [federation]                   # optional
            rounds = 10
            [[device]]                     # optional
            name = "phone"
            budget = "params<=50%"
            [[step]]
            method = "fedavg"

        Raises:
            ConfigError: When the text is not TOML, or a key is unknown, mistyped or missing.
            OrderError: When the steps are not one federated method.
        """
        fields = read_toml(text)
        for key in fields:
            if key not in _TABLES:
                raise ConfigError(unknown_name("recipe key", key, _TABLES))
        model, seed = fields.get("model"), fields.get("seed", 0)
        check_seed(seed)
        if not isinstance(model, str):
            raise ConfigError('a federation needs model = "NAME".')
        if isinstance(source := fields.get("data"), str):
            fields["data"] = {"source": source}
        data = table(fields, "data", DataConfig)
        return cls(
            model=beside(model, base), step=only_step(fields, base),
            data=replace(data, source=beside(data.source, base)),
            partition=table(fields, "partition", PartitionConfig), rounds=table(fields, "federation", RoundsConfig),
            devices=tables(fields, "device", DeviceConfig) or (DeviceConfig(),), seed=seed,
            arm=fields.get("arm", "federated"),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> FederationRecipe:
        """Read a recipe file.

        Raises:
            ConfigError: When it cannot be read, or as `from_toml`; names the file.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"the recipe {path} cannot be read ({error.strerror}); name a TOML file.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the recipe {path} cannot be read ({error}); save the file as UTF-8.") from error
        with said_of(str(path)):
            return cls.from_toml(text, path.resolve().parent)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-able fields."""
        return {
            "model": self.model, "seed": self.seed, "arm": self.arm, "data": self.data.to_mapping(),
            "partition": self.partition.to_mapping(), "federation": self.rounds.to_mapping(),
            "device": [one.to_mapping() for one in self.devices], "step": [self.step.to_json()],
        }  # fmt: skip

    def to_toml(self) -> str:
        """Write the recipe so that `from_toml` reads an equal one."""
        return to_toml(self.to_json())

    def acted(self) -> FederationRecipe:
        """Return the recipe in which the arm is spelled out in the settings that make it."""
        config: Any = self.step.config  # of a federated method: reading the recipe saw to that
        match self.arm:
            case "centralised":
                return replace(
                    self, step=replace(self.step, config=config.pooled()),
                    devices=tuple(replace(one, budget="") for one in self.devices),
                    rounds=replace(self.rounds, clients=None, least=1),
                )  # fmt: skip
            case "local":
                return replace(self, step=replace(self.step, config=config.alone()))
            case "zero-shot":
                return replace(self, rounds=replace(self.rounds, rounds=1, train=False))
        return self


class FederationJob:
    """Both sides of a federation, built when they are asked for.

    Args:
        recipe: What is to be done.
        events: Where loading reports its progress.
        classes: Names of the classes, for a client that does not see all data (default: those of the data).
    """

    def __init__(
        self, recipe: FederationRecipe, events: EventStream | None = None, *, classes: tuple[str, ...] = ()
    ) -> None:
        self.recipe, self._events, self._classes = recipe.acted(), events, classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are learned; none for text."""
        return self._classes or (self.silos.classes if self.recipe.data.learn == "classes" else ())

    @cached_property
    def method(self) -> FederatedMethod:
        """The method with its settings."""
        made = self.recipe.step.method(self.recipe.step.config)
        assert isinstance(made, FederatedMethod)
        return made

    @cached_property
    def _given(self) -> Model:
        return load(self.recipe.model, events=self._events)

    @cached_property
    def new_head(self) -> bool:
        """Whether the model gets a new head for the classes: it was not tuned on them.

        Networks of images without a head for classes keep to their hidden states; the lesson puts a layer on them.
        """
        given = self._given
        if not self.classes:
            return False
        if puts_images_into_classes(given):
            return outputs_of(given) != len(self.classes)
        return given.anatomy.task == "encoder" and labels_of(given) != self.classes

    @cached_property
    def model(self) -> Model:
        """The whole model, prepared by the method."""
        model = self._given
        if self.new_head:
            put = with_image_labels if model.anatomy.task == "image" else with_labels
            model = put(model, self.classes, seed=derive(self.recipe.seed, "head"))
        model.module.requires_grad_(True)
        self.method.prepare(model, self.recipe.seed)
        facts = repr((fingerprint(model.module), self.classes))
        self._base = hashlib.sha256(facts.encode()).hexdigest()
        return model

    @cached_property
    def outputs(self) -> int:
        """Numbers that all layers of the whole model give for one input."""
        return layer_outputs(self.model)

    @property
    def base(self) -> str:
        """Fingerprint of the prepared model and the names of the classes: what all must have alike."""
        _ = self.model
        return self._base

    @cached_property
    def silos(self) -> Silos:
        """The data, dealt out."""
        found = read_silos(self.recipe.data, self.recipe.partition, seed=self.recipe.seed)
        return found.together() if self.recipe.arm == "centralised" else found

    @cached_property
    def kinds(self) -> dict[str, DeviceConfig]:
        """The device of each client: kinds in proportion to their shares, dealt out at random."""
        names = list(self.silos.names)
        Random(derive(self.recipe.seed, "devices")).shuffle(names)
        dealt = in_proportion([one.share for one in self.recipe.devices], len(names))
        return {name: self.recipe.devices[kind] for name, kind in zip(names, dealt, strict=True)}

    @property
    def rounds(self) -> RoundsConfig:
        """Settings of the loop; it starts when all are there that have a part of the data."""
        given = self.recipe.rounds
        return given if given.clients else replace(given, clients=max(1, len(self.silos.names)))

    @cached_property
    def name(self) -> str:
        """Name of the federation: clients of another one are refused."""
        facts = repr((self.recipe.to_json(), self.silos.partition.fingerprint))
        return f"{self.recipe.step.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    def identity(self) -> dict[str, Any]:
        """What makes this federation itself: the same command continues, another is refused."""
        return {
            "lissome": __version__, "recipe": self.recipe.to_json(), "base": self.base,
            "data": self.silos.partition.fingerprint, "federation": self.name,
        }  # fmt: skip

    def profile(self, name: str) -> Profile:
        """Who a simulated client is."""
        kind, places = self.kinds[name], self.silos.partition.parts[name]
        return Profile(
            name=name, examples=len(places), budget=kind.budget, kind=kind.name, base=self.base,
            data=self.silos.partition.fingerprint,
        )  # fmt: skip

    def server(self, folder: Path) -> Program:
        """Build the server's side."""
        site = ServerSite(
            model=self.model, lesson=self.silos.server(self.model), cost=SubnetCost(self.model), seed=self.recipe.seed,
            folder=folder, kinds=[(one.budget, one.share) for one in self.recipe.devices],
        )  # fmt: skip
        self._require_enough()
        program, config = self.method.server(site), self.method.config
        if getattr(config, "secure", False):
            self._require_a_sum()
            program = SecureProgram(program, largest=config.secure_largest, seed=derive(self.recipe.seed, "secure"))
        one_of_each = [self.profile(name) for name in {kind: name for name, kind in self.kinds.items()}.values()]
        for client in one_of_each:
            program.check(client)  # a kind of the recipe that cannot take part is the recipe's mistake
        self._tell_of_norms(program, one_of_each)
        return program

    def _tell_of_norms(self, program: Program, clients: Sequence[Profile]) -> None:
        """Say where batch norms of slices keep the statistics of the whole, before hours are spent on them."""
        inner = program.inner if isinstance(program, SecureProgram) else program
        if self._events is None or not isinstance(inner, SubnetProgram) or inner.own_norms or inner.measures:
            return
        if batch_norms(self.model.module) and any(map(inner.cuts, clients)):
            self._events.message(
                f"{self.model.name} has batch norms; what is cut from it has the statistics of the whole, which are "
                "wrong for slices, because they cannot be exchanged here. Clients judge with statistics of their own."
            )

    def _require_enough(self) -> None:
        """Refuse to wait for more clients than have a part of the data: nobody else is let in."""
        there, wanted = len(self.silos.names), max(self.rounds.least, self.rounds.clients or 0)
        if 0 < there < wanted:
            raise ConfigError(f"{wanted} clients are waited for (clients, least), but data are dealt out to {there}.")

    def _require_a_sum(self) -> None:
        """Refuse secure sums of fewer than three clients: of two, each knows the other's update."""
        there, rounds = len(self.silos.names), self.rounds
        wanted = min(there, max(rounds.least, round(rounds.sample * there)))
        if rounds.train and 0 < wanted < masks.FEWEST:
            raise ConfigError(
                f"secure sums need at least {masks.FEWEST} clients in a round, {wanted} would take part; have more "
                "clients, or a larger sample."
            )

    def worker(
        self,
        name: str,
        folder: Path,
        lesson: Lesson | None = None,
        facts: Profile | None = None,
        *,
        federation: str | None = None,
        largest: int = LARGEST,
    ) -> Worker:
        """Build a client's side.

        Args:
            name: Of the client.
            folder: Its disk.
            lesson: What it learns (default: its part of the recipe's data).
            facts: Who it is (default: what the recipe says).
            federation: Name of the federation (default: that of the recipe and its data).
            largest: Bytes of an order above which it refuses.
        """
        site = ClientSite(
            facts=facts or self.profile(name), model=self.model, lesson=lesson or self.silos.client(name, self.model),
            seed=self.recipe.seed, new_head=self.new_head,
        )  # fmt: skip
        name_of_all = self.name if federation is None else federation
        client, config = self.method.client(site), self.method.config
        if getattr(config, "secure", False):
            client = SecureClient(inner=client, largest=config.secure_largest)
        worker = Worker(client, ClientStore(folder), federation=name_of_all, largest=largest)
        worker.threads, worker.discreet = self.kinds[name].threads if facts is None else 1, facts is not None
        return worker

    def local_link(self, folder: Path, names: Sequence[str] = ()) -> LocalLink:
        """Return clients in this process; each is built when it works.

        Args:
            folder: Their disks.
            names: Which ones (default: all).
        """
        workers: dict[str, Worker] = {}

        def make(name: str) -> Worker:
            if name not in workers:
                workers.clear()  # one at a time: memory does not grow with their number
                workers[name] = self.worker(name, folder / name)
            return workers[name]

        clients = {name: partial(make, name) for name in names or self.silos.names}
        devices = {name: kind.behaviour() for name, kind in self.kinds.items()}
        return LocalLink(clients, devices, seed=self.recipe.seed)
