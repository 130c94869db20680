"""Ties a Space to the tensors of a model: mask, narrow, lift, extract, reorder.

A masked model and an extracted one run the same code on the same numbers: masking puts views of the kept slices in
the place of the parameters, extraction makes those views into tensors of their own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissome.core.errors import SubnetError
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim
from lissome.models.copies import without_history
from lissome.models.crops import drop_crops, kernel_of, shrink
from lissome.models.integers import forget_grid
from lissome.models.resave import keep_sizes
from lissome.models.space import Space
from lissome.models.sparse import edit_mask
from lissome.models.stated import stated_sizes

if TYPE_CHECKING:
    from lissome.models.model import Model

IndexMap = dict[str, dict[int, Tensor]]

_REMEMBERED = 2048  # sizes of dims whose indices are kept: megabytes for wide models


def narrow(tensor: Tensor, index: Mapping[int, Tensor]) -> Tensor:
    """Cut a tensor to the kept indices (ascending) of each dimension; a run is a view, anything else a copy."""
    for dim, kept in index.items():
        count = len(kept)
        if count == tensor.shape[dim]:
            continue
        first = int(kept[0]) if count else 0
        run = count == 0 or int(kept[-1]) == first + count - 1
        tensor = tensor.narrow(dim, first, count) if run else tensor.index_select(dim, kept.to(tensor.device))
    return tensor


def lift(part: Tensor, index: Mapping[int, Tensor], into: Tensor) -> Tensor:
    """Put a narrowed tensor back (the adjoint of `narrow`): a copy of `into` with `part` at the kept indices."""
    grid = [index[dim] if dim in index else torch.arange(size) for dim, size in enumerate(into.shape)]
    result = into.clone()
    result[tuple(each.to(into.device) for each in torch.meshgrid(*grid, indexing="ij"))] = part
    return result


class Binding:
    """The Space's axes of one module, as operations on its tensors.

    Attributes:
        shapes: Shape of every parameter and buffer of the unmasked module, by name; tied parameters once.
        buffers: Names of the buffers.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.module = anatomy.module
        self.shapes = {name: tuple(value.shape) for name, value in self.module.named_buffers()}
        self.buffers = frozenset(self.shapes)
        self.shapes |= {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}
        self._owners: dict[str, nn.Module] = {}
        self._known: dict[tuple[str, str, int], dict[tuple[str, int], Tensor]] = {}

    def owner(self, tensor: str) -> nn.Module:
        """Return the module that a parameter or buffer belongs to."""
        path = tensor.rpartition(".")[0]
        if path not in self._owners:
            self._owners[path] = self.module.get_submodule(path)
        return self._owners[path]

    def sizes(self, branch: Branch, subnet: Mapping[str, int]) -> dict[str, int]:
        """Kept units of each dim of a branch; 0 everywhere when the branch is removed."""
        if not subnet.get(branch.name, 1):
            return {dim.name: 0 for dim in branch.dims}
        return {dim.name: subnet.get(branch.axis(dim.name), dim.size) for dim in branch.dims}

    def branch_index(self, branch: Branch, sizes: Mapping[str, int]) -> IndexMap:
        """Kept indices by parameter and dimension, for the parameters of a branch that get smaller."""
        index: IndexMap = {}
        for dim in branch.dims:
            if sizes[dim.name] == dim.size:
                continue
            for (parameter, dimension), kept in self._kept(branch, dim, sizes[dim.name]).items():
                places = index.setdefault(parameter, {})
                other = places.get(dimension)
                places[dimension] = kept if other is None else kept[torch.isin(kept, other)]
        return index

    def _kept(self, branch: Branch, dim: Dim, size: int) -> dict[tuple[str, int], Tensor]:
        """Indices that one dim keeps, by parameter and dimension; remembered, so that switching is quick."""
        key = (branch.name, dim.name, size)
        if key not in self._known:
            flags: dict[tuple[str, int], Tensor] = {}
            for cut in dim.cuts:
                every = torch.ones(self.shapes[cut.parameter][cut.dim], dtype=torch.bool)
                flags.setdefault((cut.parameter, cut.dim), every)[cut.dropped(size)] = False
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            with torch.inference_mode(False):  # what is remembered must serve training too
                self._known[key] = {place: flag.clone().nonzero().flatten() for place, flag in flags.items()}
        return self._known[key]

    def index_map(self, subnet: Mapping[str, int]) -> dict[str, dict[int, Tensor] | None]:
        """What a Subnet keeps of every parameter it touches.

        Returns:
            By parameter name: kept indices by dimension (LongTensor, ascending), or None when the parameter is gone.
            Parameters that are not named stay whole.
        """
        result: dict[str, dict[int, Tensor] | None] = {}
        for branch in self.anatomy.branches:
            if subnet.get(branch.name, 1):
                index = self.branch_index(branch, self.sizes(branch, subnet))
                result |= {name: places if all(map(len, places.values())) else None for name, places in index.items()}
            else:
                result.update(dict.fromkeys(branch.parameters))
        return result

    def order(self, owner: str) -> tuple[str, ...]:
        """Names of the parameters and buffers of one submodule, each kind in the order in which it was registered."""
        prefix = f"{owner}." if owner else ""
        names = (name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix))
        return tuple(name for name in names if "." not in name)


class Masking:
    """A module that currently behaves like one Subnet; made by `masked`, switched with `switch`."""

    def __init__(self, binding: Binding, space: Space) -> None:
        self.binding, self.space = binding, space
        self.subnet = space.full
        self.views: dict[str, Tensor] = {}
        self._undo: dict[str, contextlib.ExitStack] = {}
        self._settled = contextlib.ExitStack()

    @property
    def removed(self) -> frozenset[str]:
        """Names of the branches that are switched off."""
        return frozenset(branch.name for branch in self.binding.anatomy.branches if not self.subnet.get(branch.name, 1))

    def switch(self, subnet: Mapping[str, int]) -> None:
        """Behave like another Subnet; only branches that differ are touched.

        Raises:
            SubnetError: When `subnet` is not of this Space.
        """
        target = self.space.check(subnet)
        before = self.removed
        owners = self.binding.anatomy.owners
        changed = {owner for name in target.differs_from(self.subnet) for owner in owners[name]}
        self.subnet = target
        for name in sorted(changed):
            if name in self._undo:
                self._undo.pop(name).close()
            self._undo[name] = self._apply(self.binding.anatomy.by_name[name])
        if self.removed != before:
            self._settle()

    def restore(self) -> None:
        """Put the module back as it was."""
        for stack in self._undo.values():
            stack.close()
        self._undo.clear()
        self._settled.close()
        self.subnet = self.space.full

    def _apply(self, branch: Branch) -> contextlib.ExitStack:
        module = self.binding.module
        with contextlib.ExitStack() as stack:  # what fails half-way is undone
            if not self.subnet.get(branch.name, 1):
                _swap_module(stack, module, branch.path, self.binding.anatomy.family.absent(branch))
                for path in branch.companions:
                    _swap_module(stack, module, path, nn.Identity())
                return stack.pop_all()
            sizes = self.binding.sizes(branch, self.subnet)
            for parameter, index in self.binding.branch_index(branch, sizes).items():
                _swap_parameter(stack, self.binding.owner(parameter), parameter, index, self.views)
            for path, fields in self.binding.anatomy.family.resize(module, branch, sizes).items():
                _swap_fields(stack, module.get_submodule(path), fields)
            return stack.pop_all()

    def _settle(self) -> None:
        self._settled.close()
        anatomy = self.binding.anatomy
        fields = anatomy.family.settle(self.binding.module, self.removed, anatomy)
        if fields:
            _swap_fields(self._settled, self.binding.module.config, fields)


def _swap_module(stack: contextlib.ExitStack, root: nn.Module, path: str, new: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    parent, old = root.get_submodule(parent_path), root.get_submodule(path)
    new.train(old.training)
    setattr(parent, name, new)
    stack.callback(setattr, parent, name, old)


def _swap_parameter(
    stack: contextlib.ExitStack, owner: nn.Module, path: str, index: Mapping[int, Tensor], views: dict[str, Tensor]
) -> None:
    """Put a view of the kept slice in the place of a parameter or buffer (and in `views`), and the layer's sizes."""
    name = path.rpartition(".")[2]
    entries = _entries(owner, name)
    order, whole = tuple(entries), entries.pop(name)
    assert whole is not None
    view = narrow(whole, index)
    vars(owner)[name] = views[path] = view

    def undo() -> None:
        del vars(owner)[name], views[path]
        _restore_entry(entries, name, whole, order)

    stack.callback(undo)
    if name == "weight":
        _swap_fields(stack, owner, stated_sizes(owner, tuple(view.shape)))
        shrink(stack, owner, whole, index)


def _entries(owner: nn.Module, name: str) -> dict[str, Any]:
    """The table of a module that a name is in, or was in: that of its buffers or that of its parameters."""
    return owner._buffers if name in owner._buffers else owner._parameters


def _restore_entry(table: dict[str, Any], name: str, value: Tensor | None, order: tuple[str, ...]) -> None:
    """Register a parameter or buffer again at its old place, so that their order never changes."""
    entries = {**table, name: value}
    table.clear()
    table.update({key: entries[key] for key in order if key in entries})


def _swap_fields(stack: contextlib.ExitStack, target: Any, fields: Mapping[str, Any]) -> None:
    """Set attributes (None deletes an existing one) and remember how they were."""
    # a module's own way looks for parameters first, which takes longer
    put = object.__setattr__ if isinstance(target, nn.Module) else setattr
    for name, value in fields.items():
        had, old = hasattr(target, name), getattr(target, name, None)
        if value is not None:
            put(target, name, value)
        elif had:
            delattr(target, name)
        if had:
            stack.callback(put, target, name, old)
        elif value is not None:
            stack.callback(delattr, target, name)


@contextlib.contextmanager
def replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let other tensors stand in the place of parameters inside the ``with`` block, computed from them perhaps.

    Args:
        module: The module; its parameters and their order are afterwards as they were.
        tensors: By name of the parameter, of its shape.
    """
    with contextlib.ExitStack() as stack:
        for path, value in tensors.items():
            owner_path, _, name = path.rpartition(".")
            owner = module.get_submodule(owner_path)
            order, whole = tuple(owner._parameters), owner._parameters.pop(name)
            vars(owner)[name] = value
            stack.callback(_restore_entry, owner._parameters, name, whole, order)
            stack.callback(vars(owner).pop, name)
        yield


@contextlib.contextmanager
def masked(model: Model, subnet: Mapping[str, int], *, space: Space | None = None) -> Iterator[Masking]:
    """Let a model behave like one of its Subnets inside the ``with`` block, caches and generation included.

    Args:
        model: The model; it is restored on leaving, also after an error.
        subnet: One choice for every axis of `space`.
        space: The Space of `subnet` (default: the finest Space of the model; axes not named stay full).

    Raises:
        SubnetError: When `subnet` is not of the Space.
    """
    if space is None:
        space = model.anatomy.space(finest=True)
        subnet = {**space.full, **subnet}
    masking = Masking(model.binding, space)
    try:
        masking.switch(subnet)
        yield masking
    finally:
        masking.restore()


@torch.no_grad()
def extract(model: Model, subnet: Mapping[str, int], *, space: Space | None = None) -> Model:
    """Cut a Subnet out of a model as a model of its own; nothing is shared with the original.

    Args:
        model: The model; left as it was.
        subnet: One choice for every axis.
        space: The Space of `subnet` (default as in `masked`).

    Raises:
        SubnetError: When `subnet` is not of the Space.
    """
    trained = {name for name, value in model.module.named_parameters() if value.requires_grad}
    with masked(model, subnet, space=space) as masking:
        memo: dict[int, Any] = {
            id(view): _cut(masking, path).detach().clone(memory_format=torch.contiguous_format)
            for path, view in masking.views.items()
        }
        clone: nn.Module = copy.deepcopy(model.module, without_history(model.module) | memo)
        index = model.binding.index_map(masking.subnet)
        for path in masking.views:
            _register(clone, path, model.binding, index[path], trained=path in trained)
    drop_crops(clone)
    model.anatomy.family.finish(clone)
    keep_sizes(clone)
    return model.derived(clone)


def _cut(masking: Masking, path: str) -> Tensor:
    """What is left of a parameter: the view of it, or the kernel that is made of it."""
    made = kernel_of(masking.binding.owner(path)) if path.endswith("weight") else None
    return masking.views[path] if made is None else made


def _register(
    clone: nn.Module, path: str, binding: Binding, index: Mapping[int, Tensor] | None, *, trained: bool
) -> None:
    """Make a copied view of `clone` a parameter or buffer again, in the order of a fresh layer; empty ones are gone."""
    owner_path, _, name = path.rpartition(".")
    owner = clone.get_submodule(owner_path)
    value, buffer = vars(owner).pop(name), path in binding.buffers
    table: dict[str, Any] = owner._buffers if buffer else owner._parameters
    kept = None if not value.numel() else value if buffer else nn.Parameter(value, trained)
    _restore_entry(table, name, kept, (*binding.order(owner_path), *table))
    if index is not None:
        edit_mask(clone, path, lambda mask: narrow(mask, index))
        forget_grid(clone, path)


@torch.no_grad()
def reorder(model: Model, orders: Mapping[str, Tensor]) -> None:
    """Permute units in place so that the most important come first; the model's function stays the same.

    Args:
        model: The model.
        orders: By axis name (``"layers.3.mlp.width"``): LongTensor[units] or LongTensor[lanes, units], new position →
            old unit.

    Raises:
        SubnetError: When an axis is unknown or an order is not a permutation.
    """
    dims: dict[str, list[Dim]] = {}
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            dims.setdefault(branch.axis(dim.name), []).append(dim)
    for axis in orders:
        if axis not in dims:
            raise SubnetError(f"no axis {axis!r} to reorder; axes look like {next(iter(dims))!r}.")
    # Lanes are of the model as it is: query heads go before the KV groups that carry them move.
    for axis, given in sorted(orders.items(), key=lambda entry: dims[entry[0]][0].lanes == 1):
        dim = dims[axis][0]
        if dim.ordered:
            raise SubnetError(f"the units of {axis} have an order of their own; leave it out.")
        order = given.cpu().expand(dim.lanes, -1) if given.dim() == 1 else given.cpu()
        every = torch.arange(dim.size).expand(dim.lanes, -1)
        if order.shape != every.shape or not torch.equal(order.sort(1).values, every):
            raise SubnetError(f"the order of {axis} must be a permutation of {dim.size} units in {dim.lanes} lanes.")
        for each in dims[axis]:
            for cut in each.cuts:
                _permute(model, cut, order)


def _permute(model: Model, cut: Cut, order: Tensor) -> None:
    """Move the units of one tensor; `order` is LongTensor[lanes, units]."""
    source = cut.units[order.T, torch.arange(len(order))].flatten()  # of [units, lanes, width]
    find = model.module.get_buffer if cut.parameter in model.binding.buffers else model.module.get_parameter
    tensor: Tensor = find(cut.parameter)
    target = cut.units.flatten().to(tensor.device)
    tensor.index_copy_(cut.dim, target, tensor.index_select(cut.dim, source.to(tensor.device)))
    edit_mask(model.module, cut.parameter, partial(_moved, cut.dim, target.cpu(), source))
    forget_grid(model.module, cut.parameter)


def _moved(dim: int, target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    return mask.index_copy(dim, target, mask.index_select(dim, source))


def ranks(scores: Sequence[Tensor]) -> list[Tensor]:
    """Turn scores (higher is more important) into orders: positions sorted by falling score, ties by position."""
    return [score.argsort(dim=-1, descending=True, stable=True) for score in scores]
