"""Atoms: one number for every row, column or channel of every tensor, joined where they can only be cut together.

An atom is named by the tensor and dimension that it comes from. A `Mark` says of each element of a tensor which atom it
belongs to; it has size 1 along dimensions that do not matter, and 0 where an element belongs to none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mark = Tensor
"""LongTensor that broadcasts to the shape of the tensor that it describes."""

NONE = 0


@dataclass(frozen=True)
class Side:
    """One dimension of a parameter or buffer, with an atom for each index.

    Attributes:
        tensor: Its dotted name.
        dim: The dimension.
        start: The first atom; the others follow.
        size: Number of atoms.
    """

    tensor: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class Mixed:
    """Multiply-accumulates that follow from the sizes of several dimensions.

    Attributes:
        macs: How many.
        over: For each of the dimensions, the shares that the channels of some sides have in it.
        path: Of the module, or name of the weight.
    """

    macs: int
    over: tuple[tuple[tuple[Side, Fraction], ...], ...]
    path: str


@dataclass
class Atoms:
    """All atoms of a network, which of them are one, and which can never go.

    Attributes:
        sides: Where atoms come from, in order.
    """

    sides: list[Side] = field(default_factory=list)
    _count: int = 1
    _pairs: list[NDArray[np.int64]] = field(default_factory=list)
    _rigid: dict[int, str] = field(default_factory=dict)

    def of_tensor(self, name: str, shape: Sequence[int]) -> tuple[Mark, ...]:
        """Make a mark for every dimension of a parameter or buffer that has more than one index."""
        marks = []
        for dim, size in enumerate(shape):
            if size > 1:
                self.sides.append(Side(name, dim, self._count, size))
                view = [1] * len(shape)
                view[dim] = size
                marks.append(torch.arange(self._count, self._count + size).view(view))
                self._count += size
        return tuple(marks)

    def side(self, atom: int) -> Side:
        """Return where an atom comes from."""
        return self.sides[bisect_right(self.sides, atom, key=lambda side: side.start) - 1]

    def sides_of(self, mark: Mark) -> list[Side]:
        """Return where the atoms of a mark come from."""
        found: list[Side] = []
        for atom in mark.unique().tolist():
            if atom != NONE and (not found or atom >= found[-1].start + found[-1].size):
                found.append(self.side(atom))
        return found

    def shares(self, mark: Mark) -> tuple[tuple[Side, Fraction], ...]:
        """Return where the atoms of a mark come from, and which part of it each has."""
        return tuple(
            (side, Fraction(int(((mark >= side.start) & (mark < side.start + side.size)).sum()), mark.numel()))
            for side in self.sides_of(mark)
        )

    def join(self, one: Mark, other: Mark, reason: str) -> None:
        """Let atoms at equal places go together; what meets an element without an atom can never go."""
        first, second = torch.broadcast_tensors(one, other)
        pairs = torch.stack([first.flatten(), second.flatten()]).unique(dim=1)
        lonely = (pairs == NONE).any(0)
        if lonely.any():
            self.freeze(pairs[:, lonely], reason)
        self._pairs.append(pairs[:, ~lonely].numpy())

    def freeze(self, mark: Mark, reason: str) -> None:
        """Say that no atom of a mark can ever go; the first reason counts."""
        for atom in mark.unique().tolist():
            if atom != NONE:
                self._rigid.setdefault(atom, reason)

    def collapse(self, mark: Mark, dim: int, reason: str) -> Mark:
        """Let all atoms along one dimension go together; return the mark without that dimension."""
        first = mark.narrow(dim, 0, 1)
        self.join(first, mark, reason)
        return first

    def merged(self, marks: Iterable[Mark], reason: str) -> tuple[Mark, ...]:
        """Join marks that speak of the same dimensions, so that each dimension has one mark at most."""
        kept: list[Mark] = []
        for mark in marks:
            if mark.numel() < 2:
                continue
            for index, other in enumerate(kept):
                if varying(mark) & varying(other):
                    self.join(mark, other, reason)
                    kept[index] = min(mark, other, key=lambda each: len(varying(each)))
                    break
            else:
                kept.append(mark)
        return tuple(kept)

    def roots(self) -> NDArray[np.int64]:
        """Return for every atom the smallest one that it goes together with."""
        roots = np.arange(self._count, dtype=np.int64)
        if not self._pairs:
            return roots
        one, other = np.concatenate(self._pairs, axis=1)
        while True:
            least = np.minimum(roots[one], roots[other])
            if (least == roots[one]).all() and (least == roots[other]).all():
                return roots
            for ends in (roots[one], roots[other]):  # hooks whole trees, so that few rounds are enough
                np.minimum.at(roots, ends, least)
            np.minimum.at(roots, one, least)
            np.minimum.at(roots, other, least)
            while (roots[roots] != roots).any():
                roots = roots[roots]

    def rigid(self, roots: NDArray[np.int64]) -> dict[int, str]:
        """Return the reason for every root of which some atom can never go."""
        reasons: dict[int, str] = {}
        for atom, reason in self._rigid.items():
            reasons.setdefault(int(roots[atom]), reason)
        return reasons


def varying(mark: Mark) -> frozenset[int]:
    """Dimensions, counted from the last (−1), along which a mark has more than one entry."""
    return frozenset(dim - mark.ndim for dim, size in enumerate(mark.shape) if size > 1)


def compressed(mark: Mark) -> Mark:
    """Return the same mark with size 1 along every dimension that does not matter."""
    for dim, size in enumerate(mark.shape):
        if size > 1 and bool((mark == mark.narrow(dim, 0, 1)).all()):
            mark = mark.narrow(dim, 0, 1)
    return mark
