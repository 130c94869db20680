"""What an export says of itself: where the file is, how it came to its size, and what was not exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Zeros that were added because the format cannot say the true size; they do not change what the model computes.

    Attributes:
        part: Which branch of which written block, e.g. ``"block 3 mlp"``.
        change: From what to what, e.g. ``"width 1408 -> 1536"``.
        bytes: Size of the added numbers in the written file.
    """

    part: str
    change: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written.

    Attributes:
        format: Name of the format, e.g. ``"gguf"``.
        path: The file or folder.
        bytes: Size of all that was written.
        architecture: What the format calls the model's kind, e.g. ``"llama"``.
        types: Bytes of tensor data by number type.
        blocks: Number of written blocks.
        padded: Everything that was padded; empty when nothing was.
        notes: Lines for a person: what fell back to another type, what differs from the original and when.
    """

    format: str
    path: Path
    bytes: int
    architecture: str
    types: Mapping[str, int]
    blocks: int
    padded: tuple[Padding, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def padded_bytes(self) -> int:
        """Bytes of the file that are padding."""
        return sum(padding.bytes for padding in self.padded)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able fields."""
        return {
            "format": self.format,
            "path": str(self.path),
            "bytes": self.bytes,
            "architecture": self.architecture,
            "types": dict(self.types),
            "blocks": self.blocks,
            "padded_bytes": self.padded_bytes,
            "padded": [{"part": one.part, "change": one.change, "bytes": one.bytes} for one in self.padded],
            "notes": list(self.notes),
        }
