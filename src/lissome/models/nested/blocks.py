"""Blocks of GGUF files as codes: Q4_0, Q4_1 and Q8_0, 32 weights along a row each.

Their codes are nested codes already: ``w = d · q + m`` with d and m as halves (Q4_0: q − 8, so m = −8 d; Q8_0: 8 bits,
m = −128 d). Taken as they are, a model of nested weights is that of the file, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.models.model import Model
from lissome.ops.nested import Codes, Floats, Halves, Layout

BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Bits of the codes of each type that is read."""
_GROUP = 32
_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # of a block

Exact = tuple[Codes, Halves, Halves]


def read_blocks(stored: NDArray[np.uint8], kind: str) -> Exact:
    """Read rows of blocks.

    Args:
        stored: Bytes, uint8[N, blocks of a row · bytes of a block].
        kind: One of `BITS`.

    Returns:
        Codes uint8[N, K], scales and leasts float16[N, K / 32].
    """
    blocks = stored.reshape(len(stored), -1, _BYTES[kind])
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if kind == "Q8_0":
        codes = blocks[..., 2:] ^ np.uint8(128)
        return codes.reshape(len(stored), -1), scale, scale * np.float16(-128)
    at = 4 if kind == "Q4_1" else 2
    halves = blocks[..., at:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=-1)
    least = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0] if at == 4 else scale * np.float16(-8)
    return codes.reshape(len(stored), -1), scale, least


@dataclass(frozen=True, eq=False)
class BlockReader:
    """Finds blocks of the file that a model was read from.

    Attributes:
        data: The mapped file.
        takes: What became of its tensors, by parameter's name.
    """

    data: NDArray[np.uint8]
    takes: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> BlockReader | None:
        """Return a reader of the model's GGUF file; None when it was not read from one."""
        path = model.source.path
        if path is None or path.suffix != ".gguf":
            return None
        from lissome.models.gguf.header import read_header
        from lissome.models.gguf.mapping import takes_of

        takes = {take.target: take for take in takes_of(read_header(path))}
        return cls(np.memmap(path, np.uint8, "r"), takes)

    def read(self, name: str, first: int, values: Floats, layout: Layout) -> Exact | None:
        """Return what lies behind rows of a parameter, from row `first` on.

        None when blocks have other bits, groups or levels than the layout, or other values than the parameter has now.
        """
        take = self.takes.get(name)
        if take is None or BITS.get(take.entry.kind.name) != layout.bits:
            return None
        if layout.group != _GROUP or layout.levels != "even":
            return None
        entry = take.entry
        table = self.data[entry.offset : entry.offset + entry.size].reshape(entry.shape[0], -1)
        order = np.arange(entry.shape[0]) if take.rows is None else take.rows
        codes, scale, least = read_blocks(table[order[first : first + len(values)]], entry.kind.name)
        if prod(codes.shape) != values.size or not (np.isfinite(scale).all() and np.isfinite(least).all()):
            return None
        groups = codes.reshape(len(codes), -1, _GROUP).astype(np.float32)
        same = groups * scale.astype(np.float32)[..., None] + least.astype(np.float32)[..., None]
        return (codes, scale, least) if np.array_equal(same.reshape(values.shape), values) else None
