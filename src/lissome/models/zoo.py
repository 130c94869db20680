"""Small models that ship with lissome, for trying methods without a network.

They were trained here, by scripts in ``tools/``: language models byte by byte on man pages and addresses to Congress, a
segmenter on digits pasted on photographs, networks of images on CIFAR-10, as they are and as super-networks. They know
little else: they show what a method does to a trained model of a family, not what a good model of that family can do.
The index beside the weights states their checksums, how good they are on held-out examples, and how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissome.core.errors import ArtifactError, UnknownNameError, unknown_name
from lissome.core.files import inside, read_json, sha256_file
from lissome.core.typed import from_json

if TYPE_CHECKING:
    import torch

    from lissome.models.model import Model

ZOO = Path(__file__).parent / "weights"
"""Where the folders of the models lie."""
INDEX = "index.json"
"""File in that folder: a `ZooModel` by name."""
LICENCE = "Apache-2.0 (what it was trained on has free licences of its own)"
"""Licence of all of them."""


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """What is known of one model.

    Attributes:
        summary: One line: architecture and sizes.
        files: sha256 of every file of its folder, hexadecimal.
        bits_per_byte: Of language models, mean loss on held-out documents in bits per byte, in windows of 256 bytes: by
            source, and ``mean`` over the sources.
        quality: Of others, figures on held-out examples by name, such as ``accuracy`` or ``miou``.
        training: How it was made: steps, learning rates tried, seconds, data, versions.
    """

    summary: str
    files: Mapping[str, str]
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.quality and "mean" not in self.bits_per_byte:
            raise ArtifactError("it states neither bits_per_byte nor another quality; install lissome again.")

    @property
    def told(self) -> str:
        """How good it is, in words."""
        if self.bits_per_byte:
            return f"{self.bits_per_byte['mean']:.2f} bits per byte on held-out text"
        return ", ".join(f"{name} {value:.3f}" for name, value in self.quality.items()) + " on held-out examples"


def zoo(root: Path | None = None) -> dict[str, ZooModel]:
    """Return every model by name; none where their weights are not installed.

    Args:
        root: Folder that holds them (default: `ZOO`).

    Raises:
        ArtifactError: When the index is damaged.
    """
    path = (root or ZOO) / INDEX
    if not path.is_file():
        return {}
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path} is not a JSON object; install lissome again.")
    return {name: from_json(ZooModel, entry, f"{INDEX}: {name}") for name, entry in fields.items()}


def folder_of(name: str, root: Path | None = None) -> Path:
    """Return the folder of one of the models, whose files are those that were trained.

    Raises:
        UnknownNameError: When there is none of that name; names the nearest.
        ArtifactError: When a file is missing or another one.
    """
    known = zoo(root)
    if name not in known:
        raise UnknownNameError(unknown_name("zoo model", name, known))
    folder = (root or ZOO) / name
    for file, sha256 in known[name].files.items():
        path = inside(folder, file)
        if not path.is_file() or sha256_file(path) != sha256:
            raise ArtifactError(f"{path} is missing or is not the file that was trained; install lissome again.")
    return folder


def place_of(target: Path | str) -> Path:
    """Return where an artifact lies: a path as it is, or the folder of one that ships, by its name.

    Raises:
        ArtifactError: As `folder_of`.
    """
    path = Path(target)
    return folder_of(target) if isinstance(target, str) and not path.exists() and target in zoo() else path


def called(folder: Path) -> str:
    """Return how a user names a folder: by its path, or by its name where it ships."""
    return folder.name if folder.parent == ZOO and folder.name in zoo() else str(folder)


def load_zoo(name: str, *, dtype: torch.dtype | None, root: Path | None = None) -> Model:
    """Read one of the models.

    Args:
        name: Its name.
        dtype: Type to hold the weights in; None keeps the stored one, float16.
        root: As in `zoo`.

    Raises:
        LissomeError: As `folder_of`.
    """
    from lissome.models.artifact import load_folder

    model = load_folder(folder_of(name, root), name=name, dtype=dtype)
    return replace(model, source=replace(model.source, name=name))
