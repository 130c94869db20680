"""What can be skipped: residual blocks that, with all their weights at zero, hand on what they got.

A block is skipped as a whole. Where it holds several residual parts (attention and MLP of a transformer's block), each
part, which with its weights at zero gives zero to an addition, can go by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.models.traced.recorder import Call, Recording
from lissome.models.traced.stand_in import NoPart, Skipped, without_weights

_NEAR = 1e-5  # relative; what is left is rounding


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        path: Dotted name of its module.
        parts: Names of the modules in it that can go one by one, with what goes with each, and the length of the tuple
            that each returns (0 for a tensor); empty for a block that goes as a whole, or that is gone.
        gone: Whether it was removed before.
    """

    path: str
    parts: tuple[tuple[str, tuple[str, ...], int], ...] = ()
    gone: bool = False


@torch.no_grad()
def residual_blocks(module: nn.Module, recording: Recording, inputs: dict[str, Tensor]) -> list[Block]:
    """Find the residual blocks of a network, the innermost ones.

    Args:
        module: The network, with random weights.
        recording: Its recording.
        inputs: What it reads.
    """
    lost = _lost(module)
    inside = {part.block for part in module.modules() if isinstance(part, NoPart)}
    calls = _once(recording)
    takes = _taken(module, [call.module for call in calls.values()], inputs)
    found: list[Block] = []
    for path, call in calls.items():  # inner modules come before those that hold them
        if any(f"{block.path}.".startswith(f"{path}.") for block in found) or not call.alone or not path:
            continue
        part = module.get_submodule(path)
        if path not in inside and not _passes(part, takes[path]):
            continue
        if any(f"{gone}.".startswith(f"{path}.") for gone in lost):
            continue
        parts = _parts(module, recording, call, calls, takes)
        several = len(parts) + sum(isinstance(each, NoPart) for each in part.modules()) > 1
        found.append(Block(path, tuple(parts) if several else ()))
    return [*found, *(Block(path, gone=True) for path in lost)]


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
) -> list[tuple[str, tuple[str, ...], int]]:
    """Modules of a block, the outermost ones, whose output is added to something, with what only they read."""
    inside = [
        call
        for path, call in reversed(calls.items())
        if path.startswith(f"{block.module}.") and len(call.gives) == 1 and path in takes
    ]
    found: list[Call] = []
    for call in inside:
        held = any(call.module.startswith(f"{other.module}.") for other in found)
        if not held and _is_added(recording, call) and _vanishes(module.get_submodule(call.module), takes[call.module]):
            found.append(call)
    found.sort(key=lambda call: call.start)
    return [(call.module, _companions(recording, call, inside), call.entries) for call in found]


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


def _vanishes(part: nn.Module, taken: Tensor) -> bool:
    """Whether a module without weights gives zero."""
    if next(part.parameters(), None) is None:
        return False
    given = _given(part, taken)
    first = given[0] if isinstance(given, tuple) and given else given
    return isinstance(first, Tensor) and not bool(first.any())


def _companions(recording: Recording, part: Call, inside: Sequence[Call]) -> tuple[str, ...]:
    """Modules of which only this part reads what they give: its norm."""
    found = []
    for call in inside:
        if call.stop > part.start or not call.alone:
            continue
        readers = [
            index
            for index, step in enumerate(recording.steps)
            if index >= call.stop and set(call.gives) & set(step.reads)
        ]
        if readers and all(part.start <= index < part.stop for index in readers):
            found.append(call.module)
    return tuple(path for path in found if not any(path.startswith(f"{other}.") for other in found))
