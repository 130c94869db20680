"""The files that the arms run, made once: nested weights, and GGUF in the types that users of llama.cpp choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.decode.names import SOURCE
from lissome.cost.llama_cpp import quantise
from lissome.data.assets import fetch
from lissome.export.gguf import export
from lissome.models.model import Model
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.pipeline import load


@dataclass(eq=False)
class Files:
    """Files of one model.

    Attributes:
        name: The model.
        folder: Where they are made; what is there already is taken.
    """

    name: str
    folder: Path

    @cached_property
    def model(self) -> Model:
        """The original in float32, never changed."""
        return load(self.name)

    @cached_property
    def cell(self) -> int:
        """Bytes of a position in a cache of halves."""
        parts = (layer.attention for layer in open_nested(self.nested).spec.layers)
        return sum(2 * 2 * part.kv_heads * part.size for part in parts if part is not None)

    @property
    def nested(self) -> Path:
        """Nested weights of the default layout, read at 3 and 4 bits."""
        path = self.folder / "nested.safetensors"
        return path if path.exists() else make(self.model, path)

    def gguf(self, kind: str) -> Path:
        """A GGUF file: the one that the model comes as, or one that llama.cpp makes of its weights."""
        if kind == SOURCE[self.name]:
            return Path(fetch(self.name))
        path, whole = self.folder / f"{kind}.gguf", self.folder / "F32.gguf"
        if not path.exists():
            if not whole.exists():
                export(self.model, whole, type="F32")
            quantise(whole, path, kind)
        return path
