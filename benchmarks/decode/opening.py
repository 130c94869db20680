"""Which arm has which engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.decode import openvino
from benchmarks.decode.arms import Arm, Cpp, Own, Torch
from benchmarks.decode.files import Files
from benchmarks.decode.names import BITS, LLAMA, OPENVINO, TORCH, llama, nested
from lissome.engine.decode import Decoder
from lissome.models.precision import in_dtype


def open_arm(files: Files, arm: str, *, room: int, threads: int) -> Arm:
    """Open an arm by its name, for texts of so many tokens."""
    return open_arms(files, [arm], room=room, threads=threads)[arm]


def open_arms(files: Files, arms: Sequence[str], *, room: int, threads: int) -> dict[str, Arm]:
    """Open arms by their names; those of the engine share its file."""
    own = {nested(bits): bits for bits in BITS}
    decoder = Decoder.open(files.nested, cells=room, threads=threads) if own.keys() & set(arms) else None
    return {
        arm: Own(decoder, own[arm]) if decoder and arm in own else _other(files, arm, room=room, threads=threads)
        for arm in arms
    }


def _other(files: Files, arm: str, *, room: int, threads: int) -> Arm:
    if arm in TORCH:
        return Torch(in_dtype(files.model, getattr(torch, TORCH[arm])).module, files.cell)
    if arm in OPENVINO:
        return openvino.OpenVino(files, OPENVINO[arm], threads=threads)
    kind = next(kind for kind in LLAMA if arm == llama(kind))
    return Cpp(files.gguf(kind), files.cell, context=room, threads=threads)
