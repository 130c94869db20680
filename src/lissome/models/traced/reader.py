"""Reads the anatomy of any network that runs on shapes alone; see `lissome.models.traced`.

Channels between blocks are shared dims: one decision that cuts every layer that makes or reads them. What lies outside
of residual blocks makes branches that cannot be removed, so that every parameter belongs to one branch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch, Dim
from lissome.models.parts import width_step
from lissome.models.stored import shared
from lissome.models.traced.atoms import Side
from lissome.models.traced.depth import Block, residual_blocks
from lissome.models.traced.fitting import SIZES, fewer, fitting
from lissome.models.traced.groups import FITTED, Found, kernels, owner, widths
from lissome.models.traced.inputs import recorded
from lissome.models.traced.mixing import Products, Term
from lissome.models.traced.recorder import Recording
from lissome.models.traced.stand_in import NoPart, Skipped, drawn_inputs, randomised
from lissome.models.traced.verify import verified

STREAM = "stream"
"""What the names of axes begin with that decide about several branches: the channels that run between them."""

_FEW = 12  # layers that make one branch; more are opened, so that costs can be added up from small parts


def read(module: nn.Module) -> Anatomy:
    """Read the anatomy of a network.

    Raises:
        UnsupportedModelError: When it cannot be recorded; names the module and the operation.
    """
    standing = randomised(module)
    shapes, recording = recorded(standing)
    inputs = drawn_inputs(shapes)
    channels, rigid = widths(standing, recording)
    crops, stiff = kernels(standing, recording.products)
    blocks, around = residual_blocks(standing, recording, inputs)
    plan = _Plan(standing, recording, blocks, [*channels, *crops], shapes)
    idle = any(name not in recording.used for name, _ in standing.named_parameters())
    anatomy, refused = verified(plan.anatomy, inputs, trained=idle)
    refused = {name.removeprefix(f"{STREAM}."): reason for name, reason in refused.items()}
    return replace(anatomy, module=module, rigid=rigid | stiff | around | plan.held | refused)


@dataclass(frozen=True, eq=False)
class _Place:
    """A branch to be: where it is, and what belongs to it."""

    name: str
    path: str
    block: str
    removable: bool
    companions: tuple[str, ...]
    tensors: tuple[str, ...]


class _Plan:
    """Everything that was found of one network, put together.

    Attributes:
        held: Why what could be skipped stays, by name.
    """

    def __init__(
        self,
        module: nn.Module,
        recording: Recording,
        blocks: Sequence[Block],
        found: Sequence[Found],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._module, self._recording, self._found, self._shapes = module, recording, found, shapes
        self._parameters = [name for name, _ in module.named_parameters()]
        self._buffers, self._stored = [name for name, _ in module.named_buffers()], module.state_dict().keys()
        self._blocks = {block.path: block for block in blocks}
        self._shared, self.held = shared(module), dict[str, str]()
        self._sizes = {name: value.numel() for name, value in (*module.named_parameters(), *module.named_buffers())}
        self._places = list(self._walk(""))
        self._names = list(dict.fromkeys(place.block for place in self._places))

    def anatomy(self, without: Collection[str], least: Mapping[str, int], fitted: Collection[str]) -> Anatomy:
        """Return the anatomy without the axes of the given names, with the fewest units of others, and fitted views."""
        banned, follow = ({name.removeprefix(f"{STREAM}.") for name in names} for names in (without, fitted))
        fewest = {name.removeprefix(f"{STREAM}."): size for name, size in least.items()}
        found = [each for each in self._found if each.axis not in banned]
        homes = {name: place.name for place in self._places for name in place.tensors}
        users = {each.axis: {homes[cut.parameter] for cut in each.cuts} for each in found}
        places = [place for place in self._places if place.tensors]
        dims = {place.name: self._dims(place, found, users, fewest) for place in places}
        terms = self._terms(found, dims)
        branches = [
            self._branch(
                place, tuple(dims[place.name].values()), terms.get(place.name, ()),
                removable=place.removable and place.name not in banned,
            )
            for place in places
        ]  # fmt: skip
        stated, follows = dict[tuple[str, str], tuple[tuple[str, str, int], ...]](), set[str]()
        for each in found:  # an attribute is written by one branch alone, one that stays
            views = tuple(one for one in each.fitted if each.axis in follow and one[0] not in follows)
            follows.update(one[0] for one in views)
            said = each.stated + views
            homes_of = [
                (branch.removable, branch.name, dim.name)
                for branch in branches
                for dim in branch.dims
                if said and branch.axis(dim.name).removeprefix(f"{STREAM}.") == each.axis
            ]
            stated |= {home[1:]: said for home in sorted(homes_of, key=lambda home: home[0])[:1]}
        kind = "image" if any(len(shape) == 3 for shape in self._shapes.values()) else "features"
        config: Any = getattr(self._module, "config", None)
        return Anatomy(
            family=Traced(tuple(self._names), stated, self._given()),
            architecture=str(getattr(config, "model_type", type(self._module).__name__)),
            module=self._module,
            blocks=tuple(self._names),
            branches=tuple(branches),
            hidden=0,
            vocabulary=0,
            task=kind,
            inputs=self._shapes,
        )

    def _given(self) -> dict[str, tuple[int, int]]:
        return {part.path: (part.entries, part.rank) for block in self._blocks.values() for part in block.parts}

    def _dims(
        self, place: _Place, found: Sequence[Found], users: Mapping[str, set[str]], fewest: Mapping[str, int]
    ) -> dict[str, Dim]:
        """Dims of a branch by the names of their axes."""
        mine, dims = frozenset(place.tensors), dict[str, Dim]()
        for each in found:
            cuts = tuple(cut for cut in each.cuts if cut.parameter in mine)
            if cuts:
                own = len(users[each.axis]) == 1 and each.axis.startswith(f"{place.name}.")
                least = fewest.get(each.axis, min(2, each.size))
                allowed = tuple(size for size in each.allowed if size >= least)
                dims[each.axis] = Dim(
                    each.axis.removeprefix(f"{place.name}.") if own else f"{STREAM}.{each.axis}",
                    each.size, cuts, step=_step(each), least=least, allowed=allowed, shared=not own,
                    ordered=each.kind == "kernel",
                )  # fmt: skip
        return dims

    def _branch(self, place: _Place, dims: Sequence[Dim], terms: Sequence[Term], *, removable: bool) -> Branch:
        mine = frozenset(place.tensors)
        products = {
            name: macs for name, macs in self._recording.products.items() if name in mine and self._is_whole(name)
        }
        linears = {owner(each.path): 0 for each in self._recording.mixings if each.path in mine}
        linears |= {owner(name): macs // self._sizes[name] for name, macs in products.items()}
        convolves = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in self._parts(place))
        return Branch(
            name=place.name,
            kind="convolution" if convolves else "projection",
            block=self._names.index(place.block),
            path=place.path,
            companions=place.companions,
            dims=tuple(dims),
            parameters=tuple(name for name in self._parameters if name in mine),
            buffers=tuple(name for name in self._buffers if name in mine and name in self._stored),
            linears=tuple(linears),
            positions=linears,
            direct=frozenset(linears),
            mixing=Products(tuple(terms)) if terms else None,
            removable=removable,
        )

    def _is_whole(self, name: str) -> bool:
        """Whether all of a stored weight is multiplied, equally often, so that it counts as much as is left of it."""
        kept = name in self._stored or name in self._parameters
        return kept and self._recording.products[name] % self._sizes[name] == 0

    def _parts(self, place: _Place) -> Iterator[nn.Module]:
        """Layers of a branch that have parameters of their own."""
        for name in place.tensors:
            yield self._module.get_submodule(name.rpartition(".")[0])

    def _terms(self, found: Sequence[Found], dims: Mapping[str, dict[str, Dim]]) -> dict[str, list[Term]]:
        """Products by branch that do not follow from one weight, each spread over the dims that cut what it multiplies.

        A branch whose products follow from channels between the blocks that cut nothing in it gets their dim too.
        """
        axes = {(cut.parameter, cut.dim): each.axis for each in found for cut in each.cuts}
        every = [
            (each.macs, self._home(each.path).name, [_by_axis(shares, axes) for shares in each.over])
            for each in self._recording.mixings
        ]
        for name, macs in self._recording.products.items():
            if not self._is_whole(name):
                cut = dict.fromkeys(axis for (tensor, _), axis in axes.items() if tensor == name)
                every.append((macs, self._home(name).name, [{axis: Fraction(1)} for axis in cut]))
        terms: dict[str, list[Term]] = {}
        for macs, home, factors in every:
            for parts in product(*(factor.items() for factor in factors)):
                share = prod((part for _, part in parts), start=Fraction(macs))
                place, over = _placed([axis for axis, _ in parts if axis is not None], home, dims)
                each = share / prod(dim.size for dim in over)
                names = tuple(dim.name for dim in over)
                term = Term(int(each), names) if each.denominator == 1 else Term(round(share))
                terms.setdefault(place, []).append(term)
        return terms

    def _home(self, path: str) -> _Place:
        """The branch in which a module runs: the one with the longest path, else the first."""
        places = [place for place in self._places if place.tensors]
        holding = [place for place in places if f"{path}.".startswith(f"{place.path}.") or not place.path]
        return max(holding, key=lambda place: len(place.path), default=places[0])

    def _walk(self, path: str) -> Iterator[_Place]:
        """Cut the tree of modules into branches."""
        module, block = self._module.get_submodule(path), self._blocks.get(path)
        tensors = self._below(path)
        if isinstance(module, Skipped):
            yield _Place(path, path, path, False, (), ())
        elif block is not None and not block.parts and not self._split(module):
            yield _Place(path, path, path, self._can_go(path), (), tensors)
        elif block is not None:
            yield from self._in_parts(path, block)
        elif path and not self._opens(path, module) and tensors:
            yield _Place(path, path, path, False, (), tensors)
        else:
            own = tuple(name for name in tensors if name.rpartition(".")[0] == path)
            if own:
                name = path or "model"
                yield _Place(name, path, name, False, (), own)
            for child, _ in module.named_children():
                yield from self._walk(f"{path}.{child}" if path else child)

    def _split(self, module: nn.Module) -> bool:
        return any(isinstance(part, NoPart) for part in module.modules())

    def _can_go(self, path: str, companions: Sequence[str] = ()) -> bool:
        """Whether nothing outside shares a tensor with some modules: it would keep what is counted as gone."""
        inside = tuple(f"{each}." for each in (path, *companions))
        for names in self._shared:
            mine, others = [name for name in names if name.startswith(inside)], set(names)
            others.difference_update(mine)
            if mine and others:
                self.held[path] = f"{mine[0]} is also {min(others)}"
                return False
        return True

    def _in_parts(self, path: str, block: Block) -> Iterator[_Place]:
        taken: set[str] = set()
        for part in block.parts:
            tensors = tuple(name for each in (part.path, *part.companions) for name in self._below(each))
            taken.update(tensors)
            can_go = self._can_go(part.path, part.companions)
            yield _Place(part.path, part.path, path, can_go, part.companions, tensors)
        rest = tuple(name for name in self._below(path) if name not in taken)
        yield _Place(path, path, path, False, (), rest)

    def _below(self, path: str) -> tuple[str, ...]:
        prefix = f"{path}." if path else ""
        return tuple(name for name in (*self._parameters, *self._buffers) if name.startswith(prefix))

    def _opens(self, path: str, module: nn.Module) -> bool:
        """Whether the children of a module are branches of their own."""
        if isinstance(module, nn.Sequential | nn.ModuleList) or any(
            each.startswith(f"{path}.") for each in self._blocks
        ):
            return True
        return len({name.rpartition(".")[0] for name in self._below(path)}) > _FEW


def _by_axis(
    shares: Iterable[tuple[Side, Fraction]], axes: Mapping[tuple[str, int], str]
) -> dict[str | None, Fraction]:
    """Parts of a dimension by the axis that cuts them; None for the rest."""
    found: dict[str | None, Fraction] = {}
    for side, share in shares:
        axis = axes.get((side.tensor, side.dim))
        found[axis] = found.get(axis, Fraction(0)) + share
    rest = 1 - sum(found.values())
    return found | {None: found.get(None, Fraction(0)) + rest} if rest else found


def _placed(axes: Sequence[str], home: str, dims: Mapping[str, dict[str, Dim]]) -> tuple[str, list[Dim]]:
    """The branch that a product belongs to, and its dims of some axes: the home, or the one that owns an axis alone."""
    holders = {axis: [name for name, known in dims.items() if axis in known] for axis in axes}
    owners = {holders[axis][0] for axis in axes if not dims[holders[axis][0]][axis].shared}
    place = owners.pop() if len(owners) == 1 else home
    for axis in axes:
        known = dims[holders[axis][0]][axis]
        if known.shared:
            dims[place].setdefault(axis, replace(known, cuts=()))
    return place, [dims[place][axis] for axis in axes if axis in dims[place]]


def _step(found: Found) -> int:
    """Steps of channels are about an eighth of them, in multiples of 32 or 8 where that is possible."""
    if found.kind != "width":
        return 1
    coarse = width_step(found.size)
    return coarse // 8 * 8 or coarse


class Traced:
    """Operations on networks that were read from a recording; see `lissome.models.anatomy.Family`.

    Args:
        blocks: Names of the blocks, by their number.
        stated: Attributes that say the size of a dim, by the names of branch and dim: path of the module, name of the
            attribute, and how much a unit counts.
        given: What parts of blocks return: length of the tuple (0 for a tensor), dimensions of what they add.
    """

    name = "traced"

    def __init__(
        self,
        blocks: tuple[str, ...],
        stated: Mapping[tuple[str, str], tuple[tuple[str, str, int], ...]],
        given: Mapping[str, tuple[int, int]],
    ) -> None:
        self._blocks, self._stated, self._given = blocks, stated, given

    def absent(self, branch: Branch) -> nn.Module:
        """Return what hands on the input, for a whole block, or adds nothing, for a part of one."""
        block = self._blocks[branch.block]
        return Skipped() if branch.path == block else NoPart(block, *self._given[branch.path])

    def resize(self, module: nn.Module, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return the numbers of heads that modules keep, and classes whose views fit; layers state their own sizes."""
        fields: dict[str, dict[str, Any]] = {}
        whole = {dim.name: dim.size for dim in branch.dims}
        for dim, size in sizes.items():
            for path, name, width in self._stated.get((branch.name, dim), ()):
                own = fields.setdefault(path, {})
                if name == FITTED:
                    part = module.get_submodule(path)
                    known = own.get(SIZES, getattr(part, SIZES, {}))
                    own[FITTED] = fitting(type(part))
                    own[SIZES] = fewer(known, whole[dim] * width, size * width, size)
                else:
                    own[name] = size * width
        return fields

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Nothing: there is no cache."""
        return {}

    def finish(self, module: nn.Module) -> None:
        """Nothing: what was removed stays marked, so that names do not change."""

    def head(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Refuse: it predicts no tokens.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(f"{type(module).__name__} predicts no tokens.")
