"""What a branch computes between tokens beside its linear layers, for counting: attention, or a scan with a state."""

# T tokens, H query heads, G KV groups, E head size

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Sizes = Mapping[str, int]
"""Kept units of each dim of a branch."""


class Mixing(Protocol):
    """Counts of one branch; values that are equal must count equally (blocks of one shape are counted once)."""

    def whole(self, sizes: Sizes, tokens: int, *, causal: bool) -> int:
        """Multiply-accumulates of one forward over `tokens` tokens; `causal` counts only what a token may see."""

    def step(self, sizes: Sizes, length: int) -> int:
        """Multiply-accumulates of one more token after `length` tokens."""

    def held(self, sizes: Sizes, length: int) -> int:
        """Numbers that are held for the next token after `length` tokens (keys and values, or states)."""


@dataclass(frozen=True)
class Attention:
    """Softmax attention: ``2·E`` multiply-accumulates per head and pair of positions, keys and values held.

    Attributes:
        head_dim: Size E of a head.
        window: Number of past tokens that are seen; None for all.
        causal: Whether a token sees only those before it.
        queries: Fixed number of query positions; None for the text's tokens.
        keys: Fixed number of key positions (an encoder's, for cross-attention); None for the text's tokens.
        caches: Whether keys and values are held for the next token.
    """

    head_dim: int
    window: int | None = None
    causal: bool = True
    queries: int | None = None
    keys: int | None = None
    caches: bool = True

    def whole(self, sizes: Sizes, tokens: int, *, causal: bool) -> int:
        """Pairs of positions times ``2·H·E``; without `causal`, all pairs are counted, as most kernels compute them."""
        if causal and self.causal:
            reach = min(tokens, self.window or tokens)
            pairs = reach * (reach + 1) // 2 + (tokens - reach) * reach
        else:
            pairs = (self.queries or tokens) * (self.keys or tokens)
        return 2 * pairs * self._heads(sizes) * self.head_dim

    def step(self, sizes: Sizes, length: int) -> int:
        """One query against the keys that are there; nothing when the queries are not the text's tokens."""
        return 0 if self.queries else 2 * self._seen(length) * self._heads(sizes) * self.head_dim

    def held(self, sizes: Sizes, length: int) -> int:
        """Keys and values of G heads."""
        return 2 * self._seen(length) * sizes["groups"] * self.head_dim if self.caches else 0

    def _seen(self, length: int) -> int:
        if self.keys is not None:
            return self.keys
        return length if self.window is None else min(length, self.window)

    def _heads(self, sizes: Sizes) -> int:
        return sizes["groups"] * sizes.get("queries", 1)


@dataclass(frozen=True)
class StateSpace:
    """A Mamba mixer: a causal convolution over its channels, and a scan with a state of fixed size.

    The scan is counted as its recurrence: per channel and state one product each for the decay, the input and the
    output (one more where every state has a decay of its own), and two per channel for step size and skip term.

    Attributes:
        unit: Dim that counts its channels.
        width: Channels per unit.
        states: States N per channel.
        kernel: Width of the convolution.
        shared: Convolved channels that the scan alone reads (B and C of Mamba-2).
        own_decay: Whether every state has a decay of its own (Mamba-1).
        wide: Numbers of the model's type that a number of the state takes; it is float32 always.
    """

    unit: str
    width: int
    states: int
    kernel: int
    shared: int = 0
    own_decay: bool = False
    wide: int = 1

    def whole(self, sizes: Sizes, tokens: int, *, causal: bool) -> int:
        """Every token costs the same."""
        return tokens * self.step(sizes, 0)

    def step(self, sizes: Sizes, length: int) -> int:
        """Convolution and recurrence of one token."""
        channels = sizes[self.unit] * self.width
        scan = channels * ((4 if self.own_decay else 3) * self.states + 2)
        return self.kernel * self._convolved(sizes) + sizes["ssm"] * scan

    def held(self, sizes: Sizes, length: int) -> int:
        """Inputs of the convolution for the kernel's width, as transformers keeps them, and the states."""
        states = sizes[self.unit] * self.width * self.states * self.wide
        return self.kernel * self._convolved(sizes) + sizes["ssm"] * states

    def _convolved(self, sizes: Sizes) -> int:
        return sizes[self.unit] * self.width + sizes["ssm"] * self.shared
