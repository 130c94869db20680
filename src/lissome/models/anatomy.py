"""What is in a model: blocks, their branches, and the groups of tensor slices that must be cut together.

The same description serves every family; what differs is read by one file in `lissome.models.families`. A branch is
a residual sub-block (attention, MLP, …) that can be removed; a `Dim` of a branch is something it has a number of
(channels, KV groups, query heads), each unit tied to slices of several tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lissome.core.errors import SubnetError, UnsupportedModelError, unknown_name
from lissome.core.registry import public_files
from lissome.models.mixing import Mixing
from lissome.models.space import Axis, Space

TASKS = {
    "causal-lm": "a causal language model",
    "encoder": "an encoder of text",
    "features": "a model of rows of numbers",
    "image": "a model of images",
    "seq2seq": "an encoder-decoder",
}
"""What models compute, by the name that an `Anatomy` gives it."""


class OtherArchitectureError(UnsupportedModelError):
    """A model of an architecture that a family does not read; `known` are those that it does."""

    def __init__(self, message: str, known: Sequence[str]) -> None:
        super().__init__(message)
        self.known = tuple(known)


Layer = dict[str, dict[str, int]]
"""What one block has: number of units by dim, by the name of the branch inside the block."""


@dataclass(frozen=True, eq=False)
class Cut:
    """How the units of a `Dim` lie in one tensor.

    Attributes:
        parameter: Dotted name in the module.
        dim: Tensor dimension along which they lie.
        units: LongTensor[units, lanes, width]: indices along `dim`; lanes of one unit may be permuted apart.
        reads: Whether the tensor reads what the units hold (a consumer); otherwise it makes or changes it. The
            dimension does not tell: a linear layer's inputs are columns, those of GPT-2's Conv1D are rows.
    """

    parameter: str
    dim: int
    units: Tensor
    reads: bool = False

    def dropped(self, kept: int) -> Tensor:
        """Indices along `dim` that go when only the first `kept` units stay."""
        return self.units[kept:].flatten()


@dataclass(frozen=True, eq=False)
class Dim:
    """A countable part of a branch.

    Attributes:
        name: ``"width"`` (channels), ``"groups"`` (KV groups; plain heads are groups too) or ``"queries"`` (query
            heads per KV group; absent where there is one) …
        size: Number of units; 0 for a part that has vanished.
        cuts: Every tensor slice that goes with a unit.
        step: Coarsest useful step of a Space over this dim (channels are cut in blocks that fast kernels like).
        least: Smallest number of units that may stay; 0 for a part that can vanish inside its branch. A tensor of
            which nothing is left is gone.
        allowed: Sizes to choose from, ascending, the last its own; empty where steps say it.
        beside: Whether it is the rank of adapters, which stand beside the weights: the sizes of a model's blocks, as
            its configuration lists them, do not have it.
        shared: Whether several branches have it, each with its own cuts: one decision, whose axis has its name. The
            channels between the blocks of a convolutional network are such.
        ordered: Whether its units have an order of their own, which no score may change (a kernel's).
    """

    name: str
    size: int
    cuts: tuple[Cut, ...]
    step: int = 1
    least: int = 1
    allowed: tuple[int, ...] = ()
    beside: bool = False
    shared: bool = False
    ordered: bool = False

    @property
    def kind(self) -> str:
        """What its units are: the last part of its name."""
        return self.name.rpartition(".")[2]

    @property
    def lanes(self) -> int:
        """Number of independently ordered lanes of a unit (1 unless query heads are ordered per KV group)."""
        return int(self.cuts[0].units.shape[1]) if self.cuts else 1

    def choices(self, step: int) -> tuple[int, ...]:
        """Numbers of units that may stay, counted down from the size in steps; ascending."""
        found = range(self.size % step or min(step, self.size), self.size + 1, step)
        kept = tuple(size for size in found if size >= self.least)
        return kept if self.least or 0 in kept else (0, *kept)


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual sub-block.

    Attributes:
        name: Axis name, e.g. ``"layers.3.mlp"``.
        kind: What it is: ``"attention"``, ``"cross_attention"``, ``"mlp"``, ``"mixer"`` …
        block: Index of its block.
        path: Dotted name of its module.
        companions: Names of modules that belong to the branch alone (its norms, dropouts).
        dims: What can be made smaller in it.
        parameters: Names of all parameters that vanish with it.
        linears: Names of its linear layers.
        mixing: What it computes between tokens beside its linear layers; None when nothing.
        positions: Over how many positions a linear layer runs, for those that do not run over the text's tokens.
        direct: Names of linear layers whose weight is read without calling them: an adapter on one would do nothing.
        removable: Whether it can be removed; one that cannot has no keep-axis.
        buffers: Names of all buffers that vanish with it; they are stored, but are no parameters.
    """

    name: str
    kind: str
    block: int
    path: str
    companions: tuple[str, ...]
    dims: tuple[Dim, ...]
    parameters: tuple[str, ...]
    linears: tuple[str, ...]
    mixing: Mixing | None = None
    positions: Mapping[str, int] = field(default_factory=dict)
    direct: frozenset[str] = frozenset()
    removable: bool = True
    buffers: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Dim]:
        """Dims by name."""
        return {dim.name: dim for dim in self.dims}

    def axis(self, dim: str) -> str:
        """Name of the axis of a dim."""
        return dim if dim in self.by_name and self.by_name[dim].shared else f"{self.name}.{dim}"


class Family(Protocol):
    """What a family must be able to do to its modules; see `lissome.models.families.decoder`."""

    name: str

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""

    def resize(self, module: nn.Module, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return attributes, by module path, that must change when the dims of a branch get `sizes`."""

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Return configuration fields that must change while the named branches are removed (None deletes)."""

    def finish(self, module: nn.Module) -> None:
        """Make a freshly cut module final: drop empty blocks, renumber, write what it is into its configuration."""

    def head(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Map the last block's output [..., D] to logits [..., V]."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one module.

    Attributes:
        family: How to operate on it.
        architecture: The `model_type` of its configuration.
        module: The module that was read.
        blocks: Dotted names of the blocks, in order.
        branches: All branches that are present, in order.
        hidden: Residual width D.
        vocabulary: Number of tokens V; 0 for a model that reads no text.
        quorums: Groups of branch names of which one must stay.
        task: What it computes; a key of `TASKS`. Only ``"causal-lm"`` has a perplexity.
        outside: Linear and convolution layers outside of the branches (the head apart), and over how many positions
            each runs; None for the text's tokens.
        inputs: Shape of each input without the batch, by argument name; empty where the configuration says it.
        rigid: Why what looks elastic cannot be cut, by the name that its axis would have.
    """

    family: Family
    architecture: str
    module: nn.Module
    blocks: tuple[str, ...]
    branches: tuple[Branch, ...]
    hidden: int
    vocabulary: int
    quorums: tuple[tuple[str, ...], ...] = field(default=())
    task: str = "causal-lm"
    outside: Mapping[str, int | None] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rigid: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Branch]:
        """Branches by name."""
        return {branch.name: branch for branch in self.branches}

    @cached_property
    def owners(self) -> dict[str, tuple[str, ...]]:
        """Names of the branches that each axis decides about."""
        axes: dict[str, tuple[str, ...]] = {branch.name: (branch.name,) for branch in self.branches if branch.removable}
        for branch in self.branches:
            for dim in branch.dims:
                axes[branch.axis(dim.name)] = (*axes.get(branch.axis(dim.name), ()), branch.name)
        return axes

    @cached_property
    def tags(self) -> frozenset[str]:
        """What it is, in the words of methods' `needs`: family, task, kinds of branches.

        A causal language model with attention is a ``"decoder"``, whatever its family; it and an encoder read
        ``"text"``.
        """
        kinds = {branch.kind for branch in self.branches}
        more = {"decoder"} if self.task == "causal-lm" and "attention" in kinds else set()
        more |= {"text"} if self.task in {"causal-lm", "encoder"} else set()
        return frozenset({self.family.name, self.task, *kinds, *more})

    def require(self, task: str, purpose: str) -> None:
        """Refuse a purpose that needs another task.

        Args:
            task: The task that is needed; a key of `TASKS`.
            purpose: What needs it, for the message.

        Raises:
            UnsupportedModelError: Says what the model is instead.
        """
        if self.task != task:
            raise UnsupportedModelError(
                f"{purpose} needs {TASKS[task]}, but this {self.architecture} is {TASKS[self.task]}; choose another."
            )

    def part(self, branch: Branch) -> str:
        """What a branch is called inside its block, e.g. ``"mlp"``: one name for each, also when others are gone."""
        block, last = self.blocks[branch.block], branch.name.rpartition(".")[2]
        if not branch.name.startswith(f"{block}."):
            return last
        inside = branch.name.removeprefix(f"{block}.")
        return f".{inside}" if inside == block.rpartition(".")[2] else inside  # what is left of the block has its name

    def of_block(self, index: int) -> tuple[Branch, ...]:
        """Branches of one block."""
        return tuple(branch for branch in self.branches if branch.block == index)

    def head(self, hidden: Tensor) -> Tensor:
        """Map the last block's output [..., D] to logits [..., V]."""
        return self.family.head(self.module, hidden)

    def layers(self) -> list[Layer]:
        """Return what each block has: units of every dim by branch; a removed branch is not listed."""
        found: list[Layer] = [{} for _ in self.blocks]
        for branch in self.branches:
            own = (dim for dim in branch.dims if not dim.beside and (dim.cuts or not dim.shared))
            found[branch.block][self.part(branch)] = {dim.name: dim.size for dim in own}
        return found

    def choices(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return the choices that cut this module down to such blocks; the inverse of `layers`.

        Raises:
            SubnetError: When the blocks are not as many, or a part or a dim is not there.
        """
        values = self.presence(layers)
        for index, layer in enumerate(layers):
            present = {self.part(branch): branch for branch in self.of_block(index)}
            for part, sizes in layer.items():
                values |= {present[part].axis(dim): size for dim, size in sizes.items()}
        return values

    def presence(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return the choices of `choices` that say which branches there are, without sizes.

        Raises:
            SubnetError: When the blocks are not as many, or a part is not there.
        """
        if len(layers) != len(self.blocks):
            raise SubnetError(f"{len(layers)} blocks are listed, but the base has {len(self.blocks)}.")
        values = {branch.name: 0 for branch in self.branches if branch.removable}
        for index, layer in enumerate(layers):
            present = {self.part(branch): branch for branch in self.of_block(index)}
            for part in layer:
                if part not in present:
                    raise SubnetError(unknown_name(f"part of block {index}", part, present))
                if present[part].removable:
                    values[present[part].name] = 1
        return values

    def space(self, *, steps: Mapping[str, int] | None = None, finest: bool = False) -> Space:
        """Return the Space of everything that can be removed or made smaller.

        Args:
            steps: Step of a dim by its name or kind (default: the dim's own). Choices are counted down from the full
                size.
            finest: Make every default step 1, and list decisions that have one choice only.

        Raises:
            UnsupportedModelError: When a step is not a positive number below the size.
        """
        axes: dict[str, Axis] = {}
        for branch in self.branches:
            if branch.removable:
                axes[branch.name] = Axis(branch.name, (0, 1))
            for dim in branch.dims:
                usual = 1 if finest else dim.step
                step = (steps or {}).get(dim.name, (steps or {}).get(dim.kind, usual))
                if step < 1:
                    raise UnsupportedModelError(f"the step of {dim.name} must be at least 1, got {step}.")
                choices = dim.allowed if dim.allowed and (dim.ordered or not finest) else dim.choices(step)
                if len(choices) > 1 or finest:
                    name, switched = branch.axis(dim.name), branch.removable and not dim.shared
                    axes.setdefault(name, Axis(name, choices, switch=branch.name if switched else None))
        return Space(tuple(axes.values()), self.quorums)


def anatomy_of(module: nn.Module) -> Anatomy:
    """Read the anatomy of a module.

    Raises:
        UnsupportedModelError: When no family recognises it; says what its family misses, or which families are known.
    """
    try:
        return family_anatomy(module)
    except OtherArchitectureError as unknown:
        from lissome.models.traced.inputs import ATTRIBUTE

        name = type(module).__name__
        if reads_text(module) and not hasattr(module, ATTRIBUTE):
            names = ", ".join(sorted(unknown.known))
            raise UnsupportedModelError(f"{name} was not understood; the model types that are: {names}.") from unknown
    from lissome.models.traced.reader import read

    try:
        return read(module)
    except UnsupportedModelError as reason:
        raise UnsupportedModelError(f"{name} was not understood: {reason}.") from reason


def family_anatomy(module: nn.Module) -> Anatomy:
    """Read the anatomy of a module that a family knows; nothing is run, unlike with networks of any kind.

    Raises:
        OtherArchitectureError: When no family does; has the model types that are known.
        UnsupportedModelError: When its family misses something.
    """
    from lissome.models.adapters.elastic import with_adapters
    from lissome.models.parts import require_apart

    known: list[str] = []
    for reader in _readers():
        try:
            anatomy: Anatomy = reader.read(module)
            require_apart(anatomy)
        except OtherArchitectureError as other:
            known += other.known
        except UnsupportedModelError as reason:
            raise UnsupportedModelError(f"{type(module).__name__} was not understood: {reason}.") from reason
        else:
            return with_adapters(anatomy)
    raise OtherArchitectureError(f"{type(module).__name__} is of no family", known)


def reads_text(module: nn.Module) -> bool:
    """Whether a module of transformers says that it reads tokens or sounds; other modules are read from a recording."""
    return getattr(module, "main_input_name", None) in {"input_ids", "input_features", "input_values"}


@cache
def _readers() -> tuple[Any, ...]:
    """The families, imported once: a federation reads the anatomy of a model in every order."""
    return tuple(importlib.import_module(info.module) for info in public_files("lissome.models.families"))


def span(start: int, units: int, width: int, *, lanes: int = 1, lane_stride: int = 0, stride: int = 0) -> Tensor:
    """Build the index tensor of a `Cut`: unit u, lane l, offset w lies at start + u·stride + l·lane_stride + w."""
    unit = torch.arange(units).view(-1, 1, 1) * (stride or width)
    lane = torch.arange(lanes).view(1, -1, 1) * lane_stride
    return start + unit + lane + torch.arange(width).view(1, 1, -1)
