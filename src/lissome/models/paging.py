"""Weights that lie in a file and are read from there when they are used, so that memory holds what works now."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lissome.core.files import atomic_file
from lissome.models.model import Model

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike DONTNEED it never loses what was written


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a module's state, one name for each that is shared, contiguous."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    found = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in seen or not tensor.numel():
            seen.add(key)
            found[name] = tensor.contiguous()
    return found


def spill(model: Model, file: Path) -> Model:
    """Move a model's weights to a file and map them from there: memory then holds no more than what is being used.

    Args:
        model: The model; its module keeps its place.
        file: A safetensors file to write.

    Returns:
        The same module, as a model that `park` knows how to give back; on a GPU the model as it is.

    Raises:
        OSError: When the disk is full or the place cannot be written; the model is as it was.
    """
    from safetensors.torch import save_file

    if next(model.module.parameters()).device.type != "cpu":
        return model
    with atomic_file(file) as part:
        save_file(stored_tensors(model.module), part)
    spilled = replace(model, source=replace(model.source, weights=(file,)))
    park(spilled)
    return spilled


@torch.no_grad()
def park(model: Model) -> None:
    """Give the memory of a model's weights back: they are mapped from its files again and read when they are used.

    Changes of the weights since they were read are lost; a model that does not know its files, holds them in another
    number type or on another device is left alone.
    """
    stored: dict[str, Tensor] = {}
    for file in model.source.weights:
        stored |= _mapped(file)
    for name, parameter in model.module.named_parameters():
        tensor = stored.get(name)
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) == (
            parameter.shape,
            parameter.dtype,
            parameter.device,
        ):
            parameter.data = tensor


def _mapped(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file as views of a private mapping; nothing is read before it is used."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        start = stream.tell()
    flat = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in _DTYPES:
            begin, end = (start + offset for offset in entry["data_offsets"])
            found[name] = flat[begin:end].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return found


def page_out(tensors: Iterable[Tensor]) -> None:
    """Ask the system to drop what memory holds of tensors that are mapped from files; others stay as they are.

    They keep their values and are read again when they are used. Does nothing where the system has no such call.
    """
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.numel():
                start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
                size = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
                advise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), _PAGEOUT)
