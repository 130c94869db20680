"""What sparse weights and integers cost: fewer bytes in a file, and no time less as long as no kernel profits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SLOW = (
    "scattered zeros do not make it faster: they are multiplied like any other number, since no kernel that skips them "
    "is in use (lissome fit --method sparamx puts some to use)"
)
"""What everybody must know who expects speed of zeros."""


FEW = 0.25
"""Share of zeros below which expanding weights costs about what the bytes save."""

SMALL = 1 << 16
"""Weights of a layer below which a call takes longer than reading them."""


def sparse_bytes(numel: int, kept: int, item: int) -> int:
    """Bytes of a matrix in a file: its kept numbers and a bit for each, or all numbers where that is smaller."""
    return min(kept * item + -(-numel // 8), numel * item)


def losing_shapes(shapes: Mapping[str, tuple[int, int]], share: float | None, form: str, cache: int) -> tuple[str, ...]:
    """Name what kernels for zeros will not make faster: weights that fit a cache, and few zeros.

    Args:
        shapes: Of the weights, by layer.
        share: Share of zeros; None when it is not known.
        form: How weights are held, ``"bf16"`` or ``"int8"``.
        cache: Bytes of the last cache, 0 when unknown.

    Returns:
        Lines for a person; none when nothing speaks against it.
    """
    notes, bits = [], 8 if form == "int8" else 16
    if share is not None and share < FEW:
        fewer = 1 - (bits * (1 - share) + 1) / bits
        notes.append(
            f"{share:.0%} zeros save {max(0.0, fewer):.0%} of the bytes, which expanding them costs again: kernels for "
            f"zeros are faster from about {FEW:.0%} on"
        )
    size = sum(rows * columns for rows, columns in shapes.values()) * (bits * (1 - (share or 0.0)) + 1) / 8
    if 0 < size <= cache:
        slower = "slower than dense ones" if form == "int8" else "hardly faster than dense ones"
        notes.append(
            f"the weights of all {len(shapes)} layers take {size / 1e6:.0f} MB and fit the last cache of "
            f"{cache / 1e6:.0f} MB: kernels for zeros are {slower} there; measure with: lissome bench"
        )
    small = [name for name, (rows, columns) in shapes.items() if rows * columns < SMALL]
    if small and len(small) < len(shapes):
        notes.append(
            f"{len(small)} of {len(shapes)} layers have fewer than {SMALL:,} weights ({small[0]} …): what a call takes "
            "outweighs the bytes it saves"
        )
    return tuple(notes)


def integer_note(layers: int, bits: Sequence[int]) -> str:
    """Word what it means that the weights of so many layers lie in the file as integers of such bits."""
    sizes = " and ".join(map(str, sorted(bits)))
    return (
        f"integers: the weights of {layers} layers lie in the file as integers of {sizes} bits; when the "
        "model runs, the numbers that they stand for take the room and the time of any others"
    )


def unmarked_note(share: float) -> str:
    """Word what it means that a share of the blocks' weights is zero, in a model that keeps no masks of them."""
    return (
        f"zeros: {share:.1%} of the blocks' matrices, in the file like any other number (lissome fit --method shears "
        f"--set by=given --set adapter=none keeps them compressed); {SLOW}"
    )


def sparse_note(shares: Mapping[str, float], sizes: tuple[str, str]) -> str:
    """Word what zeros do and do not do.

    Args:
        shares: Share of zeros by what it is a share of.
        sizes: Of the file, and of one with every weight written out, each with its unit.
    """
    what = ", ".join(f"{share:.1%} of {of}" for of, share in shares.items())
    return f"zeros: {what}; the file has {sizes[0]}, with every weight written out {sizes[1]}; {SLOW}"
