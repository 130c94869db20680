"""GGUF files in: `convert` makes a Hugging Face folder of one, once, and keeps it in the cache.

The weights are those of ``gguf.dequantize``, bit for bit (Gemma's norms less the 1 that the file adds to them), stored
in float32 unless a 16-bit type holds every number exactly; nothing is rounded. No model is run, no network is used.
"""

from __future__ import annotations

from pathlib import Path

from lissome.core.events import EventStream
from lissome.core.optional import optional_import

__all__ = ["convert"]


def convert(gguf: Path, *, events: EventStream | None = None) -> Path:
    """Convert a GGUF file to a Hugging Face folder, or return the one made before.

    Args:
        gguf: A GGUF file of version 2 or 3; any type that the `gguf` package can dequantise.
        events: Where progress goes: a stage ``convert NAME`` counted in bytes.

    Returns:
        ``cache_dir()/converted/<sha256 prefix>``: configuration, tokenizer with chat template, ``model.safetensors``,
        and ``source.json``, which names the file, its sha256 and the stored type.

    Raises:
        ArtifactError: When the file is damaged, contradicts itself, or the result does not fit on the disk.
        UnsupportedModelError: For an architecture, tokenizer or number type that cannot be converted.
        MissingExtraError: When the `gguf` package is not installed.
    """
    optional_import("gguf", extra="gguf")
    from lissome.models.gguf.folder import convert_once

    return convert_once(gguf, events or EventStream())
