"""The job of ``lissome federate``: run a federation to its end, or say what it would do."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from lissome.core.errors import ConfigError, FederationError
from lissome.core.events import EventStream
from lissome.core.files import read_json
from lissome.core.seeds import derive
from lissome.core.typed import as_json
from lissome.cost.memory import Sizes, predict_training
from lissome.cost.peak import peak_memory
from lissome.data.partition import PARTITION
from lissome.engine.federate.link import Link
from lissome.engine.federate.orders import AnswerHead, OrderHead
from lissome.engine.federate.parcel import WEIGHT, Parcel
from lissome.engine.federate.program import Program
from lissome.engine.federate.rounds import Federation
from lissome.models.space import Subnet
from lissome.pipeline.compare import quiet
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.loading import RECIPE
from lissome.pipeline.outcome import stage
from lissome.pipeline.run import RESULT, RunFolder, check_place

Backend = Literal["inprocess", "ray", "deployment"]
BACKENDS: tuple[str, ...] = ("inprocess", "ray", "deployment")


@dataclass(frozen=True, kw_only=True)
class ServerPlace:
    """Where the server of a deployment listens, and who may join.

    Attributes:
        credentials: Folder that ``lissome federate credentials`` made; None connects in the clear.
        host: Address that the server listens at.
        port: Its port; 0 takes a free one.
        alone: Whether the clients are processes of this machine, started with the server.
    """

    credentials: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    alone: bool = True


@dataclass(frozen=True, kw_only=True)
class ClientForecast:
    """What one client would get in the first round.

    Attributes:
        name: Of the client.
        kind: Of its device.
        examples: That it trains on.
        budget: Of its device.
        subnet: The choices that differ from the whole model.
        figures: What the Subnet costs, by budget term.
        down: Bytes of an order.
        up: Bytes of its answer.
        memory: Predicted peak bytes of training it.
    """

    name: str
    kind: str
    examples: int
    budget: str
    subnet: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    down: int = 0
    up: int = 0
    memory: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """What a federation would do.

    Attributes:
        federation: Its name.
        recipe: What it was asked.
        clients: What each client would get.
        payload: Bytes of tensors per round with all clients sampled, training alone, both ways.
        message: Bytes of messages of such a round.
        server_memory: Predicted bytes that the server holds beside the model.
    """

    federation: str
    recipe: dict[str, Any]
    clients: tuple[ClientForecast, ...]
    payload: int
    message: int
    server_memory: float

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields


@dataclass(frozen=True, kw_only=True)
class FederationReport:
    """How a federation ended.

    Attributes:
        out: Its folder.
        rounds: What happened, round by round; the first is the start.
        bytes: Sum of all messages.
        subnets: How many orders to train each size of Subnet had, by its share of the parameters.
        audit: How often each kind of thing went wrong.
        seconds: How long it took.
    """

    out: Path
    rounds: tuple[dict[str, Any], ...]
    bytes: dict[str, int]
    subnets: dict[str, int]
    audit: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able fields."""
        return {**vars(self), "out": str(self.out), "rounds": list(self.rounds)}


def plan_federation(recipe: Path | FederationRecipe, *, events: EventStream | None = None) -> FederationPlan:
    """Say who would get which Subnet, how many bytes a round has, and how much memory it takes; nothing is trained.

    Raises:
        LissomeError: For all that can be known before the work.
    """
    return planned(FederationJob(_recipe(recipe), quiet(events)))


def planned(job: FederationJob) -> FederationPlan:
    """Say what `plan_federation` says of a federation whose sides are built already."""
    program = job.server(Path())
    profiles = [job.profile(name) for name in job.silos.names]
    assigned = program.assign(1, profiles, Random(derive(job.recipe.seed, "assign", 1)))
    phases = [phase for phase in program.phases(1) if phase.sends or phase.merger is not None]
    clients, payload, message = [], 0, 0
    for profile in profiles:
        subnet = assigned[profile.name]
        down = up = 0
        for index in range(len(phases)):
            order, answer = _parcels(program, job, profile, subnet, index)
            payload += order.payload + answer.payload
            message += order.bytes + answer.bytes
            down, up = down + order.bytes, up + answer.bytes
        clients.append(_forecast(job, program, profile, subnet, down, up))
    held = sum(tensor.numel() * tensor.element_size() for tensor in program.tensors.values())
    accumulators = sum(tensor.numel() * 8 for tensor in program.tensors.values())
    return FederationPlan(
        federation=job.name, recipe=job.recipe.to_json(), clients=tuple(clients), payload=payload, message=message,
        server_memory=float(3 * held + accumulators),
    )  # fmt: skip


def federate(
    recipe: Path | FederationRecipe,
    *,
    out: Path | str,
    backend: Backend = "inprocess",
    server: ServerPlace | None = None,
    events: EventStream | None = None,
) -> FederationReport:
    """Run a federation; the same call again continues one that was interrupted.

    Args:
        recipe: What is to be done.
        out: Output folder; it becomes an artifact of the global model.
        backend: Where clients run: in this process, in Flower's simulation, or as processes of their own.
        server: For a deployment: where the server listens, and who may join; None: all of it on this machine.
        events: Where progress is reported.

    Raises:
        LissomeError: One of the tree in `lissome.core.errors`.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    start, stream = time.monotonic(), quiet(events)
    check_place(Path(out))
    job = FederationJob(_recipe(recipe), stream)
    folder = RunFolder(Path(out), job.identity())
    done = folder.finished()
    if done is not None:
        stream.message(f"{out} is finished; this is its stored result")
        return read_federation(Path(out))
    with folder.locked():
        job.silos.partition.save(folder.state / PARTITION)
        (folder.state / RECIPE).write_text(job.recipe.to_toml(), encoding="utf-8")
        with peak_memory() as peak:
            federation = _run(job, folder, backend, server, stream)
        federation.require_a_change()
        stage(job, federation, folder, time.monotonic() - start, float(peak.above))
        folder.publish()
    return read_federation(Path(out))


def serve(job: FederationJob, link: Link, folder: Path, events: EventStream) -> Federation:
    """Run the server's side over a link; continues from the checkpoints in `folder`."""
    federation = _federation(job, link, folder, events)
    federation.run()
    return federation


def _federation(job: FederationJob, link: Link, folder: Path, events: EventStream) -> Federation:
    return Federation(
        job.server(folder), link, job.rounds, folder=folder, identity=job.identity(), seed=job.recipe.seed,
        events=events,
    )  # fmt: skip


def read_federation(out: Path) -> FederationReport:
    """Read the stored result of a finished federation.

    Raises:
        ArtifactError: When the folder is damaged.
    """
    fields = {key: value for key, value in read_json(out / RESULT).items() if key != "job"}
    return FederationReport(**{**fields, "out": out, "rounds": tuple(fields["rounds"])})


def _recipe(given: Path | FederationRecipe) -> FederationRecipe:
    return given if isinstance(given, FederationRecipe) else FederationRecipe.read(Path(given))


def _run(
    job: FederationJob, folder: RunFolder, backend: Backend, place: ServerPlace | None, events: EventStream
) -> Federation:
    server, alone = folder.state / "server", backend != "deployment" or place is None or place.alone
    if not job.silos.names and alone:
        raise ConfigError('nothing is dealt out (scheme = "own"), so that clients must join: lissome federate server')
    if backend == "inprocess":
        return serve(job, job.local_link(folder.state / "clients"), server, events)
    if backend == "ray":
        return _simulate(job, folder, server, events)
    return _deploy(job, folder, server, place or ServerPlace(), events)


def _simulate(job: FederationJob, folder: RunFolder, server: Path, events: EventStream) -> Federation:
    """Run clients on Ray's workers; the server's side stays in this process."""
    from lissome.engine.federate.flower.simulation import simulate
    from lissome.pipeline.flower import simulated

    ended: list[Federation] = []
    simulate(
        lambda link: ended.append(serve(job, link, server, events)), simulated(job, folder.state / "clients"),
        len(job.silos.names),
    )  # fmt: skip
    return ended[0]


def _deploy(job: FederationJob, folder: RunFolder, server: Path, place: ServerPlace, events: EventStream) -> Federation:
    """Run server and clients as processes of their own, then read what the server's one left."""
    from lissome.engine.federate.flower.credentials import Credentials
    from lissome.engine.federate.flower.deployment import Deployment
    from lissome.pipeline.flower import EVENTS, FAILED, local_nodes, write_app

    (server / FAILED).unlink(missing_ok=True)
    known = Credentials(folder=place.credentials) if place.credentials is not None else None
    nodes = local_nodes(job, folder.state / "parts", folder.state / "clients", known) if place.alone else []
    Deployment(
        folder.state / "flower", write_app(job, folder.state / "app", server), nodes,
        known=known.clients() if known is not None else None, security=known.server if known is not None else None,
        host=place.host, port=place.port,
    ).run(events, server / EVENTS)  # fmt: skip
    federation = _federation(job, job.local_link(folder.state / "clients"), server, events)
    if not (federation.continued() and federation.done):
        logs = f"see {folder.state / 'flower'}, then give the same command again"
        why = (server / FAILED).read_text(encoding="utf-8") if (server / FAILED).exists() else ""
        raise FederationError(f"{why or 'the run ended before its last round.'} ({logs})")
    return federation


def _parcels(
    program: Program, job: FederationJob, profile: Any, subnet: Subnet | None, index: int
) -> tuple[Parcel, Parcel]:
    """An order of a phase and its answer, without data."""
    phase = [one for one in program.phases(1) if one.sends or one.merger is not None][index]
    ticket = f"1.{100 + index}.{profile.name}.1"
    head = OrderHead(
        action=phase.action, ticket=ticket, round=1, tick=100 + index, seed=derive(job.recipe.seed, profile.name),
        subnet=subnet.to_json() if subnet is not None else None, down=str(phase.down), up=str(phase.up),
        settings=dict(program.settings(phase, 1, profile)), federation=job.name,
    )  # fmt: skip
    layout = program.layout(phase, 1, profile, subnet)
    down = phase.down.spec(layout.templates(program.tensors)) if phase.sends else {}
    returned = program.returns(phase, 1, profile, subnet)
    up = phase.up.spec(returned.templates(program.tensors)) if phase.merger is not None else {}
    answer = AnswerHead(ticket=ticket, tick=100 + index)
    return (
        Parcel(kind=phase.kind, head=head.to_json(), tensors=down),
        Parcel(kind=phase.kind, head=answer.to_json(), tensors=up, numbers={WEIGHT: 1.0, "loss": 1.0}),
    )


def _forecast(
    job: FederationJob, program: Program, profile: Any, subnet: Subnet | None, down: int, up: int
) -> ClientForecast:
    planner, full = getattr(program, "planner", None), job.model.space().full
    figures = planner.figures(subnet or planner.space.full) if planner is not None else {}
    changes = {name: value for name, value in (subnet or {}).items() if value != full.get(name)}
    memory = _memory(job, program, figures) if figures else 0.0
    return ClientForecast(
        name=profile.name, kind=profile.kind, examples=profile.examples, budget=profile.budget, subnet=changes,
        figures=dict(figures), down=down, up=up, memory=memory,
    )  # fmt: skip


def _memory(job: FederationJob, program: Program, figures: Mapping[str, float]) -> float:
    """Predict the peak bytes of training a Subnet with such figures."""
    planner, batch = getattr(program, "planner", None), getattr(job.recipe.step.config, "batch", 8)
    share = figures["params"] / max(1.0, planner.full["params"]) if planner is not None else 1.0
    trained = share * sum(math.prod(one.shape) for one in program.tensors.values())
    if job.model.anatomy.task == "image":
        return float(figures["disk"] + 4 * (3 * trained + 2 * batch * share * job.outputs))
    sizes = Sizes(
        weights=figures["disk"], params=figures["params"], block_params=figures["block_params"],
        hidden=job.model.anatomy.hidden, layers=len(job.model.anatomy.blocks),
        vocabulary=job.model.anatomy.vocabulary,
    )  # fmt: skip
    return predict_training(sizes, tokens=batch * job.recipe.data.length, trained=trained)
