"""A folder of nested weights: the file, the tokenizer, how to generate, and a manifest. Reading it needs no torch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lissome.core.manifest import MANIFEST, Manifest, read_manifest, verify_files
from lissome.models.nested.file import NAME, NestedFile, open_nested
from lissome.models.nested.text import TextCodec

_OF_TORCH = ("model.safetensors",)  # may lie beside nested weights, and are not read here


def nested_folder(target: Any) -> Path | None:
    """Return the folder of nested weights that `target` names, by itself or by its file; None when it names none.

    Nothing is read.
    """
    if not isinstance(target, str | Path) or not str(target):
        return None
    path = Path(target)
    with contextlib.suppress(OSError, ValueError):  # no path at all: too long, a NUL
        if (path / NAME).is_file():
            return path
        if path.name == NAME and path.is_file():
            return path.parent
    return None


@dataclass(frozen=True, eq=False)
class NestedFolder:
    """A model for the decoder engine.

    Attributes:
        path: The folder.
        name: What the user called it.
        file: Its weights.
        manifest: What it says of itself; None when it was written without.
    """

    path: Path
    name: str
    file: NestedFile
    manifest: Manifest | None

    @classmethod
    def open(cls, target: Path | str) -> NestedFolder:
        """Open a folder; every file that its manifest lists, but the weights for torch, is compared with its hash.

        Raises:
            ArtifactError: When a file is missing, damaged or changed.
        """
        path = nested_folder(target) or Path(target)
        manifest = read_manifest(path) if (path / MANIFEST).exists() else None
        if manifest is not None:
            listed = {name: record for name, record in manifest.files.items() if name not in _OF_TORCH}
            verify_files(path, replace(manifest, files=listed), read=[NAME])
        return cls(path, str(target), open_nested(path), manifest)

    @cached_property
    def text(self) -> TextCodec:
        """Its tokenizer.

        Raises:
            DataError: When it has none.
            ArtifactError: When a file of it is damaged.
        """
        return TextCodec.of_folder(self.path)

    @property
    def sha256(self) -> str | None:
        """Hash of the weights, as the manifest has it."""
        return None if self.manifest is None else self.manifest.files[NAME].sha256

    @property
    def bytes(self) -> int:
        """Size of the weights' file."""
        return self.file.path.stat().st_size
