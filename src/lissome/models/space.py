"""Axis, Space and Subnet: which decisions can be made about a model, and one choice for each.

Nothing here knows torch or a model: an accelerator's buffers or a decoding schedule are Spaces too. A `Binding`
(see `lissome.models.binding`) ties a Space to the tensors of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from lissome.core.errors import SubnetError, unknown_name


@dataclass(frozen=True)
class Axis:
    """One decision.

    Attributes:
        name: Dotted name, e.g. ``"layers.3.mlp.width"``.
        choices: Allowed values, ascending; the last is the original.
        switch: Name of the keep-axis that makes this one irrelevant when it is 0 (a removed branch has no width).
    """

    name: str
    choices: tuple[int, ...]
    switch: str | None = None

    def __post_init__(self) -> None:
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            raise SubnetError(f"the choices of {self.name} must be distinct and ascending, got {self.choices}.")

    @property
    def full(self) -> int:
        """The original's value."""
        return self.choices[-1]

    def below(self, value: int) -> int | None:
        """Return the next smaller choice, or None."""
        index = self.choices.index(value)
        return self.choices[index - 1] if index else None


class Subnet(Mapping[str, int]):
    """One choice for every axis of a Space: immutable, hashable, JSON-able."""

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = dict(values)
        self._hash: int | None = None

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._values.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Subnet) else NotImplemented

    def __repr__(self) -> str:
        return f"Subnet({self._values})"

    def replace(self, changes: Mapping[str, int]) -> Subnet:
        """Return a Subnet with some values changed; names must exist."""
        for name in changes:
            if name not in self._values:
                raise SubnetError(unknown_name("axis", name, self._values))
        return Subnet({**self._values, **changes})

    def differs_from(self, other: Subnet) -> tuple[str, ...]:
        """Names of the axes whose values differ."""
        return tuple(name for name, value in self._values.items() if other._values.get(name) != value)

    def to_json(self) -> dict[str, int]:
        """Return the values by axis name."""
        return dict(self._values)


@dataclass(frozen=True)
class Space:
    """An ordered set of axes.

    Attributes:
        axes: The axes, in the order of the model.
        quorums: Groups of keep-axes of which at least one must stay 1 (a decoder needs one attention, for positions).
    """

    axes: tuple[Axis, ...]
    quorums: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, model: Any, **options: Any) -> Space:
        """Return the Space of a model: shorthand for ``model.space(**options)``."""
        space = model.space(**options)
        assert isinstance(space, cls)
        return space

    @cached_property
    def by_name(self) -> dict[str, Axis]:
        """Axes by name."""
        return {axis.name: axis for axis in self.axes}

    @cached_property
    def full(self) -> Subnet:
        """The original model."""
        return Subnet({axis.name: axis.full for axis in self.axes})

    @cached_property
    def smallest(self) -> Subnet:
        """The smallest choice everywhere, keeping the last member of each quorum at its smallest size."""
        values = {axis.name: axis.choices[0] for axis in self.axes}
        for names in self.quorums:
            if not any(values[name] for name in names):
                values[names[-1]] = 1
        return self.canonical(Subnet(values))

    def sample(self, rng: Random, *, keep: float = 0.7) -> Subnet:
        """Draw a Subnet: uniform over each axis's choices, keep-axes stay with probability `keep`."""
        values = {
            axis.name: int(rng.random() < keep) if axis.choices == (0, 1) else rng.choice(axis.choices)
            for axis in self.axes
        }
        for names in self.quorums:
            if not any(values[name] for name in names):
                values[rng.choice(names)] = 1
        return self.canonical(Subnet(values))

    def canonical(self, subnet: Subnet) -> Subnet:
        """Return the equal Subnet in which axes of removed branches stand at their full value."""
        changes = {
            axis.name: axis.full
            for axis in self.axes
            if axis.switch and not subnet[axis.switch] and subnet[axis.name] != axis.full
        }
        return subnet.replace(changes) if changes else subnet

    def check(self, subnet: Mapping[str, int]) -> Subnet:
        """Return `subnet` as a canonical Subnet of this Space.

        Raises:
            SubnetError: When a name is unknown or missing, a value is not a choice, or a quorum is broken.
        """
        for name in subnet:
            if name not in self.by_name:
                raise SubnetError(unknown_name("axis", name, self.by_name))
        for axis in self.axes:
            if axis.name not in subnet:
                raise SubnetError(f"the Subnet gives no value for axis {axis.name}.")
            if subnet[axis.name] not in axis.choices:
                raise SubnetError(f"{axis.name}={subnet[axis.name]} is not a choice; allowed: {axis.choices}.")
        for names in self.quorums:
            if not any(subnet[name] for name in names):
                raise SubnetError(f"at least one of {names[0]} … {names[-1]} must be kept.")
        return self.canonical(subnet if isinstance(subnet, Subnet) else Subnet(subnet))

    def allows(self, subnet: Subnet) -> bool:
        """Whether every quorum of the Space is respected."""
        return all(any(subnet[name] for name in names) for names in self.quorums)

    def to_json(self) -> dict[str, Any]:
        """Return the Space as JSON-able fields."""
        axes = [
            {"name": axis.name, "choices": list(axis.choices)} | ({"switch": axis.switch} if axis.switch else {})
            for axis in self.axes
        ]
        return {"axes": axes, "quorums": [list(names) for names in self.quorums]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Space:
        """Rebuild a Space from `to_json`."""
        axes = tuple(Axis(axis["name"], tuple(axis["choices"]), axis.get("switch")) for axis in fields["axes"])
        return cls(axes, tuple(tuple(names) for names in fields["quorums"]))
