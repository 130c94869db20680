"""What can be skipped: residual blocks that, with all their weights at zero, hand on what they got.

A block is skipped as a whole. Where it holds several residual parts (attention and MLP of a transformer's block), each
part, which with its weights at zero gives zero to an addition, can go by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lissome.models.traced.recorder import Call, Recording
from lissome.models.traced.stand_in import NoPart, Skipped, without_weights

_NEAR = 1e-5  # relative; what is left is rounding


@dataclass(frozen=True)
class Part:
    """A module of a residual block that can go by itself.

    Attributes:
        path: Its dotted name.
        companions: Names of the modules that go with it: its norm before it, its scale behind it.
        entries: Length of the tuple that it returns; 0 for a tensor.
        rank: Number of dimensions of what it adds.
    """

    path: str
    companions: tuple[str, ...]
    entries: int
    rank: int


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        path: Dotted name of its module.
        parts: What can go one by one; empty for a block that goes as a whole, or that is gone.
        gone: Whether it was removed before.
    """

    path: str
    parts: tuple[Part, ...] = ()
    gone: bool = False


@torch.no_grad()
def residual_blocks(
    module: nn.Module, recording: Recording, inputs: dict[str, Tensor]
) -> tuple[list[Block], dict[str, str]]:
    """Find the residual blocks of a network: of blocks inside of blocks the outer one, unless most layers are inside.

    Args:
        module: The network, with random weights.
        recording: Its recording.
        inputs: What it reads.

    Returns:
        The blocks, and why others that could be skipped are none, by name.
    """
    lost = _lost(module)
    inside = {part.block for part in module.modules() if isinstance(part, NoPart)}
    calls = _once(recording)
    takes = _taken(module, [call.module for call in calls.values()], inputs)
    found, held = list[Block](), dict[str, str]()
    for path, call in calls.items():  # inner modules come before those that hold them
        if not call.alone or not path or any(_within(gone, path) for gone in lost):
            continue
        part = module.get_submodule(path)
        within = [block.path for block in found if _within(block.path, path)]
        if path not in inside and not _passes(part, takes[path]):
            continue
        if within and not _goes_around(
            module, part, [*within, *(each for each in held if _within(each, path))], takes[path]
        ):
            continue
        if within and 2 * sum(_layers(module.get_submodule(each)) for each in within) > _layers(part):
            held[path] = f"blocks inside of it can go instead, {within[0]} for one"
            continue
        found = [block for block in found if block.path not in within]
        parts = _parts(module, recording, call, calls, takes)
        several = len(parts) + sum(isinstance(each, NoPart) for each in part.modules()) > 1
        found.append(Block(path, tuple(parts) if several else ()))
    return [*found, *(Block(path, gone=True) for path in lost)], held


def _layers(module: nn.Module) -> int:
    """Number of modules with weights of their own: no width changes it."""
    return sum(next(part.parameters(recurse=False), None) is not None for part in module.modules())


def _goes_around(module: nn.Module, part: nn.Module, within: Sequence[str], taken: Tensor) -> bool:
    """Whether a module without weights hands on what it gets whatever blocks inside of it give: it is no chain."""

    def disturb(_module: nn.Module, _args: Any, given: Any) -> Any:
        return 2 * given if isinstance(given, Tensor) else given

    handles = [module.get_submodule(path).register_forward_hook(disturb) for path in within]
    try:
        return _passes(part, taken)
    finally:
        for handle in handles:
            handle.remove()


def _lost(module: nn.Module) -> list[str]:
    return [path for path, part in module.named_modules() if isinstance(part, Skipped)]


def _once(recording: Recording) -> dict[str, Call]:
    """Calls of the modules that are called once, by path."""
    counts: dict[str, int] = {}
    for call in recording.calls:
        counts[call.module] = counts.get(call.module, 0) + 1
    return {call.module: call for call in recording.calls if counts[call.module] == 1}


def _taken(module: nn.Module, paths: Sequence[str], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first tensor that modules take in a forward, by place or by name."""
    taken: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            first = next(iter((*args, *kwargs.values())), None)
            if isinstance(first, Tensor):
                taken[path] = first.clone()

        return keep

    handles = [module.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True) for path in paths]
    try:
        module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return taken


def _passes(part: nn.Module, taken: Tensor) -> bool:
    """Whether a module without weights hands on what it gets."""
    if next(part.parameters(), None) is None or not taken.any():
        return False
    given = _given(part, taken)
    if not isinstance(given, Tensor) or given.shape != taken.shape:
        return False
    return bool((given - taken).abs().max() <= _NEAR * taken.abs().max())


def _given(part: nn.Module, taken: Tensor) -> Any:
    """What a module gives without weights; None when it needs more than one tensor."""
    with without_weights(part):
        try:
            return part(taken.clone())
        except (RuntimeError, TypeError, ValueError):
            return None


def _parts(
    module: nn.Module, recording: Recording, block: Call, calls: dict[str, Call], takes: dict[str, Tensor]
) -> list[Part]:
    """Modules of a block, the outermost ones, whose output is added to something, with what only they read."""
    inside = [
        call
        for path, call in reversed(calls.items())
        if path.startswith(f"{block.module}.") and len(call.gives) == 1 and path in takes
    ]
    found: dict[str, Part] = {}
    for call in inside:
        held = any(call.module.startswith(f"{other}.") for other in found)
        if not held and _is_added(recording, call):
            rank = _vanishes(module.get_submodule(call.module), takes[call.module])
            if rank is not None:
                companions = _companions(recording, call, inside)
                found[call.module] = Part(call.module, companions, call.entries, rank)
    ordered = sorted(found.values(), key=lambda part: calls[part.path].start)
    return _chained(recording, ordered, calls)


def _chained(recording: Recording, parts: Sequence[Part], calls: Mapping[str, Call]) -> list[Part]:
    """Let what only hands on another part, as a layer scale does, go with that part; the last are looked at first."""
    left = {part.path: part for part in parts}
    for path in reversed([*left]):
        part, call = left[path], calls[path]
        fed = (each for each in left if calls[each].stop <= call.start and _feeds(recording, calls[each], call))
        before = next(fed, None) if call.alone else None
        if before is not None:
            del left[path]
            companions = (*left[before].companions, path, *part.companions)
            left[before] = replace(left[before], companions=companions, rank=part.rank)
    return [replace(part, companions=_outside(part.companions, left)) for part in left.values()]


def _outside(paths: Sequence[str], others: Collection[str]) -> tuple[str, ...]:
    """The modules that are not inside of others."""
    return tuple(path for path in dict.fromkeys(paths) if not any(_within(path, each) for each in others))


def _is_added(recording: Recording, call: Call) -> bool:
    """Whether what a module gives goes, through nothing but pointwise operations, into one addition."""
    value = call.gives[0]
    for step in recording.steps[call.stop :]:
        if value not in step.reads:
            continue
        if step.name == "add" and len(step.reads) == 2 and step.reads[0] != step.reads[1]:
            return True
        if not step.pointwise and step.name not in {"view", "dropout", "clone", "alias"}:
            return False
        value = step.writes[0]
    return False


def _within(path: str, outer: str) -> bool:
    """Whether a module is another one, or inside of it."""
    return f"{path}.".startswith(f"{outer}.")


def _vanishes(part: nn.Module, taken: Tensor) -> int | None:
    """The number of dimensions of the zeros that a module without weights gives; None when it gives something else."""
    if next(part.parameters(), None) is None:
        return None
    given = _given(part, taken)
    first = given[0] if isinstance(given, tuple) and given else given
    return first.ndim if isinstance(first, Tensor) and not bool(first.any()) else None


def _companions(recording: Recording, part: Call, inside: Sequence[Call]) -> tuple[str, ...]:
    """Modules of which only this part reads what they give: its norm."""
    found = [call.module for call in inside if call.stop <= part.start and call.alone and _feeds(recording, call, part)]
    return tuple(path for path in found if not any(_within(path, other) for other in found if other != path))


def _feeds(recording: Recording, call: Call, part: Call) -> bool:
    """Whether only one module reads what another gives."""
    gives = set(call.gives)
    readers = [index for index, step in enumerate(recording.steps) if index >= call.stop and gives & set(step.reads)]
    return bool(readers) and all(part.start <= index < part.stop for index in readers)
