"""The back ends that run on Flower: its simulation, and processes of their own.

Flower starts the two apps of this file by the names in the app folder that `write_app` makes. A client reads the recipe
from the run's configuration, and from its node's: its name, the folder with its rows, and the folder that it keeps its
state in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lissome.core.budget import Budget, parse_bytes
from lissome.core.config import to_toml
from lissome.core.errors import ConfigError, FederationError, LissomeError
from lissome.core.events import Event, EventStream, JsonLines
from lissome.core.files import write_text
from lissome.data.parts import is_part, write_parts
from lissome.engine.federate.client import LARGEST, Worker, tellable
from lissome.engine.federate.flower.app import client_app, server_app
from lissome.engine.federate.flower.credentials import Credentials, check_own, make_credentials
from lissome.engine.federate.flower.deployment import Node, join
from lissome.engine.federate.flower.ports import check_address
from lissome.engine.federate.link import Link
from lissome.engine.federate.profile import Profile, check_name
from lissome.pipeline.federation import MOST_THREADS, FederationJob, FederationRecipe
from lissome.pipeline.silos import check_rows, own_lesson

EVENTS = "events.jsonl"
"""Where the apps of a deployment write what happens, in the folder of their state: they have no terminal."""
FAILED = "failed.txt"
"""Where a deployment's server writes why it ended."""

_APP = '''"""Made by lissome federate; Flower starts what is in it."""

from lissome.pipeline.flower import make_client_app, make_server_app

client_app = make_client_app()
server_app = make_server_app()
'''
_PROJECT = """[project]
name = "lissome-federation"
version = "1.0.0"
description = "A federation of lissome"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "lissome"

[tool.flwr.app.components]
serverapp = "federation:server_app"
clientapp = "federation:client_app"

[tool.flwr.app.config]
"""


def write_app(job: FederationJob, folder: Path, state: Path) -> Path:
    """Write the app that ``flwr run`` starts.

    Args:
        job: The federation.
        folder: Where the app goes.
        state: Where the server keeps checkpoints, on the machine that it runs on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "federation.py", _APP)
    dealt = job.silos.partition.fingerprint if job.silos.names else ""
    config = {
        "recipe": job.recipe.to_toml(), "federation": job.name, "state": str(state.resolve()),
        "classes": json.dumps(job.classes), "partition": dealt,
    }  # fmt: skip
    write_text(folder / "pyproject.toml", _PROJECT + to_toml(config))
    return folder


def make_client_app() -> Any:
    """Return the ClientApp of the app folder."""
    return client_app(_noting_worker)


def _noting_worker(context: Any) -> tuple[str, Worker]:
    """Make the worker of a node; one with rows of its own writes down what is asked of it, and why it cannot answer.

    Raises:
        FederationError: When that node cannot take part; says what the server may know of it.
    """
    own = "data" in context.node_config
    place = str(context.node_config.get("state", "")) if own else ""
    events = EventStream(partial(_append, Path(place) / EVENTS)) if place else EventStream()
    try:
        name, worker = worker_of(str(context.run_config["recipe"]), context)
    except Exception as error:
        if not own:
            raise
        events.message(f"this client cannot take part: {error if isinstance(error, LissomeError) else repr(error)}")
        raise FederationError(tellable(error)) from error  # Flower tells the server what is raised, but not its cause
    worker.events = events
    return name, worker


def _append(file: Path, event: Event) -> None:
    with JsonLines(file) as lines:
        lines(event)


def make_server_app() -> Any:
    """Return the ServerApp of the app folder; it ends when the federation has."""

    def main(link: Link, context: Any) -> None:
        from lissome.pipeline.federating import serve

        job = _job(str(context.run_config["recipe"]))
        state = Path(str(context.run_config["state"]))
        with JsonLines(state / EVENTS) as lines:
            try:
                serve(job, link, state, EventStream(lines))
            except LissomeError as error:
                write_text(state / FAILED, str(error))  # Flower's own log says it on page three
                raise

    return server_app(main)


def worker_of(recipe: str, context: Any, state: str = "") -> tuple[str, Worker]:
    """Make the worker of a node.

    Args:
        recipe: Text of the recipe.
        context: Flower's Context: the node's configuration has ``data`` (a folder or a file of rows; otherwise the
            node's part of the recipe's data is used), ``state``, and perhaps ``name``, ``model`` (where the model lies
            there), ``budget``, ``kind`` and ``threads`` of its device, and ``largest``, the bytes of an order that it
            takes.
        state: Folder for the state of nodes whose configuration names none.

    Raises:
        ConfigError: When the node's configuration lacks something.
        DataError: When its rows are not those that were dealt out to it.
    """
    config = context.node_config
    classes = tuple(json.loads(str(context.run_config.get("classes", "[]")))) if "data" in config else ()
    job = _job(recipe, classes, str(config.get("model", "")))
    place = str(config.get("state", state))
    if not place:
        raise ConfigError("the node's configuration has no state, the folder that it keeps its private part in.")
    if "data" not in config:
        name = job.silos.names[int(config["partition-id"])]
        return name, _built(recipe, name, str(Path(place) / name))
    name, lesson, digest = own_lesson(
        Path(str(config["data"])), str(config.get("name", "")), job.model, job.recipe.data, classes=classes,
        seed=job.recipe.seed, dealt=str(context.run_config.get("partition", "")),
    )  # fmt: skip
    facts = Profile(
        name=name,
        examples=len(lesson),
        budget=str(config.get("budget", "")),
        kind=str(config.get("kind", "")),
        data=digest,
        base=job.base,
    )
    federation = str(context.run_config.get("federation", ""))
    largest = parse_bytes(str(config["largest"]), "largest") if "largest" in config else LARGEST
    worker = job.worker(name, Path(place), lesson, facts, federation=federation, largest=largest)
    worker.threads = int(config.get("threads", 1))
    return name, worker


@lru_cache(maxsize=1)
def _job(recipe: str, classes: tuple[str, ...] = (), model: str = "") -> FederationJob:
    """The job of a recipe; a process serves one federation, and reads its model and data once."""
    read = FederationRecipe.from_toml(recipe)
    return FederationJob(replace(read, model=model) if model else read, classes=classes)


@lru_cache(maxsize=2)
def _built(recipe: str, name: str, place: str) -> Worker:
    return _job(recipe).worker(name, Path(place))


def local_nodes(job: FederationJob, parts: Path, state: Path, known: Credentials | None = None) -> list[Node]:
    """Give each client a folder with its rows, and return the nodes that read them.

    Args:
        job: The federation.
        parts: Where the folders with rows go.
        state: Where the folders go in which clients keep their private part.
        known: Keys of clients; those that are not there yet are made.
    """
    folders = write_parts(job.silos.pool[0], job.silos.partition, parts)
    if known is not None:
        make_credentials(known.folder, list(job.silos.names))
    return [
        Node(
            name=name, key=known.client(name) / "key" if known is not None else None,
            public=known.client(name) / "key.pub" if known is not None else None,
            config={
                "data": str(folders[name].resolve()), "state": str((state / name).resolve()),
                "budget": job.kinds[name].budget, "kind": job.kinds[name].name, "threads": job.kinds[name].threads,
            },
        )
        for name in job.silos.names
    ]  # fmt: skip


def simulated(job: FederationJob, state: Path) -> Any:
    """Return what makes the workers of a simulation; it travels to Ray's processes."""
    return partial(worker_of, job.recipe.to_toml(), state=str(state.resolve()))


def join_federation(
    address: str,
    *,
    data: Path,
    state: Path,
    credentials: Path | None = None,
    facts: Mapping[str, str] | None = None,
    events: EventStream | None = None,
) -> None:
    """Take part in a federation of another machine, until interrupted.

    Args:
        address: Where the server listens, ``host:port``.
        data: Folder or file with this client's rows; they are read here and never sent.
        state: Folder for what this client keeps.
        credentials: This client's folder of ``lissome federate credentials``; None connects in the clear.
        facts: What else the node says of itself: ``name``, ``budget``, ``kind``, ``model``, ``threads``; and
            ``largest``, the size of an order above which it refuses, such as ``500MB`` (default: 8 GiB).
        events: Where it is said that the node was started.

    Raises:
        BudgetError: When the budget is none.
        ConfigError: When data or credentials are not there or damaged, the address has no port, ``threads`` is no
            number, ``largest`` no size, or the rows were dealt out to somebody else than ``name``.
        DataError: When the rows cannot be read, or a folder does not hold those that were dealt out.
        FederationError: When the node ends by itself; names its log.
        MissingExtraError: When Flower is not installed.
    """
    if not data.exists():
        raise ConfigError(f"{data} does not exist; give the folder or file with this client's rows.")
    check_address(address)
    given = dict(facts or {})
    if budget := given.get("budget"):
        Budget.parse(budget)  # the server would refuse it where nobody looks
    if largest := given.get("largest"):
        parse_bytes(largest, "largest")
    if not (threads := given.get("threads", "1")).isdecimal() or not 0 < int(threads) <= MOST_THREADS:
        raise ConfigError(f"threads must be a number from 1 to {MOST_THREADS}, got {threads!r}.")
    check_rows(data, given.get("name", ""))
    if not is_part(data):  # a folder that was dealt out says whose it is
        if not given.get("name"):
            raise ConfigError(f"{data} does not say whose data it holds; say who this client is with --set name=NAME.")
        check_name(given["name"])
    if credentials is not None:
        check_own(credentials)
    key = credentials / "key" if credentials is not None else None
    config = {"data": str(data.resolve()), "state": str(state.resolve()), **given}
    node = Node(name=given.get("name") or data.stem, config=config, key=key)
    authority = credentials / "ca.crt" if credentials is not None else None
    join(node, address, authority, state / "flower", events, log=state / EVENTS)
