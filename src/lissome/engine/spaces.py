"""Spaces of super-networks: which sizes each part may take, by a rule over all of them, and which blocks may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lissome.core.errors import ConfigError, SubnetError
from lissome.engine.paths import kind_of, share_of
from lissome.models.anatomy import Dim
from lissome.models.model import Model
from lissome.models.space import Axis, Space

KINDS = ("kernel", "depth", "width", "rank")
"""What can be elastic."""

Rule = Callable[[str, Dim], Sequence[int]]
"""Gives the sizes to choose from of an axis, by its name and its dim; the full one is added."""

_CHANNELS = frozenset({"width", "channels"})  # dims that are counted in ones; all others in heads or groups


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of channels and heads.

    Attributes:
        shares: Of the full size; channels are rounded down to a multiple. None: in steps.
        step: Steps down from the full size of channels, where there are no shares; heads go one by one.
        least: Channels that stay at least (heads: what the model can do with).
        multiple: Channels are a multiple of it.
        most: Choices of a dim at most, the largest ones; None for all.
    """

    shares: tuple[float, ...] | None = None
    step: int = 32
    least: int = 32
    multiple: int = 8
    most: int | None = None

    def __post_init__(self) -> None:
        if self.shares is not None and not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(f"widths are shares in (0, 1], got {', '.join(map(str, self.shares))}.")

    def __call__(self, name: str, dim: Dim) -> tuple[int, ...]:
        """Return the sizes of a dim, ascending."""
        channels = dim.kind in _CHANNELS
        least = max(min(self.least, dim.size), dim.least) if channels else max(1, dim.least)
        if self.shares is None:
            sizes = set(range(dim.size, 0, -self.step if channels else -1))
        else:
            unit = self.multiple if channels else 1
            sizes = {share_of(dim.size, share) // unit * unit if share < 1 else dim.size for share in self.shares}
        kept = sorted(size for size in {*sizes, dim.size} if size >= least)
        return tuple(kept[-self.most :] if self.most else kept)


def elastic_space(
    model: Model,
    rule: Rule,
    *,
    kinds: Sequence[str] = KINDS,
    chains: Sequence[Sequence[str]] = (),
    ties: Sequence[Sequence[str]] = (),
) -> Space:
    """Return the Space of a super-network.

    Args:
        model: The model.
        rule: Sizes of channels and heads; kernels and ranks have their own.
        kinds: What is elastic.
        chains: Branches of which only the last ones may go; see `lissome.engine.paths.depth_groups`.
        ties: Branches that may go together: the parts of a layer.

    Raises:
        SubnetError: When nothing is left to choose; says why.
    """
    axes: dict[str, Axis] = {}
    loose = {name for names in (*chains, *ties) for name in names} if "depth" in kinds else set()
    for branch in model.anatomy.branches:
        if branch.name in loose and branch.removable:
            axes[branch.name] = Axis(branch.name, (0, 1))
        for dim in branch.dims:
            name = branch.axis(dim.name)
            kind = "rank" if dim.beside else "kernel" if dim.ordered else "width"
            if kind not in kinds:
                continue
            sizes = dim.allowed if dim.allowed and kind != "width" else rule(name, dim)
            choices = tuple(sorted({*sizes, dim.size}))
            if len(choices) > 1:
                switch = branch.name if branch.name in axes and not dim.shared else None
                axes.setdefault(name, Axis(name, choices, switch=switch))
    kept = (tuple(name for name in chain if name in axes) for chain in chains)
    quorums = tuple(names for names in model.anatomy.quorums if all(name in axes for name in names))
    tied = (tuple(name for name in names if name in axes) for names in ties)
    space = Space(
        tuple(axes.values()), quorums, tuple(chain for chain in kept if chain), tuple(tie for tie in tied if tie)
    )
    if not space.axes:
        raise SubnetError(_nothing(model, kinds))
    return space


def _nothing(model: Model, kinds: Sequence[str]) -> str:
    whole = model.space()
    if not whole.axes:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(model.anatomy.rigid.items())[:2])
        return f"nothing in {model.name} can change ({reasons or 'it has no such parts'}); choose another model."
    known = ", ".join(sorted({kind_of(axis) for axis in whole.axes}))
    return (
        f"the Space leaves nothing to choose: {model.name} has {known}, of which {', '.join(kinds)} with these sizes "
        "leave one choice each; allow smaller widths (min_width, multiple) or more kinds."
    )


def narrowed(space: Space, kinds: Sequence[str], *, choices: int | None = None, depth: int | None = None) -> Space:
    """Return the part of a Space that one stage of training opens; all that it does not name stays full.

    Args:
        space: All axes.
        kinds: Kinds of axes that are open; see `lissome.engine.paths.kind_of`.
        choices: The largest choices of each that are open; None for all.
        depth: Blocks of a chain that may go at most; None for all.
    """
    chains = tuple(chain[-(depth or len(chain)) :] for chain in space.chains)
    chained = {name for chain in space.chains for name in chain}
    loose = {name for chain in chains for name in chain}
    axes: dict[str, Axis] = {}
    for axis in space.axes:
        kind = kind_of(axis)
        if kind in kinds and (axis.name in loose or axis.name not in chained):
            kept = axis.choices if kind == "depth" else axis.choices[-(choices or len(axis.choices)) :]
            axes[axis.name] = replace(axis, choices=kept)
    free = {name: axis if axis.switch in axes else replace(axis, switch=None) for name, axis in axes.items()}
    quorums = tuple(names for names in space.quorums if all(name in free for name in names))
    kept_chains = tuple(chain for chain in chains if chain and chain[0] in free)
    return Space(tuple(free.values()), quorums, kept_chains, tuple(tie for tie in space.ties if tie[0] in free))


def combinations(space: Space) -> int:
    """Return how many combinations of choices a Space has; of a chain only the last ones go, of a tie all or none."""
    chained = {name for names in space.chains for name in names} | {name for tie in space.ties for name in tie[1:]}
    total = 1
    for axis in space.axes:
        total *= 1 if axis.name in chained else len(axis.choices)
    for chain in space.chains:
        total *= len(chain) + 1
    return total
