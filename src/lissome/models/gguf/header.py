"""The header of a GGUF file, read with every count and length checked against the file before it is believed.

The format (version 2 and 3, little-endian): magic, version, number of tensors, number of metadata entries, the entries
(key, type, value), the tensor table (name, dimensions, type, offset), padding, data. A file from elsewhere may claim a
string of 2^63 bytes; here nothing is allocated that the file itself does not hold.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from lissome.core.errors import ArtifactError, UnsupportedModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 16  # metadata entries; real files have tens
_MAX_TENSORS = 1 << 16  # real files have hundreds, the largest mixtures of experts some thousands
_MAX_ITEMS = 1 << 24  # items of one array; the largest vocabularies have 2^18
_MAX_DIMENSIONS = 4
_MAX_WHOLE = 1 << 31  # sizes and counts of a model
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the file.

    Attributes:
        name: Name in the file, e.g. ``"blk.0.attn_q.weight"``.
        shape: Rows first, as torch has it.
        kind: How its numbers are stored.
        offset: First byte, counted from the start of the file.
        size: Bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """Metadata and tensor table of a GGUF file.

    Attributes:
        path: The file.
        metadata: Values by key: int, float, bool, str, list of str, or a NumPy array.
        tensors: Tensors by name, in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp's words, e.g. ``"llama"``."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise damaged(self.path, "it names no architecture")
        return value

    @property
    def name(self) -> str:
        """The model's name as the file states it, in lower case."""
        return str(self.metadata.get("general.name", "")).lower()

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number of the architecture's, e.g. ``"block_count"``.

        Raises:
            ArtifactError: When it is missing without a default, or is no such number.
            UnsupportedModelError: When each layer has another.
        """
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, np.ndarray):
            values = set(value.tolist())
            if len(values) > 1:
                raise UnsupportedModelError(
                    f"{self.path.name} has another {key} in each layer ({sorted(values)[:4]} …), which no transformers "
                    "class expresses; give the original Hugging Face folder instead."
                )
            value = values.pop() if values else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_WHOLE:
            raise damaged(self.path, f"{self.architecture}.{key} must be a positive whole number, got {value!r:.60}")
        return value

    def each(self, key: str, count: int) -> list[int]:
        """Return a whole number of the architecture's for each of `count` blocks; 0 is one.

        Raises:
            ArtifactError: When it is missing, or is neither one such number nor as many as there are blocks.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        values: list[Any] = value.tolist() if isinstance(value, np.ndarray) else [value] * count
        if len(values) != count or not all(type(one) is int and 0 <= one <= _MAX_WHOLE for one in values):
            shown = f"{value!r:.60}".replace("\n", " ")
            raise damaged(self.path, f"{self.architecture}.{key} must be a whole number for each block, got {shown}")
        return values

    def number(self, key: str, default: float) -> float:
        """Return a positive finite number of the architecture's, e.g. ``"rope.freq_base"``.

        Raises:
            ArtifactError: When it is no such number.
        """
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise damaged(self.path, f"{self.architecture}.{key} must be a positive number, got {value!r:.60}")
        return float(value)

    def token(self, role: str) -> int | None:
        """Return the id of the token with this role (``bos``, ``eos``, ``eot``, ``unknown``, ``padding``), or None.

        Raises:
            ArtifactError: When it is not the number of a token.
        """
        index = self.metadata.get(f"tokenizer.ggml.{role}_token_id")
        known = len(self.tokens)
        if index is None:
            return None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < known:
            raise damaged(self.path, f"its {role} token is {index!r:.40}, outside its vocabulary of {known}")
        return index

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, in order.

        Raises:
            ArtifactError: When there is none, or more tokens than rows of the embedding.
        """
        tokens, embedding = self.metadata.get("tokenizer.ggml.tokens"), self.tensors.get("token_embd.weight")
        if not isinstance(tokens, list) or not tokens:
            raise damaged(self.path, "it holds no vocabulary")
        if embedding is None or len(tokens) > embedding.shape[0]:
            raise damaged(self.path, f"its tokenizer has {len(tokens)} tokens, more than its embedding has rows")
        return tokens


def damaged(path: Path, why: str) -> ArtifactError:
    """Return the one-line error for a GGUF file that cannot be used."""
    return ArtifactError(f"{path} is not a usable GGUF file: {why}. Fetch or copy the file again.")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        ArtifactError: When the file is missing, empty, cut short, of another format or version, or contradicts itself.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file; give the path of a .gguf file.")
    size = path.stat().st_size
    if size < 24:
        raise damaged(path, "it is empty" if not size else f"it has only {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            return _Cursor(path, view).header()
        except UnicodeDecodeError as error:
            raise damaged(path, f"a name or text in its header is not UTF-8 ({error.reason})") from error


class _Cursor:
    """Reads forward through the header; every read is checked against the end of the file."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at = path, view, 0

    def fail(self, why: str) -> ArtifactError:
        return damaged(self.path, why)

    def take(self, count: int) -> bytes:
        if count > len(self.view) - self.at:
            raise self.fail("its header runs past the end of the file, which is cut short or damaged")
        start, self.at = self.at, self.at + count
        return self.view[start : self.at]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8")

    def kind(self) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise self.fail(f"metadata type {number} is unknown") from error

    def value(self) -> Any:
        kind = self.kind()
        if kind is GGUFValueType.STRING:
            return self.text()
        if kind is GGUFValueType.ARRAY:
            return self.array()
        number = self.scalars(kind, 1)[0]
        # 1e-6 was rounded to float32 when the file was written; its shortest spelling gives the decimal back
        return float(str(number)) if kind is GGUFValueType.FLOAT32 else number.item()

    def array(self) -> list[str] | np.ndarray:
        kind, count = self.kind(), self.number("<Q")
        if kind is GGUFValueType.ARRAY:
            raise self.fail("it holds an array of arrays")
        if count > _MAX_ITEMS:
            raise self.fail(f"an array claims {count} items (at most {_MAX_ITEMS})")
        if kind is GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        return self.scalars(kind, count)

    def scalars(self, kind: GGUFValueType, count: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def header(self) -> Header:
        if self.take(4) != _MAGIC:
            raise self.fail("it does not start with the letters GGUF")
        version = self.number("<I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "it is big-endian" if swapped in _VERSIONS else f"its version is {version}"
            raise self.fail(f"{why}, and only little-endian versions 2 and 3 are read")
        tensors, entries = self.number("<Q"), self.number("<Q")
        if tensors > _MAX_TENSORS or entries > _MAX_ENTRIES:
            raise self.fail(f"it claims {tensors} tensors and {entries} metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text()
            if key in metadata:
                raise self.fail(f"metadata key {key[:80]!r} occurs twice")
            metadata[key] = self.value()
        return Header(self.path, metadata, self.table(tensors, metadata))

    def table(self, count: int, metadata: Mapping[str, Any]) -> dict[str, TensorEntry]:
        """Read the tensor table; offsets there count from the aligned end of the header."""
        rows = [(self.text(), self.dimensions(), self.number("<I"), self.number("<Q")) for _ in range(count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.fail(f"its alignment {str(alignment)[:40]} is not a power of two")
        start = -(-self.at // alignment) * alignment
        table: dict[str, TensorEntry] = {}
        for name, shape, number, offset in rows:
            if name in table:
                raise self.fail(f"tensor {name[:80]!r} occurs twice")
            table[name] = self.entry(name, shape, number, start, offset)
        if sum(entry.size for entry in table.values()) > max(0, len(self.view) - start):
            raise self.fail("its tensors overlap or the file is cut short")
        return table

    def dimensions(self) -> tuple[int, ...]:
        count = self.number("<I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise self.fail(f"a tensor claims {count} dimensions")
        return tuple(self.number("<Q") for _ in range(count))[::-1]

    def entry(self, name: str, shape: tuple[int, ...], number: int, start: int, offset: int) -> TensorEntry:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise self.fail(f"tensor {name[:80]!r} has the unknown type {number}") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block:
            raise self.fail(f"tensor {name[:80]!r} of {kind.name} has the impossible shape {shape}")
        size = prod(shape) // block * block_bytes
        if start + offset + size > len(self.view):
            raise self.fail(f"tensor {name[:80]!r} runs past the end of the file, which is cut short or damaged")
        return TensorEntry(name, shape, kind, start + offset, size)
