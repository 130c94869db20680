"""What callers give a decoder, as the arrays that compiled code reads."""

# M tokens of a batch

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ConfigError

SEQUENCES = 64
"""Sequences that a cache tells apart."""
BLOCK = 64
"""Positions that a sparse cache freezes together."""


def integers(values: Any, what: str) -> NDArray[np.int32]:
    """Return tokens or positions as int32[M]; numpy alone would round, and wrap around.

    Args:
        values: A sequence or an array.
        what: How to call them in an error.

    Raises:
        ConfigError: When they are no list of whole numbers of 32 bits.
    """
    found = np.asarray(values)
    if found.ndim == 1 and not found.size:
        return np.empty(0, np.int32)
    known = np.iinfo(np.int32)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < known.min or found.max() > known.max:
        raise ConfigError(f"{what} must be a list of whole numbers of 32 bits, got {np.array2string(found):.60}.")
    return np.ascontiguousarray(found, np.int32)


def one_sequence(given: int) -> int:
    """Return a sequence.

    Raises:
        ConfigError: When there is no such one.
    """
    if not 0 <= given < SEQUENCES:
        raise ConfigError(f"sequences are 0 to {SEQUENCES - 1}, got {given}.")
    return int(given)


def sets_of(sequences: Sequence[int | Sequence[int]] | NDArray[Any] | int, count: int) -> NDArray[np.uint64]:
    """Return sets of sequences as bits, uint64[count].

    Args:
        sequences: One for all tokens, or for each one its sequence or sequences.
        count: M.

    Raises:
        ConfigError: When there is no such sequence, or another number of them than of tokens.
    """
    listed: list[Any] = [sequences] * count if isinstance(sequences, int | np.integer) else list(sequences)
    if len(listed) != count:
        raise ConfigError(f"there are {count} positions and {len(listed)} sequences; give one for each.")
    found = np.zeros(count, np.uint64)
    for at, given in enumerate(listed):
        for sequence in [given] if isinstance(given, int | np.integer) else given:
            found[at] |= np.uint64(1 << one_sequence(int(sequence)))
    return found


def block_ends(positions: NDArray[np.int32], sets: NDArray[np.uint64]) -> list[int]:
    """Cut a batch where a sequence goes on in another block; the ends of the parts."""
    ends, seen = [], dict[int, int]()  # sequences of the part by block
    for at, (position, given) in enumerate(zip(positions.tolist(), sets.tolist(), strict=True)):
        block = position // BLOCK
        if any(other & given for where, other in seen.items() if where != block):
            ends.append(at)
            seen = {}
        seen[block] = seen.get(block, 0) | given
    return [*ends, len(positions)]
