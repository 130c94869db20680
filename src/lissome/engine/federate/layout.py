"""Which coordinates of the global tensors a client holds, and how they are cut out and put back.

A layout is what a Subnet means for tensors, but not only that: a rolling window, a list of heads or the coordinates of
a mask are layouts too. Tensors that it does not name are not held; those that stand outside of every branch
(embeddings, a classifier) are held whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lissome.core.errors import SubnetError, unknown_name
from lissome.models.binding import narrow
from lissome.models.model import Model

FLAT = -1
"""Stands for the flattened tensor in a `Place`: kept coordinates that are no slice, such as those of a mask."""

Place = Mapping[int, Tensor]
"""Kept indices by dimension (LongTensor, ascending); empty for the whole tensor; `FLAT` alone for single numbers."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What of each global tensor is held.

    Attributes:
        places: By name of a global tensor; a tensor without an entry is not held.
    """

    places: Mapping[str, Place]

    @classmethod
    def whole(cls, names: Iterable[str]) -> Layout:
        """Everything of the named tensors."""
        return cls({name: {} for name in names})

    @classmethod
    def of_subnet(cls, model: Model, subnet: Mapping[str, int] | None, names: Iterable[str]) -> Layout:
        """What a Subnet keeps of the named tensors.

        Args:
            model: The whole model, whose parameters have these names.
            subnet: One choice for every axis; None is the whole model.
            names: Names of global tensors; those that are not parameters of the model are held whole.

        Raises:
            SubnetError: When the Subnet names an axis that the model does not have.
        """
        for axis in subnet or {}:
            if axis not in model.anatomy.owners:
                raise SubnetError(unknown_name("axis", axis, model.anatomy.owners))
        index = model.binding.index_map(subnet) if subnet is not None else {}
        found = ((name, index.get(name, {})) for name in names)
        return cls({name: place for name, place in found if place is not None})

    @classmethod
    def of_window(cls, model: Model, subnet: Mapping[str, int], names: Iterable[str], first: int) -> Layout:
        """As `of_subnet`, with units ``first``, ``first + 1`` …, counted round, in place of the leading ones of a dim.

        A client still extracts the Subnet; what it is sent fits it, because the units keep their order. Units with an
        order of their own (a kernel's) do not move.

        Args:
            model: The whole model.
            subnet: How many units of each dim.
            names: Names of global tensors.
            first: Number of the first unit, modulo the size of each dim.
        """
        flags: dict[str, dict[int, Tensor]] = {}
        gone: set[str] = set()
        for branch in model.anatomy.branches:
            if not subnet.get(branch.name, 1):
                gone.update(branch.parameters)
                continue
            sizes = model.binding.sizes(branch, subnet)
            for dim in branch.dims:
                start = 0 if dim.ordered else first
                dropped = (torch.arange(sizes[dim.name], dim.size) + start) % max(1, dim.size)
                for held in dim.cuts if len(dropped) else ():
                    whole = torch.ones(model.binding.shapes[held.parameter][held.dim], dtype=torch.bool)
                    flag = flags.setdefault(held.parameter, {}).setdefault(held.dim, whole)
                    flag[held.units[dropped].flatten()] = False
        found: dict[str, Place] = {}
        for name in names:
            place = {dim: flag.nonzero().flatten() for dim, flag in flags.get(name, {}).items()}
            if name not in gone and all(map(len, place.values())):
                found[name] = place
        return cls(found)

    def only(self, names: Iterable[str]) -> Layout:
        """The part of the layout that concerns the named tensors."""
        wanted = set(names)
        return Layout({name: place for name, place in self.places.items() if name in wanted})

    def also(self, other: Layout) -> Layout:
        """This layout, and what another one holds."""
        return Layout({**self.places, **other.places})

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take what is held out of global tensors; the results share no memory with them.

        Raises:
            SubnetError: When a held tensor is not there, or an index lies outside of it.
        """
        return {name: cut(self._of(tensors, name), place).clone() for name, place in self.places.items()}

    def templates(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shapes and number types of what `cut` gives, as tensors without data."""
        found = {}
        for name, place in self.places.items():
            whole = self._of(tensors, name)
            shape = shape_of(tuple(whole.shape), place)
            found[name] = torch.empty(shape, dtype=whole.dtype, device="meta")
        return found

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """A short name of each place, equal for equal places of one tensor."""
        return {name: _key(place) for name, place in self.places.items()}

    def _of(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in tensors:
            raise SubnetError(unknown_name("tensor", name, tensors))
        return tensors[name]


def shape_of(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """Return the shape of what a place keeps of a tensor of `shape`."""
    if FLAT in place:
        return (len(place[FLAT]),)
    return tuple(len(place[dim]) if dim in place else size for dim, size in enumerate(shape))


def cut(tensor: Tensor, place: Place) -> Tensor:
    """Take what a place keeps out of a tensor: a view where that is possible."""
    if FLAT in place:
        return tensor.flatten()[place[FLAT]]
    return narrow(tensor, place)


@torch.no_grad()
def put(tensor: Tensor, place: Place, part: Tensor | float) -> None:
    """Write a part to its place, in place."""
    if not place:
        tensor.copy_(torch.as_tensor(part))
    elif FLAT in place:
        tensor.view(-1)[place[FLAT]] = torch.as_tensor(part, dtype=tensor.dtype)
    else:
        tensor[_grid(tensor, place)] = torch.as_tensor(part, dtype=tensor.dtype)


@torch.no_grad()
def add(tensor: Tensor, place: Place, part: Tensor | float, weight: float = 1.0) -> None:
    """Add a part, times `weight`, at its place, in place; indices of a place are distinct, so none is added twice."""
    values = torch.as_tensor(part, dtype=tensor.dtype)
    if not place:
        tensor.add_(values, alpha=weight)
    elif FLAT in place:
        tensor.view(-1)[place[FLAT]] += weight * values
    else:
        view = _leading(tensor, place)
        if view is not None:
            view.add_(values, alpha=weight)
        else:
            tensor[_grid(tensor, place)] += weight * values


def _leading(tensor: Tensor, place: Place) -> Tensor | None:
    """A view of the place when it is the leading part of every dimension, which is much faster to add to."""
    for dim, kept in place.items():
        if len(kept) and int(kept[-1]) != len(kept) - 1:
            return None
        tensor = tensor.narrow(dim, 0, len(kept))
    return tensor


def _grid(tensor: Tensor, place: Place) -> tuple[Tensor, ...]:
    axes = (place[dim] if dim in place else torch.arange(size) for dim, size in enumerate(tensor.shape))
    return torch.meshgrid(*axes, indexing="ij")


def _key(place: Place) -> str:
    digest = hashlib.sha256()
    for dim in sorted(place):
        digest.update(f"{dim}:{len(place[dim])}:".encode())
        digest.update(place[dim].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16] if place else ""


def local_names(model: Model, small: Model, subnet: Mapping[str, int] | None) -> dict[str, str]:
    """Names of global tensors by what an extracted model calls them: it numbers its blocks anew.

    Args:
        model: The whole model.
        small: What was extracted from it.
        subnet: Of the extracted model.

    Returns:
        The global name of every parameter of `small`.
    """
    blocks, kept = model.anatomy.blocks, small.anatomy.blocks
    if len(blocks) == len(kept):
        return {name: name for name, _ in small.module.named_parameters()}
    chosen = subnet or {}
    present = sorted({branch.block for branch in model.anatomy.branches if chosen.get(branch.name, 1)})
    origin = {f"{kept[index]}.": f"{blocks[block]}." for index, block in enumerate(present)}
    found = {}
    for name, _ in small.module.named_parameters():
        start = next((prefix for prefix in origin if name.startswith(prefix)), "")
        found[name] = origin.get(start, "") + name.removeprefix(start)
    return found
