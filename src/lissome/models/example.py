"""An input of every kind of model, made up: for timing one forward and for what else needs nothing but its shape."""

# B examples, T tokens

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lissome.models.model import Model


def example(model: Model, *, tokens: int = 128, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Draw what a model reads, by argument name, on the device of its weights.

    Args:
        model: The model.
        tokens: Length T of its text, or of what its decoder reads; at most what it has positions for. Images and
            sounds have the one size that the model is made for.
        batch: Number of examples B.
        seed: Of the draw.
    """
    config: Any = getattr(model.module, "config", None)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.module.parameters()).device
    floating = (value.dtype for value in model.module.parameters() if value.is_floating_point())  # not a complex one
    dtype = next(floating, torch.float32)

    def words(most: int) -> Tensor:
        shape = (batch, min(tokens, most))
        return torch.randint(model.anatomy.vocabulary, shape, generator=generator).to(device)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device, dtype)

    if model.anatomy.inputs:
        return {name: numbers(*shape) for name, shape in model.anatomy.inputs.items()}
    if model.anatomy.task == "image":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": numbers(config.num_channels, height, width)}
    if model.anatomy.task == "seq2seq":
        sound = numbers(config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": sound, "decoder_input_ids": words(config.max_target_positions)}
    return {"input_ids": words(getattr(config, "max_position_embeddings", tokens))}


def described(inputs: dict[str, Tensor]) -> str:
    """Word the size of what `example` drew."""
    parts = []
    for name, value in inputs.items():
        sizes = value.shape
        parts.append(
            f"an image of {sizes[2]}×{sizes[3]} pixels" if len(sizes) == 4
            else f"{sizes[2]} frames of sound" if name == "input_features"
            else f"{sizes[1]} tokens" if name == "input_ids"
            else f"{sizes[1]} numbers" if value.is_floating_point()
            else f"{sizes[1]} tokens of the decoder"
        )  # fmt: skip
    return f"{' and '.join(parts)}, batch {len(next(iter(inputs.values())))}"
