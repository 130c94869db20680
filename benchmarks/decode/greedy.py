"""Whether the engine writes what transformers writes, on the very numbers that the nested weights stand for."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.decode.arms import Own, Torch, likeliest
from benchmarks.decode.files import Files
from lissome.engine.decode import Decoder
from lissome.models.nested.file import open_nested
from lissome.pipeline import load
from lissome.testing.conformance import dequantised

TOKENS, PROMPT = 32, 16


def compared(files: Files, windows: torch.Tensor, bits: int) -> dict[str, Any]:
    """Let both continue the first 16 tokens of every window by 32, the likeliest each time.

    Returns:
        ``equal`` texts of ``prompts``, and for each of the others the ``margins`` between the two likeliest logits of
        transformers where they part.
    """
    model = dequantised(load(files.name), open_nested(files.nested), bits)
    own = Own(Decoder.open(files.nested, activations="f32", kv="f32", cells=PROMPT + TOKENS), bits)
    theirs = Torch(model.module, files.cell)
    margins = []
    for window in windows:
        prompt = window[:PROMPT].tolist()
        text, (wanted, heights) = _written(own, prompt)[0], _written(theirs, prompt)
        at = next((at for at in range(TOKENS) if text[at] != wanted[at]), None)
        if at is not None:
            margins.append(heights[at])
    return {"prompts": len(windows), "equal": len(windows) - len(margins), "margins": margins}


def _written(arm: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The likeliest tokens, and by how much each was likelier than the next."""
    arm.reset()
    logits, tokens, heights = arm.feed(prompt, 0)[0], [], []
    for at in range(len(prompt), len(prompt) + TOKENS):
        token, height = likeliest(logits)
        tokens.append(token)
        heights.append(height)
        if len(tokens) < TOKENS:
            logits = arm.feed([token], at)[0]
    return tokens, heights
