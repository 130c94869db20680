"""What becomes of the clients' tensors: means over whoever holds a coordinate, and robust forms of them.

For coordinate c let A be the clients that hold it: the merged value is Σ n_i·θ_i,c / Σ n_i over A, and the old value
where A is empty. (RaFFM's published code divides by all clients, so that what one client alone holds shrinks to its
share in every round.) Sums run in float64 in the order in which pieces are added; `lissome.engine.federate.shelf` adds
them in the order of the clients' names.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError
from lissome.engine.federate.layout import Layout, Place, add, cut, put

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What one client gave, checked and decoded.

    Attributes:
        client: Its name.
        weight: How much it counts, above 0.
        layout: Where its tensors belong; names every one of them.
        tensors: By global name, of the layout's shapes. They may lie on disk and be read one by one.
    """

    client: str
    weight: float
    layout: Layout
    tensors: Tensors


class Merge(Protocol):
    """One merge, from the first piece to the result."""

    @property
    def keeps(self) -> bool:
        """Whether pieces are read again in `result`; they are kept on disk until then."""

    @property
    def limits(self) -> bool:
        """Whether it limits by itself how far one client moves the result; nobody looks at its update's length then."""

    def add(self, piece: Piece) -> None:
        """Take a piece in.

        Raises:
            FederationError: When this merge cannot take it; it is left out, and the merge is as before.
        """

    def result(self) -> dict[str, Tensor]:
        """Return the merged tensors, of the names, shapes and types of the old ones."""


Merger = Callable[[Tensors], Merge]
"""Begins a merge, given the old values of all tensors that may come."""


class Holders:
    """How many clients hold each coordinate, or how much they weigh together.

    It follows from the few different places (one per kind of device), which alone are kept; a tensor's coordinates are
    counted when they are asked for.

    Args:
        draws: Of how many rounds clients are counted in; a count is their mean.
    """

    def __init__(self, draws: int = 1) -> None:
        self._draws = draws
        self._places: dict[str, dict[str, tuple[Place, float]]] = {}

    def add(self, layout: Layout, weight: float) -> None:
        """Count clients in that hold what a layout says."""
        for name, place in layout.places.items():
            places, key = self._places.setdefault(name, {}), layout.keys[name]
            places[key] = (place, places[key][1] + weight if key in places else weight)

    def count(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the count of each coordinate of a tensor, float64."""
        counts = torch.zeros(*shape, dtype=torch.float64)
        for place, weight in self._places.get(name, {}).values():
            add(counts, place, weight)
        return counts / self._draws


class Overlap:
    """Mean over the clients that hold a coordinate; the others keep their old value.

    Memory is one float64 copy of the tensors that came, however many clients there are.

    Args:
        base: The old values.
    """

    keeps: bool = False
    limits: bool = False

    def __init__(self, base: Tensors) -> None:
        self.base = base
        self._sums: dict[str, Tensor] = {}
        self._held = Holders()

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        for name, place in piece.layout.places.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self.base[name].shape, dtype=torch.float64)
            add(self._sums[name], place, piece.tensors[name].double(), piece.weight)
        self._held.add(piece.layout, piece.weight)

    def result(self) -> dict[str, Tensor]:
        """Return the means; tensors that nobody sent are not in it."""
        return {name: self._finish(name) for name in list(self._sums)}

    def _finish(self, name: str) -> Tensor:
        total, old = self._sums.pop(name), self.base[name]
        counts = self._held.count(name, total.shape)
        mean = torch.where(counts > 0, total / counts.where(counts > 0, 1.0), old.double())
        return mean.round().to(old.dtype) if not old.is_floating_point() else mean.to(old.dtype)


class Damped(Overlap):
    """Mean over all clients, those that do not hold a coordinate counting as if they had left it unchanged.

    θ + Σ_A n_i·(θ_i − θ) / Σ n_i with A the clients that hold a coordinate: where all hold it, `Overlap`. What few
    clients hold follows their data alone; so it moves no further than these data weigh, and fits what all train.

    Args:
        base: The old values.
    """

    def __init__(self, base: Tensors) -> None:
        super().__init__(base)
        self._all = 0.0

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        super().add(piece)
        self._all += piece.weight

    def _finish(self, name: str) -> Tensor:
        old = self.base[name]
        held = self._held.count(name, old.shape) / self._all
        mean = old.double().lerp(super()._finish(name).double(), held)
        return mean.round().to(old.dtype) if not old.is_floating_point() else mean.to(old.dtype)


class Mean(Overlap):
    """Plain federated averaging (McMahan et al. 2017, arXiv 1602.05629): everybody sends the same whole tensors.

    It takes no slices, so that what it gives is the sum that secure aggregation can compute.
    """

    def __init__(self, base: Tensors) -> None:
        super().__init__(base)
        self._names: frozenset[str] | None = None

    def add(self, piece: Piece) -> None:
        """Take a piece in.

        Raises:
            FederationError: When it has other tensors than the first one, or slices.
        """
        names = frozenset(piece.layout.places)
        if self._names is not None and names != self._names:
            raise FederationError("a plain mean needs the same tensors from everybody; use the overlap merger")
        if any(piece.layout.keys.values()):
            raise FederationError("a plain mean takes whole tensors, not slices; use the overlap merger")
        self._names = names
        super().add(piece)


class Gathered:
    """Base of merges that look at all pieces at once, one tensor at a time; the pieces lie on disk until then."""

    keeps: bool = True
    limits: bool = False

    def __init__(self, base: Tensors) -> None:
        self.base = base
        self.pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        """Remember a piece."""
        self.pieces.append(piece)

    def result(self) -> dict[str, Tensor]:
        """Merge every tensor that somebody sent."""
        names = dict.fromkeys(name for piece in self.pieces for name in piece.layout.places)
        return {name: self.merge(name, [one for one in self.pieces if name in one.layout.places]) for name in names}

    def merge(self, name: str, pieces: list[Piece]) -> Tensor:
        """Merge one tensor of those who hold any of it."""
        raise NotImplementedError


class Trimmed(Gathered):
    """Mean without the largest and smallest values of each coordinate (Yin et al. 2018, arXiv 1803.01498).

    Of k clients that hold a coordinate, ⌊share·k⌋ go at either end; the rest count equally, because a weight is what a
    liar would lie about. Memory is one tensor of every client.

    Args:
        base: The old values.
        share: What goes at either end, below ½.
    """

    def __init__(self, base: Tensors, share: float = 0.1) -> None:
        super().__init__(base)
        if not 0 <= share < 0.5:
            raise ConfigError(f"the share that is trimmed at either end must be in [0, 0.5), got {share}.")
        self.share = share

    def merge(self, name: str, pieces: list[Piece]) -> Tensor:
        """Merge one tensor."""
        old = self.base[name]
        values = torch.full((len(pieces), *old.shape), math.inf, dtype=torch.float64)
        for row, piece in zip(values, pieces, strict=True):
            put(row, piece.layout.places[name], piece.tensors[name].double())
        held = values.isfinite().sum(0)
        values = values.sort(0).values  # those who do not hold a coordinate come last
        cut_off = (self.share * held).floor().long()
        ranks = torch.arange(len(pieces)).view(-1, *[1] * old.dim())
        kept = (ranks >= cut_off) & (ranks < held - cut_off)
        mean = values.where(kept, 0.0).sum(0) / kept.sum(0).clamp(min=1)
        return torch.where(held > 0, mean, old.double()).to(old.dtype)


class Bounded:
    """Shortens the update of each client to a largest norm before another merge sees it.

    Args:
        base: The old values.
        norm: Largest L2 norm of one client's update over all its tensors.
        inner: The merge that follows.
    """

    limits: bool = True

    def __init__(self, base: Tensors, norm: float, inner: Merger = Overlap) -> None:
        if not norm > 0:
            raise ConfigError(f"the largest norm of an update must be above 0, got {norm}.")
        self.base, self.norm, self._inner = base, norm, inner(base)

    @property
    def keeps(self) -> bool:
        """As the merge that follows."""
        return self._inner.keeps

    def add(self, piece: Piece) -> None:
        """Take a piece in, shortened when its update is too long."""
        factor = self.norm / max(self.norm, update_norm(piece, self.base))
        if factor < 1:
            piece = replace(piece, tensors=dict(self._shorter(piece, factor)))
        self._inner.add(piece)

    def result(self) -> dict[str, Tensor]:
        """Return what the merge that follows gives."""
        return self._inner.result()

    def _shorter(self, piece: Piece, factor: float) -> Iterable[tuple[str, Tensor]]:
        for name, place in piece.layout.places.items():
            old, new = cut(self.base[name], place), piece.tensors[name]
            yield name, (old.double() + factor * (new.double() - old.double())).to(new.dtype)


class Private:
    """Sum of clipped updates with Gaussian noise, over fixed counts: user-level differential privacy.

    A client's update over all its tensors, zero where it holds nothing, is shortened to a norm of at most `clip`, and
    counts the same as any other, whatever it says of its examples: one client moves the sum S by at most C over all
    coordinates together. What is released of coordinate c is (S_c + z·C·N(0, 1)) / k_c, where k_c is how many of the
    clients were planned to hold c, so that what few devices hold moves as far as the rest, with noise of z·C / k_c.

    That is as private as S + z·C·N(0, 1), the Gaussian mechanism that the accountant counts: k_c is fixed before the
    first round, by the kinds of devices in the recipe, and not by who is there or answers, so that dividing by it looks
    at no data. Where nobody is planned nothing moves, which tells nothing. A count is at least 1: below, a single
    update would be blown up.

    Args:
        base: The old values.
        clip: C, largest norm of one client's update.
        noise: z; the standard deviation of the noise on a sum is z·C.
        clients: How many are wanted in a round; k_c where nothing is planned.
        planned: Gives how many of them are planned to hold each coordinate (default: all hold everything).
        generator: Draws the noise (default: seeded by the operating system, because whoever knows a seed can take the
            noise away; a run with noise does not repeat bit by bit).
    """

    keeps: bool = False
    limits: bool = True

    def __init__(
        self,
        base: Tensors,
        clip: float,
        noise: float,
        clients: int,
        planned: Callable[[], Holders] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not (clip > 0 and noise > 0 and clients > 0):
            raise ConfigError(f"privacy needs a clip, noise and clients above 0, got {clip}, {noise} and {clients}.")
        self.base, self._clip, self._deviation = base, clip, noise * clip
        self._clients, self._planned = clients, planned() if planned is not None else None
        self._came: set[str] = set()
        self._generator = generator or torch.Generator().manual_seed(secrets.randbits(63))
        self._sums: dict[str, Tensor] = {}

    def add(self, piece: Piece) -> None:
        """Take a piece in.

        Raises:
            FederationError: When its client gave one already, such as a late one.
        """
        if piece.client in self._came:
            raise FederationError("it answered already in this release; a second time would break the promise")
        self._came.add(piece.client)
        factor = min(1.0, self._clip / max(self._clip, update_norm(piece, self.base)))
        for name, place in piece.layout.places.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self.base[name].shape, dtype=torch.float64)
            change = piece.tensors[name].double() - cut(self.base[name], place).double()
            add(self._sums[name], place, change, factor)

    def result(self) -> dict[str, Tensor]:
        """Return the old values, moved by the noisy mean; all tensors of the old values, whoever sent some."""
        if not self._sums:
            return {}
        return {name: self._moved(name, old) for name, old in self.base.items() if old.is_floating_point()}

    def _moved(self, name: str, old: Tensor) -> Tensor:
        noise = torch.randn(old.shape, generator=self._generator, dtype=torch.float64) * self._deviation
        total, count = self._sums.get(name, torch.zeros(())), torch.tensor(self._clients, dtype=torch.float64)
        if self._planned is not None:
            count = self._planned.count(name, old.shape)
        moved = old.double() + (total + noise) / count.clamp(min=1.0)
        return torch.where(count > 0, moved, old.double()).to(old.dtype)


def update_norm(piece: Piece, base: Tensors) -> float:
    """L2 norm of what a piece changes, over all its tensors."""
    total = 0.0
    for name, place in piece.layout.places.items():
        change = piece.tensors[name].double() - cut(base[name], place).double()
        total += float(change.square().sum())
    return math.sqrt(total)
