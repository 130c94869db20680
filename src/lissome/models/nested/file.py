"""The file of nested weights: safetensors, laid out so that it can be mapped and read in place.

Every matrix ``W`` is stored as ``W.planes.I``, bytes of segment I, and ``W.scales.B``, halves of precision B, in the
order that kernels read (``native/nested/nested.h``), and, where codes are not even, ``W.levels.B``, what the codes of
precision B are worth before scales, ascending bytes; vectors are float32. What the lowest precision reads comes first,
then what each higher one adds, so that bits that are not wanted are never fetched. Matrices start at multiples of 64
bytes. The metadata hold the layout and the decoder's description. Reading needs no torch.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.files import atomic_file
from lissome.core.typed import as_json, from_json
from lissome.models.nested.spec import DecoderSpec
from lissome.ops.kernels import native
from lissome.ops.nested import BLOCK, LINE, PANEL, Layout, NestedCodes, from_planes, from_scales, to_planes, to_scales

FORMAT, VERSION = "lissome-nested", "1"
NAME = "nested.safetensors"
"""Name of the file in a folder."""
_PIECE = 1 << 22  # bytes of the file in memory at a time, while it is copied
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F16": np.dtype(np.uint16), "F32": np.dtype(np.float32)}

Array = NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Where an array lies: its type, how many numbers it has, and its first byte."""

    dtype: str
    count: int
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.count * int(_DTYPES[self.dtype].itemsize)


@dataclass(frozen=True, eq=False)
class NestedFile:
    """A file that is open for reading.

    Attributes:
        path: Where it is.
        layout: How the codes of blocks are cut; its precisions are the file's.
        head: The same for the embedding and the head, which often need more bits; its precisions are read with those of
            `layout`, in order.
        spec: The decoder.
        places: Where its arrays lie.
        mapped: The mapped file.
        data: Its bytes.
    """

    path: Path
    layout: Layout
    head: Layout
    spec: DecoderSpec
    places: Mapping[str, Place]
    mapped: mmap.mmap
    data: NDArray[np.uint8]

    def release(self) -> None:
        """Let the memory of what was read go; it is read from the file again when it is looked at again."""
        self.mapped.madvise(mmap.MADV_DONTNEED)

    def array(self, name: str) -> Array:
        """Return an array as it lies in the file, not a copy."""
        place = self.places[name]
        found: Array = self.data[place.offset : place.offset + place.nbytes].view(_DTYPES[place.dtype])
        return found

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a vector.

        Raises:
            ArtifactError: When it has NaN or infinity.
        """
        found: NDArray[np.float32] = self.array(name)
        if not np.isfinite(found).all():
            raise ArtifactError(f"{self.path}: {name} has numbers that are NaN or infinite; the file is damaged.")
        return found

    def segments(self, name: str, precision: int | None = None) -> list[Array]:
        """Return the segments of a matrix that a precision reads, all by default."""
        count = len(self.layout.planes) if precision is None else self.layout.precisions.index(precision) + 1
        return [self.array(f"{name}.planes.{index}") for index in range(count)]

    def scales(self, name: str) -> dict[int, tuple[int, Array]]:
        """Return, by precision, how many planes of a matrix are read and its scales."""
        own = layout_of(name, self.layout, self.head).precisions
        pairs = zip(self.layout.precisions, own, strict=True)
        return {precision: (bits, self.array(f"{name}.scales.{bits}")) for precision, bits in pairs}

    def levels(self, name: str) -> dict[int, NDArray[np.uint8]]:
        """Return, by precision, what a matrix's codes are worth before scales; empty when they are even.

        Raises:
            ArtifactError: When they do not ascend.
        """
        own, found = layout_of(name, self.layout, self.head), {}
        for precision, bits in zip(self.layout.precisions, own.precisions, strict=True):
            if own.levels == "kmeans":
                found[precision] = self.array(f"{name}.levels.{bits}")
        if any((levels[1:] < levels[:-1]).any() for levels in found.values()):
            raise ArtifactError(f"{self.path}: levels of {name} do not ascend; the file is damaged.")
        return found

    def held(self, name: str, *, resident: bool) -> Any:
        """Return a matrix as the compiled module holds it.

        Args:
            name: The matrix.
            resident: Copy it to huge pages, instead of mapping the file.

        Raises:
            ConfigError: When there is no compiled module.
        """
        compiled = native.required()
        outputs, inputs = self.spec.weights()[name]
        keep = self._resident if resident else lambda array: array
        segments = [keep(array) for array in self.segments(name)]
        scales = {key: (bits, keep(array)) for key, (bits, array) in self.scales(name).items()}
        group, levels = layout_of(name, self.layout, self.head).group, self.levels(name)
        return compiled.Nested(outputs, inputs, group, segments, scales, levels)

    def _resident(self, array: Array) -> Array:
        kept: Array = native.required().block(array.nbytes)
        given = array.view(np.uint8)
        for first in range(0, len(given), _PIECE):  # what was copied is let go, or weights would be in memory twice
            kept[first : first + _PIECE] = given[first : first + _PIECE]
            self.release()
        return kept.view(array.dtype)

    def token_bytes(self, precision: int) -> int:
        """Return how many bytes of matrices a token reads at a precision: all but of an embedding that is no head."""
        count, found = self.layout.precisions.index(precision) + 1, 0
        for name in self.spec.weights():
            if name != "embedding" or self.spec.tied:
                bits = layout_of(name, self.layout, self.head).precisions[count - 1]
                read = [f"{name}.scales.{bits}", f"{name}.levels.{bits}"]
                read += [f"{name}.planes.{index}" for index in range(count)]
                found += sum(self.places[one].nbytes for one in read if one in self.places)
        return found

    def weight(self, name: str, precision: int) -> NDArray[np.float32]:
        """Return a matrix at a precision, float32[N, K]."""
        shape = self.spec.weights()[name]
        bits, stored = self.scales(name)[precision]
        own = replace(layout_of(name, self.layout, self.head), planes=(bits,))
        codes = from_planes(self.segments(name, precision), shape, own)
        scale, least = from_scales(stored, shape[0])
        known = self.levels(name)
        levels = {bits: known[precision]} if known else {}
        return NestedCodes(codes, {bits: scale}, {bits: least}, shape[1], own, levels).weight(bits)


def open_nested(path: Path | str) -> NestedFile:
    """Open a file, or the one in a folder; everything it says is checked against what it holds.

    Raises:
        ArtifactError: When it is missing, cut short, of another format or version, or contradicts itself.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file; make one with: lissome export MODEL --to nested.")
    metadata, places = _header(path)
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ArtifactError(
            f"{path} is of format {metadata.get('format')!r:.40} and version {metadata.get('version')!r:.20}; "
            f"this reads {FORMAT} {VERSION}."
        )
    try:
        layout, head = (Layout(tuple(planes), *rest) for planes, *rest in json.loads(metadata["layouts"]))
        check_layouts(layout, head)
        spec = from_json(DecoderSpec, json.loads(metadata["decoder"]), f"{path.name}: decoder")
    except (KeyError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise ArtifactError(f"{path} does not say how it is laid out ({error!s:.80}); the file is damaged.") from error
    spec.check(str(path))
    wanted = {name: (dtype, count) for name, dtype, count in _arrays(spec, layout, head)}
    found = {name: (place.dtype, place.count) for name, place in places.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ArtifactError(
                f"{path}: for {name} it describes {wanted.get(name, 'nothing')} and holds {found.get(name, 'nothing')}."
            )
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return NestedFile(path, layout, head, spec, places, mapped, np.frombuffer(mapped, np.uint8))


def _header(path: Path) -> tuple[dict[str, str], dict[str, Place]]:
    """Read names and places; safetensors itself checks that arrays fill the file and none overlaps another."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            fields = json.loads(file.read(min(length, _LONGEST_HEADER)))
        places = {}
        for name, field in fields.items():
            if name == "__metadata__":
                continue
            dtype, (first, last) = field["dtype"], field["data_offsets"]
            place = Place(dtype, prod(field["shape"]), 8 + length + first)
            if dtype not in _DTYPES or place.nbytes != last - first or place.offset % _DTYPES[dtype].itemsize:
                raise ArtifactError(f"{path}: {name:.80} of type {dtype} is nothing that this format holds.")
            places[name] = place
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged or cut short ({error!s:.80}); restore or remake it.") from error
    return metadata, places


def layout_of(name: str, layout: Layout, head: Layout) -> Layout:
    """Return the layout of a matrix."""
    return head if name in ("embedding", "head") else layout


def check_layouts(layout: Layout, head: Layout) -> None:
    """Refuse a head that cannot be read at every precision of the blocks.

    Raises:
        ConfigError: When it has another number of segments.
    """
    if len(layout.planes) != len(head.planes):
        raise ConfigError(
            f"blocks of {layout.planes} bits and a head of {head.planes} bits must have as many segments, because they "
            "are read together."
        )


def _arrays(spec: DecoderSpec, layout: Layout, head: Layout) -> Iterator[tuple[str, str, int]]:
    """Name, type and count of all arrays in the order of the file."""
    for index in range(len(layout.planes)):
        for name, shape in spec.weights().items():
            own = layout_of(name, layout, head)
            lines, scales = _sizes(shape, own)
            yield f"{name}.scales.{own.precisions[index]}", "F16", scales
            yield f"{name}.planes.{index}", "U8", lines * LINE * own.planes[index]
    for name in spec.weights():
        own = layout_of(name, layout, head)
        for precision in own.precisions if own.levels == "kmeans" else ():
            yield f"{name}.levels.{precision}", "U8", 1 << precision
    for name, count in spec.vectors().items():
        yield name, "F32", count


def _said(layout: Layout) -> list[Any]:
    """A layout as the file has it; what reads only even codes refuses one with levels."""
    return [list(layout.planes), layout.group, *([layout.levels] if layout.levels != "even" else [])]


def _sizes(shape: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Lines of one plane, and numbers of one precision's scales."""
    panels, groups = -(-shape[0] // PANEL), -(-shape[1] // layout.group)
    return panels * groups * (layout.group // BLOCK), panels * groups * 2 * PANEL


class NestedWriter:
    """Takes arrays in any order, one matrix at a time, so that memory holds no more than that."""

    def __init__(self, data: NDArray[np.uint8], places: Mapping[str, Place]) -> None:
        self._data, self._places = data, places
        self._missing = set(places)

    def matrix(self, name: str, codes: NestedCodes) -> None:
        """Write a matrix."""
        for index, segment in enumerate(to_planes(codes.codes, codes.layout)):
            self._put(f"{name}.planes.{index}", segment)
        for precision in codes.layout.precisions:
            stored = to_scales(codes.scales[precision], codes.leasts[precision])
            self._put(f"{name}.scales.{precision}", stored)
        for precision, levels in codes.levels.items():
            self._put(f"{name}.levels.{precision}", levels)

    def vector(self, name: str, values: NDArray[np.float32]) -> None:
        """Write a vector."""
        self._put(name, np.ascontiguousarray(values, np.float32))

    def _put(self, name: str, array: Array) -> None:
        place = self._places[name]
        assert array.nbytes == place.nbytes, name
        self._data[place.offset : place.offset + place.nbytes] = array.reshape(-1).view(np.uint8)
        self._missing.discard(name)

    def done(self) -> None:
        """Check that nothing is missing."""
        assert not self._missing, sorted(self._missing)[:3]


@contextmanager
def write_nested(path: Path, spec: DecoderSpec, layout: Layout, head: Layout) -> Iterator[NestedWriter]:
    """Yield a writer; the file is whole or absent.

    Raises:
        ConfigError: When blocks and head have not as many segments.
        OSError: When the disk is full or the place cannot be written.
    """
    check_layouts(layout, head)
    fields: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "layouts": json.dumps([_said(one) for one in (layout, head)]),
            "decoder": json.dumps(as_json(spec)),
        }
    }
    places, offset = {}, 0
    for name, dtype, count in _arrays(spec, layout, head):
        places[name] = Place(dtype, count, offset)
        fields[name] = {"dtype": dtype, "shape": [count], "data_offsets": [offset, offset + places[name].nbytes]}
        offset += places[name].nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % LINE)  # data begin at a cache line
    start = 8 + len(text)
    places = {name: Place(place.dtype, place.count, start + place.offset) for name, place in places.items()}
    with atomic_file(path) as part:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(start + offset)
        data = np.memmap(part, np.uint8, "r+")
        writer = NestedWriter(data, places)
        yield writer
        writer.done()
        data.flush()
