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
from lissome.core.typed import as_json, from_json


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

    def beside(self, value: int) -> list[int]:
        """Return the next smaller and the next larger choice, as far as there are any."""
        place = self.choices.index(value)
        return [self.choices[other] for other in (place - 1, place + 1) if 0 <= other < len(self.choices)]

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

    def __reduce__(self) -> tuple[type[Subnet], tuple[dict[str, int]]]:
        return Subnet, (self._values,)  # without the hash, which is another one in another process

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
        quorums: Groups of keep-axes of which at least one must stay (a decoder needs one attention, for positions).
        chains: Groups of keep-axes, in order, of which only the last ones may be 0: who learns to be optional is deep.
        ties: Groups of keep-axes that always have one value: the parts of a layer that goes as a whole.

    Raises:
        SubnetError: When two axes share a name, or a switch, quorum, chain or tie names an axis that is not there.
    """

    axes: tuple[Axis, ...]
    quorums: tuple[tuple[str, ...], ...] = ()
    chains: tuple[tuple[str, ...], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.axes):
            raise SubnetError("two axes of a Space share a name; every decision needs its own.")
        used = [axis.switch for axis in self.axes if axis.switch is not None]
        for name in (*used, *(name for names in (*self.quorums, *self.chains, *self.ties) for name in names)):
            if name not in self.by_name:
                raise SubnetError(unknown_name("axis", name, self.by_name))
        if not all(self.quorums):
            raise SubnetError("a quorum of no axes cannot be kept; leave it out.")
        for axis in self.axes:
            if axis.name in self._switches(axis):
                raise SubnetError(f"the switches of axis {axis.name} run in a circle.")
        for names in self.chains:
            fixed = [0 not in self.by_name[name].choices for name in names]
            if fixed != sorted(fixed, reverse=True) or any(self.by_name[name].switch for name in names):
                chain = f"{names[0]} … {names[-1]}"
                raise SubnetError(f"of the chain {chain} the last ones must be free to go by themselves.")
        for names in self.ties:
            if len({(self.by_name[name].choices, self.by_name[name].switch) for name in names}) > 1:
                raise SubnetError(f"{' and '.join(names)} are tied, but do not have the same choices.")

    @classmethod
    def of(cls, model: Any, **options: Any) -> Space:
        """Return the Space of a model: shorthand for ``model.space(**options)``."""
        space: Space = model.space(**options)
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
            if not self._met(names, values):
                self._keep(min(reversed(names), key=lambda name: len(self._before(name))), values)
        return self.canonical(Subnet(values))

    def levels(self, most: int = 7) -> tuple[Subnet, ...]:
        """Return Subnets that take the same place among the choices of every axis, from the full one to the smallest.

        They are as many as the longest list of choices is long, at most `most`. Between two choices the larger one is
        taken, so that what can only stay or go stays until the last.
        """
        count = min(most, max((len(axis.choices) for axis in self.axes), default=1))
        between = (
            Subnet({axis.name: axis.choices[-1 - place * (len(axis.choices) - 1) // (count - 1)] for axis in self.axes})
            for place in range(1, count - 1)
        )
        return (self.full, *filter(self.allows, map(self.canonical, between)), self.smallest)

    def sample(self, rng: Random, *, keep: float = 0.7) -> Subnet:
        """Draw a Subnet: uniform over each axis's choices, keep-axes stay with probability `keep`."""
        values = {
            axis.name: int(rng.random() < keep) if axis.choices == (0, 1) else rng.choice(axis.choices)
            for axis in self.axes
        }
        return self.repaired(values, rng)

    def repaired(self, values: Mapping[str, int], rng: Random) -> Subnet:
        """Return the Subnet of these choices: of a chain the last ones go, of a broken quorum one stays after all."""
        kept = dict(values)
        for names in self.ties:
            kept |= dict.fromkeys(names, kept[names[0]])
        for names in self.chains:
            skipped = sum(not kept[name] for name in names)
            kept |= {name: int(index < len(names) - skipped) for index, name in enumerate(names)}
        self._return(kept)
        for names in self.quorums:
            if not self._met(names, kept):
                self._keep(rng.choice(names), kept)
        return self.canonical(Subnet(kept))

    def movable(self, subnet: Mapping[str, int]) -> list[Axis]:
        """Axes that have another choice and are not switched off in `subnet`: those that make another Subnet of it."""
        return [
            axis
            for axis in self.axes
            if len(axis.choices) > 1 and all(subnet[name] for name in self._switch_names[axis.name])
        ]

    def neighbour(self, subnet: Mapping[str, int], rng: Random) -> Subnet:
        """Move one axis in ten of those that can, at least one, by one choice up or down."""
        movable = self.movable(subnet)
        chosen = rng.sample(movable, rng.randint(1, max(1, len(movable) // 10))) if movable else []
        moved = {axis.name: rng.choice(axis.beside(subnet[axis.name])) for axis in chosen}
        return self.repaired({**subnet, **moved}, rng)

    def canonical(self, subnet: Subnet) -> Subnet:
        """Return the equal Subnet in which axes of removed branches stand at their full value."""
        changes = {
            axis.name: axis.full
            for axis, switches in self._switched
            if subnet[axis.name] != axis.full and not all(subnet[name] for name in switches)
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
        values: dict[str, int] = {}
        for axis in self.axes:
            if axis.name not in subnet:
                raise SubnetError(
                    f"the Subnet gives no value for axis {axis.name}; give one of {_listed(axis.choices)}."
                )
            value = subnet[axis.name]
            if not hasattr(value, "__index__") or value not in axis.choices:
                raise SubnetError(f"{axis.name}={value!r} is not a choice; allowed: {_listed(axis.choices)}.")
            values[axis.name] = int(value)
        checked = self.canonical(Subnet(values))
        for names in self.quorums:
            if not self._met(names, checked):
                raise SubnetError(f"at least one of {names[0]} … {names[-1]} must be kept.")
        for names in self.chains:
            if not _ends(names, checked):
                raise SubnetError(f"of {names[0]} … {names[-1]} only the last ones may be removed.")
        for names in self.ties:
            if len({checked[name] for name in names}) > 1:
                raise SubnetError(f"{' and '.join(names)} go together; give them one value.")
        return checked

    def allows(self, subnet: Mapping[str, int]) -> bool:
        """Whether every quorum, every chain and every tie of the Space is respected."""
        quorums = all(self._met(names, subnet) for names in self.quorums)
        chains = all(_ends(names, subnet) for names in self.chains)
        return quorums and chains and all(len({subnet[name] for name in names}) == 1 for names in self.ties)

    def to_json(self) -> dict[str, Any]:
        """Return the Space as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any, where: str = "space") -> Space:
        """Rebuild a Space from `to_json`.

        Raises:
            ArtifactError: When a field is unknown, missing or of another type.
            SubnetError: When the axes do not make a Space.
        """
        return from_json(cls, fields, where)

    def _met(self, quorum: tuple[str, ...], values: Mapping[str, int]) -> bool:
        """Whether a member of the quorum is kept, and so are the switches it depends on."""
        return any(values[name] and all(values[it] for it in self._switches(self.by_name[name])) for name in quorum)

    def _keep(self, name: str, values: dict[str, int]) -> None:
        """Give the named axis, and all that it cannot be kept without, a value that keeps it."""
        for kept in (name, *self._switches(self.by_name[name])):
            values[kept] = values[kept] or self._least(kept)
        self._return(values)

    def _least(self, name: str) -> int:
        """The smallest choice with which an axis is kept."""
        return next(value for value in self.by_name[name].choices if value)

    def _return(self, values: dict[str, int]) -> None:
        """Let what is gone come back where ties and chains, which may share axes, want it beside what is kept."""
        before: dict[str, int] = {}
        while before != values:
            before = dict(values)
            for names in self.ties:
                values |= dict.fromkeys(names, max(values[name] for name in names))
            for names in self.chains:
                kept = max((index for index, name in enumerate(names) if values[name]), default=0)
                values |= {name: values[name] or self._least(name) for name in names[:kept]}

    def _before(self, name: str) -> tuple[str, ...]:
        """Names of the axes that stand before one in its chain."""
        return tuple(each for names in self.chains if name in names for each in names[: names.index(name)])

    @cached_property
    def _switched(self) -> tuple[tuple[Axis, tuple[str, ...]], ...]:
        return tuple((axis, self._switch_names[axis.name]) for axis in self.axes if axis.switch is not None)

    @cached_property
    def _switch_names(self) -> dict[str, tuple[str, ...]]:
        return {axis.name: self._switches(axis) for axis in self.axes}

    def _switches(self, axis: Axis) -> tuple[str, ...]:
        """Names of the axes that must be kept for this one to matter, the nearest first."""
        names: list[str] = []
        while axis.switch is not None and axis.switch not in names:
            names.append(axis.switch)
            axis = self.by_name[axis.switch]
        return tuple(names)


def _ends(names: tuple[str, ...], values: Mapping[str, int]) -> bool:
    """Whether only the last of some keep-axes are 0."""
    kept = [bool(values[name]) for name in names]
    return kept == sorted(kept, reverse=True)


def _listed(choices: tuple[int, ...]) -> str:
    """Choices for a message; of many, the first and the last."""
    if len(choices) <= 8:
        return f"({', '.join(map(str, choices))})"
    return f"{choices[0]}, {choices[1]} … {choices[-1]} ({len(choices)} in all)"
