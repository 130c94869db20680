"""Who sent how many bytes, in which round and for what: payload and whole messages, both ways, evaluation included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lissome.engine.federate.parcel import Parcel

Direction = Literal["down", "up"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message.

    Attributes:
        round: Round in which it was sent; 0 is before the first.
        client: Name of the client, or its address while the name is not known.
        action: What it asks for, or answers.
        direction: ``"down"`` from the server, ``"up"`` to it.
        payload: Bytes of the numbers of its tensors.
        message: Bytes of the whole message.
        used: Whether an answer went into the result; True for orders.
    """

    round: int
    client: str
    action: str
    direction: Direction
    payload: int
    message: int
    used: bool = True


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A sum over messages, in bytes."""

    payload_down: int = 0
    payload_up: int = 0
    message_down: int = 0
    message_up: int = 0

    @property
    def payload(self) -> int:
        """Both ways."""
        return self.payload_down + self.payload_up

    @property
    def message(self) -> int:
        """Both ways."""
        return self.message_down + self.message_up

    def to_json(self) -> dict[str, int]:
        """Return the four sums."""
        return dict(vars(self))


class Ledger:
    """Every message of a federation."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def note(
        self, parcel: Parcel, *, round: int, client: str, action: str, direction: Direction, used: bool = True
    ) -> None:
        """Write one message down."""
        self.entries.append(
            Entry(
                round=round, client=client, action=action, direction=direction,
                payload=parcel.payload, message=parcel.bytes, used=used,
            )
        )  # fmt: skip

    def total(self, **equal: Any) -> Bytes:
        """Sum over the messages whose fields have the given values, e.g. ``total(round=3, action="train")``."""
        sums = dict.fromkeys(("payload_down", "payload_up", "message_down", "message_up"), 0)
        for entry in self.entries:
            if all(getattr(entry, key) == value for key, value in equal.items()):
                sums[f"payload_{entry.direction}"] += entry.payload
                sums[f"message_{entry.direction}"] += entry.message
        return Bytes(**sums)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the ledger as tensors and a JSON value, for a checkpoint."""
        clients = sorted({entry.client for entry in self.entries})
        actions = sorted({entry.action for entry in self.entries})
        client_at, action_at = ({name: at for at, name in enumerate(names)} for names in (clients, actions))
        rows = [
            (
                entry.round, client_at[entry.client], action_at[entry.action], int(entry.direction == "up"),
                entry.payload, entry.message, int(entry.used),
            )
            for entry in self.entries
        ]  # fmt: skip
        return {"rows": torch.tensor(rows, dtype=torch.int64).view(-1, 7)}, {"clients": clients, "actions": actions}

    def restore(self, tensors: Mapping[str, Tensor], names: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.entries = [
            Entry(
                round=number, client=names["clients"][client], action=names["actions"][action],
                direction="up" if up else "down", payload=payload, message=message, used=bool(used),
            )
            for number, client, action, up, payload, message, used in tensors["rows"].tolist()
        ]  # fmt: skip

    def csv(self) -> str:
        """Return all messages as a table, one a line."""
        lines = ["round,client,action,direction,payload,message,used"]
        lines += [
            f"{one.round},{one.client},{one.action},{one.direction},{one.payload},{one.message},{int(one.used)}"
            for one in self.entries
        ]
        return "\n".join(lines) + "\n"
