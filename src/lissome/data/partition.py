"""Deals data out to the clients of a federation, and keeps a record of who got what.

The partitioners are those of flwr-datasets; they are given one row per example with its class and its owner, in an
order shuffled by the seed (its IID partitioner does not shuffle), and need no network. A partition is saved as the
positions of each client's examples, so that another run, or another machine, can check that it has the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ArtifactError, DataError
from lissome.core.files import read_json, write_json
from lissome.core.optional import optional_import
from lissome.core.typed import as_json, from_json
from lissome.data.labelled import Labelled

PARTITION = "partition.json"
"""File of a partition, beside the parts that were dealt out and in the result of a federation."""
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class PartitionConfig(MethodConfig):
    """How data are dealt out."""

    scheme: Literal["iid", "dirichlet", "pathological", "natural", "own"] = option(
        "dirichlet",
        "iid; dirichlet: shares of each class drawn; pathological: few classes each; natural: by owner; own: nothing "
        "is dealt out, clients bring their data and all that is given here is for judging",
    )
    clients: int = option(10, "number of clients; natural has as many as there are owners", low=1)
    alpha: float = option(0.3, "of dirichlet: small is unequal, 100 nearly equal", low=1e-6)
    classes: int = option(2, "of pathological: classes per client", low=1)
    least: int = option(4, "of dirichlet: fewest examples of a client; shares are drawn again until it holds", low=0)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Who has which examples.

    Attributes:
        data: Hash of the data that were dealt out.
        settings: How, as of `PartitionConfig`, with the seed.
        parts: Positions in the data by name of the client, ascending.
    """

    data: str
    settings: Mapping[str, Any]
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of all of it, hexadecimal."""
        return hashlib.sha256(json.dumps(as_json(self), sort_keys=True).encode()).hexdigest()

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_json(file, {**as_json(self), "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, file: Path) -> Partition:
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the file is damaged or was changed.
        """
        fields = read_json(file)
        stated = fields.pop("fingerprint", None) if isinstance(fields, dict) else None
        found = from_json(cls, fields, str(file))
        if found.fingerprint != stated:
            raise ArtifactError(f"{file} was changed after it was written; make the partition again.")
        return found


def partition(
    classes: Sequence[int], owners: Sequence[str], config: PartitionConfig, *, data: str, seed: int = 0
) -> Partition:
    """Deal examples out.

    Args:
        classes: Class of each example; may be empty for schemes that do not need it (iid, natural).
        owners: Owner of each example; may be empty for schemes that do not need it.
        config: How.
        data: Hash of the data, for the record.
        seed: Of the shuffle and of what is drawn.

    Raises:
        DataError: When a scheme lacks what it needs, or there are too few examples.
        MissingExtraError: When flwr-datasets is not installed.
    """
    count = len(classes) or len(owners)
    if config.scheme == "own":
        return Partition(data=data, settings={**config.to_mapping(), "seed": seed})
    _check(count, classes, owners, config)
    order = list(range(count))
    Random(seed).shuffle(order)
    columns: dict[str, list[Any]] = {"at": order}
    columns |= {"class": [classes[at] for at in order]} if len(classes) else {}
    columns |= {"owner": [owners[at] for at in order]} if len(owners) else {}
    partitioner = _partitioner(config, seed)
    partitioner.dataset = optional_import("datasets", extra="federate").Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that partitions are small, which we check
            rows = [partitioner.load_partition(index) for index in range(partitioner.num_partitions)]
    except ValueError as error:
        raise DataError(f"the data cannot be dealt out so: {' '.join(str(error).split())[:200]}") from error
    names = _names([str(one["owner"][0]) for one in rows] if config.scheme == "natural" else len(rows))
    parts = {name: tuple(sorted(one["at"])) for name, one in zip(names, rows, strict=True)}
    empty = [name for name, places in parts.items() if not places]
    if empty:
        more = ", or raise least or alpha" if config.scheme == "dirichlet" else ""
        raise DataError(f"{empty[0]} got no examples; give more data, have fewer clients{more}.")
    return Partition(data=data, settings={**config.to_mapping(), "seed": seed}, parts=parts)


def deal(data: Labelled, config: PartitionConfig, *, seed: int = 0) -> Partition:
    """Deal labelled texts out; see `partition`."""
    return partition(data.labels, data.owners, config, data=data.sha256, seed=seed)


def _check(count: int, classes: Sequence[int], owners: Sequence[str], config: PartitionConfig) -> None:
    if config.scheme in {"dirichlet", "pathological"} and not len(classes):
        raise DataError(f"{config.scheme} deals by class, but the data have none; use iid or natural.")
    if config.scheme == "natural" and not (len(owners) and all(owners)):
        raise DataError(
            'natural deals by owner, but not every row has one; write {"text": …, "client": "…"}, or give an .npz '
            "archive of images the array `group`."
        )
    if config.scheme != "natural" and count < config.clients:
        raise DataError(f"{count} examples cannot be dealt out to {config.clients} clients; give more, or have fewer.")
    if config.scheme == "dirichlet" and count < config.clients * config.least:
        raise DataError(
            f"{count} examples cannot give each of {config.clients} clients {config.least}; lower least or clients."
        )
    if config.scheme == "pathological" and config.classes > len(set(classes)):
        raise DataError(f"pathological: {config.classes} classes per client, but there are {len(set(classes))}.")


def _partitioner(config: PartitionConfig, seed: int) -> Any:
    library = optional_import("flwr_datasets.partitioner", extra="federate")
    match config.scheme:
        case "iid":
            return library.IidPartitioner(num_partitions=config.clients)
        case "dirichlet":
            return library.DirichletPartitioner(
                num_partitions=config.clients, partition_by="class", alpha=config.alpha,
                min_partition_size=config.least, seed=seed,
            )  # fmt: skip
        case "pathological":
            return library.PathologicalPartitioner(
                num_partitions=config.clients, partition_by="class", num_classes_per_partition=config.classes,
                class_assignment_mode="first-deterministic", seed=seed,
            )  # fmt: skip
    return library.NaturalIdPartitioner(partition_by="owner")


def _names(owners: Sequence[str] | int) -> list[str]:
    """Names of clients: numbers of equal length, or what the owners are called in plain characters.

    No two differ in case alone: each is the name of a folder, and some disks do not tell cases apart.
    """
    if isinstance(owners, int):
        digits = len(str(owners - 1))
        return [f"client-{index:0{digits}d}" for index in range(owners)]
    names: dict[str, str] = {}
    for owner in owners:
        plain = _NAME.sub("-", owner).strip("-._")[:48] or "client"
        numbered = (f"{plain}-{number}" for number in itertools.count(len(names)))
        name = next(one for one in itertools.chain([plain], numbered) if one.casefold() not in names)
        names[name.casefold()] = name
    return list(names.values())
