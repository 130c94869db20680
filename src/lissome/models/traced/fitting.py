"""Forwards that write down a size of the whole network: views in a cut one follow the numbers that are there.

Attentions often end with ``reshape(B, N, C)``, C being what they take, which is right only while all heads are there.
A module of such a class gets one that differs in its forward alone, as `torch.nn.utils.parametrize` does it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIZES = "fitted_sizes"
"""Attribute of a module: channels of the whole network that its forward may write down, and what is left of them."""

Sizes = Mapping[int, tuple[int, int]]
"""By number of channels: how many are left, and of how many heads they are."""

_VIEWS: frozenset[Callable[..., Any]] = frozenset({torch.Tensor.view, torch.Tensor.reshape, torch.reshape})


class Fitting:
    """Mark of the classes that `fitting` makes."""


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def fitting(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class like another one, in whose forward views fit what is left of the channels; always the same."""
    if issubclass(kind, Fitting):
        return kind
    if kind not in _MADE:
        _MADE[kind] = _derived(kind)
    return _MADE[kind]


def _derived(kind: type[nn.Module]) -> type[nn.Module]:
    whole: Callable[..., Any] = kind.forward

    @functools.wraps(whole)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Views(getattr(self, SIZES, {})):
            return whole(self, *args, **kwargs)

    def reduced(self: nn.Module, _protocol: int) -> tuple[Any, ...]:
        return _empty, (kind,), self.__dict__

    names = {"forward": forward, "__reduce_ex__": reduced, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Fitting, kind), names)


def fewer(known: Sizes, before: int, left: int, units: int) -> Sizes:
    """Return what is left of sizes that a forward may write down.

    Args:
        known: As of cuts before.
        before: Channels before this cut.
        left: Channels after it.
        units: Heads that they are of.
    """
    written = [each for each, (now, _) in known.items() if now == before]
    return {**known, **dict.fromkeys([*written, before], (left, units))}


def _empty(kind: type[nn.Module]) -> nn.Module:
    """A module without anything in it, for copies and pickles."""
    made = fitting(kind)
    return made.__new__(made)


class _Views(TorchFunctionMode):
    """Lets views whose sizes do not fit follow; what fits stays.

    Args:
        sizes: Channels that are left, by what they were. Forwards write these, or divide them by the number of heads.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels = {each: left for each, (left, _) in sizes.items()}
        divided = {each // units: left // units for each, (left, units) in sizes.items() if left > units}
        self._ways = (channels, divided | channels) if sizes else ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        if func in _VIEWS and not kwargs and len(args) > 1:
            value, *given = args
            wanted = tuple(given[0]) if isinstance(given[0], Sequence) else tuple(given)
            if all(isinstance(size, int) for size in wanted):
                args = (value, self._fitted(value, wanted))
        return func(*args, **(kwargs or {}))

    def _fitted(self, value: Tensor, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Put what is left where the sizes say what was there, else let the last dimension follow from the others."""
        count = value.numel()
        if -1 in sizes or prod(sizes) == count:
            return sizes
        pairs = zip(sizes, value.shape, strict=False)  # what comes first is often as it was: examples, tokens
        same = next((at for at, (size, there) in enumerate(pairs) if size != there), min(len(sizes), value.ndim))
        for places in (range(same, len(sizes)), reversed(range(same))):
            for at, known in product(places, self._ways):
                left = (*sizes[:at], known.get(sizes[at], sizes[at]), *sizes[at + 1 :])
                if prod(left) == count:
                    return left
        rest = prod(sizes[:-1])
        return (*sizes[:-1], count // rest) if rest and count % rest == 0 else sizes
