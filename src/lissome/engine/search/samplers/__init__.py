"""Samplers: what to try next. Each is one file with a function `make`; its name is the file's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from lissome.core.errors import UnknownNameError, unknown_name
from lissome.core.registry import public_files
from lissome.engine.search.goal import Goal
from lissome.engine.search.history import History
from lissome.models.space import Space, Subnet


@dataclass(frozen=True)
class Proposal:
    """What to try next.

    Attributes:
        subnet: An allowed, canonical Subnet; it may have been tried before, then another one is asked for.
        by: Who proposes it.
        notes: What the sampler wants to find again at this Subnet, JSON-able.
    """

    subnet: Subnet
    by: str
    notes: Mapping[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """Proposes Subnets from what was seen.

    A proposal follows from the history and the generator alone, so that a search that was killed and continued finds
    what an undisturbed one finds.
    """

    def propose(self, history: History, rng: Random) -> Proposal:
        """Return what to try next."""

    def adopt(self, history: History) -> Mapping[str, Any]:
        """Return the notes of a Subnet that others chose, such as one to start from."""


@dataclass(frozen=True)
class Options:
    """What a sampler is made for.

    Attributes:
        space: The Space.
        goal: What is searched for.
        population: Subnets of a generation, for samplers that work in generations.
    """

    space: Space
    goal: Goal
    population: int


def names() -> tuple[str, ...]:
    """Names of all samplers."""
    return tuple(info.name for info in public_files(__name__))


def make(name: str, options: Options) -> Sampler:
    """Return a sampler by name.

    Raises:
        UnknownNameError: With the nearest name.
    """
    check(name)
    made: Sampler = importlib.import_module(f"{__name__}.{name}").make(options)
    return made


def check(name: str) -> None:
    """Refuse a sampler that there is not.

    Raises:
        UnknownNameError: With the nearest name.
    """
    if name not in names():
        raise UnknownNameError(unknown_name("sampler", name, names()))
