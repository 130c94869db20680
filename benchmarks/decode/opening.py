"""Which arm has which engine."""

from __future__ import annotations

import torch

from benchmarks.decode import openvino
from benchmarks.decode.arms import Arm, Cpp, Own, Torch
from benchmarks.decode.files import Files
from benchmarks.decode.names import BITS, LLAMA, OPENVINO, TORCH, llama, nested
from lissome.engine.decode import Decoder
from lissome.models.precision import in_dtype


def open_arm(files: Files, arm: str, *, room: int, threads: int) -> Arm:
    """Open an arm by its name, for texts of so many tokens."""
    if arm in TORCH:
        return Torch(in_dtype(files.model, getattr(torch, TORCH[arm])).module, files.cell)
    if arm in OPENVINO:
        return openvino.OpenVino(files, OPENVINO[arm], threads=threads)
    for bits in BITS:
        if arm == nested(bits):
            return Own(Decoder.open(files.nested, cells=room, threads=threads), bits)
    kind = next(kind for kind in LLAMA if arm == llama(kind))
    return Cpp(files.gguf(kind), files.cell, context=room, threads=threads)
