"""Ranks as axes: adapters of one group and branch share a rank, and their tensors follow the cuts of their layers.

With adapters on, the anatomy of a model has one more dim per group, such as
``layers.3.attention.q_proj+k_proj+v_proj.rank``, and every cut of a layer's inputs or outputs cuts A or B too. So
masking, extraction and counting treat ranks and widths alike, and an adapter always has the shape of its frozen weight
(LoNAS, LREC-COLING 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lissome.core.errors import ConfigError, unknown_name
from lissome.core.method import LinearShape
from lissome.models.adapters.layers import NAME, Core, LowRank, Masked, Quantised, adapters
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim, span
from lissome.models.model import Model
from lissome.models.parts import inputs, is_conv1d, outputs
from lissome.models.space import Space

Groups = Sequence[Sequence[str]] | Mapping[str, str]
"""Kinds of linear layers, by the end of their names; those of one group share a rank within their branch. Or the label
of its group for every layer by name."""

RANK = "rank"
_USUAL = 64
"""Ranks up to this are of use to somebody, and cost next to nothing where they are not."""


def adaptable(model: Model, kinds: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the linear layers that adapters go on.

    Args:
        model: The model, cut or whole.
        kinds: Ends of the names to keep, e.g. ``("q_proj", "v_proj")`` or ``("intermediate.dense",)``; None: all
            linears of all branches.

    Raises:
        ConfigError: When a kind names no layer of the model.
    """
    names = [name for branch in model.anatomy.branches for name in branch.linears if name not in branch.direct]
    return tuple(names) if kinds is None else _of_kinds(names, kinds)


def _of_kinds(names: Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    for kind in kinds:
        if not any(_ends(name, kind) for name in names):
            parts = 1 + kind.count(".")
            known = {".".join(name.split(".")[-parts:]) for name in names}
            raise ConfigError(unknown_name("kind of linear layer", kind, known))
    return tuple(name for name in names if any(_ends(name, kind) for kind in kinds))


def _in_groups(names: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Label of the group of each layer that is in one."""
    found: dict[str, str] = {}
    for group in groups:
        for name in _of_kinds(names, group):
            if name in found:
                raise ConfigError(f"{name} is in the groups {found[name]} and {'+'.join(group)}; keep it in one.")
            found[name] = "+".join(group)
    return found


def grouped(model: Model, groups: Groups | None = None) -> dict[str, str]:
    """Return the layers that groups name, each with its group's label.

    Args:
        model: The model.
        groups: None is the choice of Shears: what reads an attention's input as one group, and each linear of an MLP
            or a mixer, without a gate, as its own.

    Raises:
        ConfigError: When a kind names no layer, or two groups name the same one.
    """
    if groups is None:
        return {name: label for branch in model.anatomy.branches for name, label in _usual(branch).items()}
    if isinstance(groups, Mapping):
        return dict(groups)
    return _in_groups(adaptable(model), groups)


def labels(model: Model) -> dict[str, str]:
    """Return a label for every layer as a group of its own, e.g. ``"up_proj"``; it is unique within its branch."""
    return {name: _short(name, branch) for branch in model.anatomy.branches for name in branch.linears}


def linear_shapes(model: Model) -> dict[str, LinearShape]:
    """Describe the linear layers of the blocks that the model calls, by name, for a plan that sees no model."""
    groups, found = grouped(model), {}
    for name in adaptable(model):
        layer = model.module.get_submodule(name)
        found[name] = LinearShape(outputs(layer), inputs(layer), groups.get(name), is_conv1d(layer))
    return found


def chosen_shapes(linears: Mapping[str, LinearShape], groups: Sequence[Sequence[str]] | None) -> dict[str, LinearShape]:
    """Return the layers that `grouped` gives adapters, judged by their names alone.

    Raises:
        ConfigError: When a kind names no layer, or two groups name the same one.
    """
    if groups is None:
        return {name: shape for name, shape in linears.items() if shape.group is not None}
    return {name: linears[name] for name in _in_groups(tuple(linears), groups)}


def rank_space(model: Model) -> Space:
    """Return the Space of the ranks alone; groups with one choice have no axis."""
    names = {branch.axis(dim.name) for branch in model.anatomy.branches for dim in branch.dims if dim.beside}
    axes = [replace(axis, switch=None) for axis in model.space().axes if axis.name in names]
    return Space(tuple(axes))


def check_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Return ranks that are positive, distinct and descending.

    Raises:
        ConfigError: When they are not; says how to write them.
    """
    wanted = tuple(sorted(set(ranks), reverse=True))
    if not ranks or tuple(ranks) != wanted or wanted[-1] < 1:
        usable = [rank for rank in wanted if rank > 0]
        advice = f"write {','.join(map(str, usable))}" if usable else "write for example 32,24,16"
        raise ConfigError(
            f"ranks must be distinct, positive and descending, got {','.join(map(str, ranks)) or 'none'}; {advice}."
        )
    return wanted


def check_sides(rank: int, sides: Iterable[tuple[int, int]], name: str) -> None:
    """Refuse a rank that no layer has a use for: a product has at most the rank of the layer's smaller side.

    What is usual passes on any model, so that methods work on tiny ones with what they do by default.

    Args:
        rank: The largest one.
        sides: The two sizes of the layers that get adapters.
        name: How to call the model.

    Raises:
        ConfigError: Says the largest rank that is of use.
    """
    most = max(map(min, sides), default=rank)
    if rank > max(most, _USUAL):
        raise ConfigError(f"rank {rank} is more than any layer of {name} can use; set a rank of at most {most}.")


def with_adapters(anatomy: Anatomy) -> Anatomy:
    """Return the anatomy with the adapters of its module: more cuts, and one more dim per group of them."""
    on = adapters(anatomy.module)
    if not on:
        return anatomy
    return replace(anatomy, branches=tuple(_adapted(branch, on) for branch in anatomy.branches))


def _adapted(branch: Branch, every: Mapping[str, LowRank]) -> Branch:
    on = {name: every[name] for name in branch.linears if name in every}
    dims = [_followed(dim, on) for dim in branch.dims]
    groups: dict[str, dict[str, LowRank]] = {}
    for name, adapter in on.items():
        groups.setdefault(adapter.group, {})[name] = adapter
    return replace(branch, dims=(*dims, *(_rank_dim(label, members) for label, members in groups.items())))


def _followed(dim: Dim, on: Mapping[str, LowRank]) -> Dim:
    """A dim with the cuts of adapters; one that cuts the inputs of quantised ones stays, since these share scales."""
    dim = replace(dim, cuts=(*dim.cuts, *_followers(dim.cuts, on)))
    read = (cut.parameter.removesuffix(".weight") for cut in dim.cuts if cut.reads)
    fixed = any(isinstance(on.get(name), Quantised) for name in read)
    return replace(dim, allowed=(dim.size,), ordered=True) if fixed else dim


def _followers(cuts: Sequence[Cut], on: Mapping[str, LowRank]) -> list[Cut]:
    """Cuts of what adapters hold that go with those of their layers' weights."""
    found = []
    for cut in cuts:
        owner, _, kind = cut.parameter.rpartition(".")
        if kind == "weight" and owner in on:
            path, adapter, side = f"{owner}.{NAME}", on[owner], int(cut.reads)
            found.append(Cut(f"{path}.{'BA'[side]}", side, cut.units, reads=cut.reads))
            if isinstance(adapter, Masked):
                found.append(Cut(f"{path}.mask", side, cut.units))
            if isinstance(adapter, Quantised) and not cut.reads:
                found += [Cut(f"{path}.grid_{part}", 0, cut.units) for part in ("scale", "zero")]
    return found


def _rank_dim(label: str, members: Mapping[str, LowRank]) -> Dim:
    sizes = {adapter.rank for adapter in members.values()}
    if len(sizes) > 1:
        raise ConfigError(f"adapters of the group {label} have ranks {sorted(sizes)}; give them one rank.")
    size = sizes.pop()
    cuts: list[Cut] = []
    for name, adapter in members.items():
        path, units = f"{name}.{NAME}", span(0, size, 1)
        cuts += [Cut(f"{path}.A", 0, units), Cut(f"{path}.B", 1, units, reads=True)]
        if isinstance(adapter, Core):
            cuts += [Cut(f"{path}.core", 0, units, reads=True), Cut(f"{path}.core", 1, units, reads=True)]
    choices = {rank for adapter in members.values() for rank in adapter.ranks if rank <= size} | {size}
    return Dim(f"{label}.{RANK}", size, tuple(cuts), allowed=tuple(sorted(choices)), beside=True)


def _usual(branch: Branch) -> dict[str, str]:
    """The groups of Shears: {q, k, v}, {up}, {down}."""
    layers = [name for name in branch.linears if name not in branch.direct]
    if branch.kind in {"attention", "cross_attention"}:
        made = {cut.parameter for dim in branch.dims for cut in dim.cuts if not cut.reads}
        layers = [name for name in layers if f"{name}.weight" in made]
        label = "+".join(_short(name, branch) for name in layers)
        return dict.fromkeys(layers, label)
    return {name: _short(name, branch) for name in layers if not name.endswith("gate_proj")}


def _short(name: str, branch: Branch) -> str:
    """The last part of a layer's name, with the one before where that alone would not tell."""
    last = name.rpartition(".")[2]
    twins = [other for other in branch.linears if other.rpartition(".")[2] == last]
    return last if len(twins) == 1 else ".".join(name.split(".")[-2:])


def _ends(name: str, kind: str) -> bool:
    return name == kind or name.endswith(f".{kind}")
