"""The job of ``lissome federate parts``: a folder for each client, to be carried to the machine where it joins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.core.files import check_writable
from lissome.core.typed import as_json
from lissome.data.partition import PARTITION
from lissome.data.parts import write_parts
from lissome.pipeline.compare import quiet
from lissome.pipeline.federation import FederationJob, FederationRecipe


@dataclass(frozen=True, kw_only=True)
class ClientPart:
    """What one client is given.

    Attributes:
        name: Of the client; its folder says it too.
        path: The folder.
        examples: How many texts, images or documents are in it.
        budget: What the recipe says that its device can hold.
        kind: What the recipe calls its device.
    """

    name: str
    path: Path
    examples: int
    budget: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class DealtParts:
    """What was dealt out.

    Attributes:
        out: Where the folders are, with ``partition.json`` beside them.
        partition: Fingerprint of the partition, which each folder carries.
        clients: What each is given.
    """

    out: Path
    partition: str
    clients: tuple[ClientPart, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able fields."""
        clients = [{**as_json(one), "path": str(one.path)} for one in self.clients]
        return {"out": str(self.out), "partition": self.partition, "clients": clients}


def deal_parts(recipe: Path | FederationRecipe, *, out: Path, events: EventStream | None = None) -> DealtParts:
    """Deal a recipe's data out into a folder for each client; the model is not needed.

    Args:
        recipe: Says what is dealt out, and how.
        out: Where the folders go; those of an earlier call are replaced.
        events: Where progress is reported.

    Raises:
        ConfigError: When nothing is dealt out, or `out` cannot be written or holds something else.
        DataError: When the data cannot be read or dealt out.
        MissingExtraError: When flwr-datasets is not installed.
    """
    check_writable(out)
    if out.exists() and not (out / PARTITION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and holds no parts of an earlier call; choose another --out.")
    job = FederationJob(recipe if isinstance(recipe, FederationRecipe) else FederationRecipe.read(recipe))
    dealt, names = job.silos.partition, job.silos.names
    if not names:
        raise ConfigError('nothing is dealt out (scheme = "own"): clients join with data of their own.')
    with quiet(events).stage("deal out"):
        folders = write_parts(job.silos.pool[0], dealt, out)
        dealt.save(out / PARTITION)
    parts = (
        ClientPart(
            name=name, path=folders[name], examples=len(dealt.parts[name]), budget=job.kinds[name].budget,
            kind=job.kinds[name].name,
        )
        for name in names
    )  # fmt: skip
    return DealtParts(out=out, partition=dealt.fingerprint, clients=tuple(parts))
