"""What sparse weights and integers cost: fewer bytes in a file, and no time less as long as no kernel profits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SLOW = (
    "scattered zeros do not make it faster: they are multiplied like any other number, since no kernel that skips them "
    "is in use"
)
"""What everybody must know who expects speed of zeros."""


def sparse_bytes(numel: int, kept: int, item: int) -> int:
    """Bytes of a matrix in a file: its kept numbers and a bit for each, or all numbers where that is smaller."""
    return min(kept * item + -(-numel // 8), numel * item)


def integer_note(layers: int, bits: Sequence[int]) -> str:
    """Word what it means that the weights of so many layers lie in the file as integers of such bits."""
    sizes = " and ".join(map(str, sorted(bits)))
    return (
        f"integers: the weights of {layers} layers lie in the file as integers of {sizes} bits; when the "
        "model runs, the numbers that they stand for take the room and the time of any others"
    )


def sparse_note(shares: Mapping[str, float], sizes: tuple[str, str]) -> str:
    """Word what zeros do and do not do.

    Args:
        shares: Share of zeros by what it is a share of.
        sizes: Of the file, and of one with every weight written out, each with its unit.
    """
    what = ", ".join(f"{share:.1%} of {of}" for of, share in shares.items())
    return f"zeros: {what}; the file has {sizes[0]}, with every weight written out {sizes[1]}; {SLOW}"
