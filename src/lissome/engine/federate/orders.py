"""The heads of messages: what an order says, and what an answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lissome.core.errors import FederationError, LissomeError
from lissome.core.typed import as_json, from_json

T = TypeVar("T")

VERSION = 1
PHASES = 100
"""Most phases of a round; ticks count in steps of it."""
STATIC = "static|"
"""Beginning of the names of tensors that a client keeps for later rounds."""
_TAG = re.compile(r"[\w-]{0,80}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class OrderHead:
    """What an order says besides its tensors.

    Attributes:
        action: What to do; a method's own word, ``"train"`` or ``"evaluate"`` by default.
        ticket: To be repeated in the answer.
        round: Number of the round, from 1.
        tick: Number of the order's phase over all rounds; it only grows.
        seed: Of whatever the client draws for this order.
        subnet: The choices that differ from the whole model; None: the whole model.
        settings: What the method says to this client.
        down: Codec of the order's tensors.
        up: Codec of the answer's tensors.
        static: Tag of the tensors that the client keeps; empty when there are none.
        federation: Name of the federation; a client that knows another one refuses.
        version: Of these words.
    """

    action: str
    ticket: str
    round: int
    tick: int
    seed: int
    subnet: Mapping[str, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    down: str = "raw"
    up: str = "raw"
    static: str = ""
    federation: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.static):  # it names a file of the client
            raise FederationError(f"static={self.static[:80]!r} is no tag; it has letters, digits, '_' and '-' alone")

    def to_json(self) -> dict[str, Any]:
        """Return the head as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any) -> OrderHead:
        """Read the head of an order.

        Raises:
            FederationError: When it is not one, or of a newer version.
        """
        return _read(OrderHead, fields, "the order")


@dataclass(frozen=True, kw_only=True)
class AnswerHead:
    """What an answer says besides its tensors and numbers.

    Attributes:
        ticket: Of the order.
        tick: Of the order.
        static: Tag of the tensors that the client keeps now.
        lacks: Whether it could not work because it does not have the static tensors; they are sent again.
        error: Why there is no result; empty when there is one.
        notes: What a method's client says to its server; JSON-able.
        damaged: Newer states of the client that could not be read, so that it went on from an older one.
        version: Of these words.
    """

    ticket: str
    tick: int
    static: str = ""
    lacks: bool = False
    error: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    damaged: int = 0
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the head as JSON-able fields; what is damaged only where something is, which costs others no byte."""
        fields: dict[str, Any] = as_json(self)
        return {name: value for name, value in fields.items() if value or name != "damaged"}

    @classmethod
    def from_json(cls, fields: Any) -> AnswerHead:
        """Read the head of an answer.

        Raises:
            FederationError: When it is not one, or of a newer version.
        """
        return _read(AnswerHead, fields, "the answer")


def _read(kind: type[T], fields: Any, where: str) -> T:
    version = fields.get("version") if isinstance(fields, Mapping) else None
    if isinstance(version, int) and version > VERSION:
        raise FederationError(f"{where} is of version {version}, this is version {VERSION}; upgrade lissome here")
    try:
        return from_json(kind, fields, where)
    except LissomeError as error:
        raise FederationError(str(error)) from error
