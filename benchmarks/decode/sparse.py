"""A model with half of its block weights pruned by Wanda: dense and sparse, inside transformers and in the engine."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.decode.arms import Arm, Own, Torch
from benchmarks.decode.files import Files
from lissome.engine.decode import Decoder, DecoderSettings
from lissome.engine.decode.packed import PackedModel
from lissome.engine.sparsify import Pruning, sparsify
from lissome.models.packed import pack_linears
from lissome.models.precision import fast_dtype
from lissome.pipeline import load

SHARE = 0.5
_ENGINE: dict[str, dict[str, Any]] = {
    "wanda: engine dense bf16": {"weights": "bf16", "dense": True},
    "wanda: engine sparse bf16": {"weights": "bf16"},
    "wanda: engine sparse int8": {"weights": "int8"},
}


def arms(files: Files, calibration: Tensor, *, room: int, threads: int) -> dict[str, Arm]:
    """Return every arm by name, for texts of `room` tokens.

    Inside transformers, activations are in the type that this machine multiplies fastest.
    """
    model = load(files.name)
    sparsify(model, [{"input_ids": row[None]} for row in calibration], Pruning(amount=SHARE))
    module: nn.Module = model.module
    found: dict[str, Arm] = {"wanda: torch fp32": Torch(module, files.cell)}
    found["wanda: torch bf16"] = Torch(deepcopy(module).to(torch.bfloat16), files.cell)
    inside = deepcopy(module).to(fast_dtype())
    done = pack_linears(inside)
    found["wanda: transformers, sparse bf16"] = Torch(inside, files.cell, sum(one.after for one in done))
    for name, options in _ENGINE.items():
        decoder = Decoder(PackedModel.of(model, **options), DecoderSettings(cells=room, threads=threads))
        found[name] = Own(decoder, decoder.precisions[-1])
    return found
