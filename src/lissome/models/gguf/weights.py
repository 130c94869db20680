"""Tensors from GGUF to safetensors, a few megabytes at a time, so that memory does not depend on the model's size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import dequantize
from gguf.constants import GGMLQuantizationType

from lissome.core.errors import UnsupportedModelError
from lissome.core.events import Stage
from lissome.models.gguf.header import TensorEntry

StoredType = Literal["F32", "F16", "BF16"]

_PIECE = 1 << 22  # numbers dequantised at a time (16 MiB of float32)
BYTES: dict[StoredType, int] = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Take:
    """How one tensor of the result is made from one of the file.

    Attributes:
        target: Name in the result, e.g. ``"model.norm.weight"``.
        entry: Tensor of the file.
        rows: Which rows are taken, in order; None for all of them as they are.
        minus_one: Subtract 1 (Gemma's norms are stored as ``1 + w``).
    """

    target: str
    entry: TensorEntry
    rows: np.ndarray | None = None
    minus_one: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.entry.shape if self.rows is None else (len(self.rows), *self.entry.shape[1:])

    def pieces(self, data: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the tensor as float32 rows, in order; `data` is the mapped file as bytes."""
        entry = self.entry
        stored = data[entry.offset : entry.offset + entry.size]
        count = entry.shape[0] if len(entry.shape) > 1 else 1
        table = stored.reshape(count, -1)
        step = max(1, _PIECE * count // prod(entry.shape))
        for start in range(0, self.shape[0] if len(entry.shape) > 1 else 1, step):
            rows = table[start : start + step]
            if self.rows is not None and len(entry.shape) > 1:
                rows = table[self.rows[start : start + step]]
            yield self._floats(rows)

    def _floats(self, rows: np.ndarray) -> np.ndarray:
        kind = self.entry.kind
        try:
            # dequantize wants plain types for F32/F16 and bytes for all others
            plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
            with np.errstate(all="ignore"):  # infinities in a damaged file are found when the model is loaded
                floats: np.ndarray = dequantize(np.ascontiguousarray(rows).view(plain or np.uint8), kind)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"tensor {self.entry.name} is stored as {kind.name}, which the gguf package cannot read back; "
                "use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, a K or an I type."
            ) from error
        if self.rows is not None and len(self.entry.shape) == 1:
            floats = floats.reshape(-1)[self.rows]
        return floats - np.float32(1) if self.minus_one else floats


def stored_type(path: Path, takes: Sequence[Take]) -> StoredType:
    """Choose the smallest type that holds every number exactly.

    BF16 or F16 when the file's matrices are of that type and its float32 vectors round trip through it; otherwise F32,
    because the numbers of a quantised file are products that no 16-bit type holds.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    kinds = {take.entry.kind for take in takes} - {GGMLQuantizationType.F32}
    plain = [take for take in takes if take.entry.kind is GGMLQuantizationType.F32]
    choices: tuple[tuple[GGMLQuantizationType, StoredType], ...] = (
        (GGMLQuantizationType.BF16, "BF16"),
        (GGMLQuantizationType.F16, "F16"),
    )
    for kind, stored in choices:
        if kinds == {kind} and all(_exact(piece, stored) for take in plain for piece in take.pieces(data)):
            return stored
    return "F32"


def _exact(floats: np.ndarray, kind: StoredType) -> bool:
    if kind == "BF16":
        return not np.any(floats.view(np.uint32) & 0xFFFF)
    with np.errstate(over="ignore"):
        return bool(np.array_equal(floats.astype(np.float16).astype(np.float32), floats))


def _encode(floats: np.ndarray, kind: StoredType) -> bytes:
    if kind == "BF16":
        return (floats.view(np.uint32) >> 16).astype("<u2").tobytes()
    return floats.astype("<f2" if kind == "F16" else "<f4", copy=False).tobytes()


def write_safetensors(target: Path, path: Path, takes: Sequence[Take], kind: StoredType, stage: Stage) -> None:
    """Write the tensors of the GGUF file `path` into one safetensors file, all in the type `kind`.

    Raises:
        UnsupportedModelError: When a tensor's type cannot be dequantised.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for take in takes:
        end = offset + prod(take.shape) * BYTES[kind]
        table[take.target] = {"dtype": kind, "shape": list(take.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for take in takes:
            for piece in take.pieces(data):
                file.write(_encode(np.ascontiguousarray(piece, np.float32), kind))
            stage.advance(take.entry.size)
