"""Reads tensors out of a state dict in torch's old file format, without unpickling anything.

Such a file is a few pickles and then the raw numbers of every storage. The pickles' opcodes are followed on a stack of
plain values; a call in them becomes a note of what would be called, so that nothing in the file ever runs.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import ArtifactError

_TYPES = {
    "torch FloatStorage": torch.float32, "torch LongStorage": torch.int64, "torch HalfStorage": torch.float16,
    "torch IntStorage": torch.int32, "torch DoubleStorage": torch.float64,
}  # fmt: skip
_REBUILD = "torch._utils _rebuild_tensor_v2"
_MOST = 1_000_000  # opcodes; a state dict of ten thousand tensors has fewer
_MARK = object()


@dataclass
class _Noted:
    """A call that was not made, or a reference to a storage: what it names, and with what."""

    what: str
    arguments: Any


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name, in the order of the file.

    Raises:
        ArtifactError: When the file is of another format, cut short, or holds something else.
    """
    try:
        stream = BytesIO(path.read_bytes())
        for _ in range(3):  # a magic number, the version of the format, and what machine wrote it
            _followed(stream)
        noted: dict[str, _Noted] = dict(_followed(stream).arguments)
        types = {}
        for name, tensor in noted.items():
            if tensor.what != _REBUILD:
                raise ValueError(f"{name} is no tensor")
            _, kind, key, *_ = tensor.arguments[0].arguments
            types[key] = _TYPES[kind]
        storages = {key: _storage(stream, types[key]) for key in _followed(stream)}
        return {name: _tensor(tensor, storages) for name, tensor in noted.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, struct.error) as error:
        raise ArtifactError(f"{path} is no state dict in torch's old format ({error}); get it again.") from error


def _followed(stream: BytesIO) -> Any:
    """Follow one pickle; a dictionary is a note with a list of pairs."""
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _MOST:
            raise ValueError("too many entries")
        step = machine.steps.get(opcode.name)
        if step is None:
            raise ValueError(f"a state dict has no {opcode.name}")
        step(argument)
    return machine.stack[-1]


class _Machine:
    """The stack of one pickle, and what each opcode does to it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        plain = ("BINUNICODE", "GLOBAL", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
        self.steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(plain, self.stack.append),
            **dict.fromkeys(("PROTO", "STOP"), lambda _: None),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append(_Noted("dict", [])),
            "MARK": lambda _: self.stack.append(_MARK),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "REDUCE": lambda _: self._call(),
            "BINPERSID": lambda _: self.stack.append(_Noted("storage", self.stack.pop())),
            "SETITEM": lambda _: self._set([self.stack.pop(), self.stack.pop()][::-1]),
            "SETITEMS": lambda _: self._set(self._marked()),
            "APPEND": lambda _: self._append([self.stack.pop()]),
            "APPENDS": lambda _: self._append(self._marked()),
            "BUILD": lambda _: self.stack.pop(),  # attributes of a state dict: versions of the modules
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._keep),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self.stack.append(self._memo[int(place)])),
        }

    def _marked(self) -> list[Any]:
        place = max(index for index, value in enumerate(self.stack) if value is _MARK)
        above = self.stack[place + 1 :]
        del self.stack[place:]
        return above

    def _tuple(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _call(self) -> None:
        given = self.stack.pop()
        self.stack.append(_Noted(self.stack.pop(), list(given)))

    def _set(self, flat: list[Any]) -> None:
        self.stack[-1].arguments += list(zip(flat[::2], flat[1::2], strict=True))

    def _append(self, values: list[Any]) -> None:
        self.stack[-1] += values

    def _keep(self, place: Any) -> None:
        self._memo[int(place)] = self.stack[-1]


def _storage(stream: BytesIO, dtype: torch.dtype) -> Tensor:
    (count,) = struct.unpack("<q", stream.read(8))
    raw = stream.read(count * dtype.itemsize) if count >= 0 else b""
    if len(raw) != count * dtype.itemsize:
        raise ValueError("it is cut short")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _tensor(noted: _Noted, storages: dict[str, Tensor]) -> Tensor:
    reference, offset, shape, stride, *_ = noted.arguments
    storage = storages[reference.arguments[2]]
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if offset < 0 or min((*shape, *stride, 0)) < 0 or last >= storage.numel():
        raise ValueError("a tensor lies outside of its storage")
    return storage.as_strided(shape, stride, offset).clone()
