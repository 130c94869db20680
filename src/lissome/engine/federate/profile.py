"""Who a client is: its name, what its device can hold, how much data it has, and what that data is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from lissome.core.budget import Budget
from lissome.core.errors import ConfigError, FederationError, LissomeError
from lissome.core.typed import as_json, from_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FACTS = 64
_MOST = 10**12  # examples: nobody has more, and sums of them stay exact


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a client says of itself when it joins.

    Attributes:
        name: Its name, the same in every run: letters, digits, ``.``, ``_`` and ``-``.
        examples: How many examples it trains on.
        budget: What its device can hold, in the language of budgets, e.g. ``"params<=50%"``; empty: anything.
        kind: What its device is called, for tables.
        data: Fingerprint of its data.
        base: Fingerprint of the model that it starts from; empty when the server sends everything.
        facts: Other numbers that a planner may use, by name.
        token: What only this client knows, the same after a restart: by it the server knows a client that comes back
            at another address from one that takes its name. It is written down nowhere.
    """

    name: str
    examples: int
    budget: str = ""
    kind: str = ""
    data: str = ""
    base: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    token: str = field(default="", repr=False)

    @cached_property
    def bounds(self) -> Budget:
        """The budget, read."""
        return Budget.parse(self.budget) if self.budget.strip() else Budget()

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any) -> Profile:
        """Read what a client sent.

        Raises:
            FederationError: When it is not a usable profile; says why.
        """
        try:
            profile = from_json(cls, fields, "the profile")
            _ = profile.bounds
        except LissomeError as error:
            raise FederationError(str(error)) from error
        check_name(profile.name)
        if not 0 <= profile.examples <= _MOST or len(profile.facts) > _FACTS:
            raise FederationError("the profile has a number of examples that cannot be, or too many facts")
        return profile


def check_name(name: str) -> None:
    """Refuse what no client can be called.

    Raises:
        FederationError: Says what a name is made of.
    """
    if not _NAME.fullmatch(name):
        raise FederationError(f"{name[:80]!r} is not a name of a client; use letters, digits, '.', '_', '-'")


def in_proportion(shares: Sequence[float], count: int) -> list[int]:
    """Return the kind of each of so many clients, those of one kind after each other.

    Args:
        shares: Of each kind, relative to the others.
        count: How many clients.

    Raises:
        ConfigError: When all shares are 0.
    """
    total = sum(shares)
    if not total:
        raise ConfigError("the shares of all devices are 0; give one of them a share.")
    edges = [round(start * count) for start in accumulate(share / total for share in shares)]
    return [next(kind for kind, edge in enumerate(edges) if index < edge) for index in range(count)]
