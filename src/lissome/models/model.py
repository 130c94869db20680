"""A model at hand: the torch module, its tokenizer, where it came from, and its anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lissome.models.anatomy import Anatomy, anatomy_of
from lissome.models.binding import Binding
from lissome.models.space import Space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lissome.core.manifest import Manifest


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        name: What the user called it.
        path: The file or folder it was read from, when there is one.
        sha256: Hash of the weights' file, or of several together; None of a module that was given.
        weights: The safetensors files that hold the weights as they were read.
    """

    name: str
    path: Path | None = None
    sha256: str | None = None
    weights: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Model:
    """A torch module with what lissome knows about it.

    Attributes:
        module: The torch module, of a transformers class that one of `lissome.models.families` reads.
        tokenizer: Its tokenizer, or None for a bare module.
        source: Where it came from.
        manifest: The manifest of the artifact it was read from, when it was one.
        preparing: What files beside it say of how images or sounds become numbers, by file; see
            `lissome.models.preparing`.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None = None
    source: Source = field(default_factory=lambda: Source("module"))
    manifest: Manifest | None = None
    preparing: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def anatomy(self) -> Anatomy:
        """What is in it.

        Raises:
            UnsupportedModelError: When its parts are not understood.
        """
        return anatomy_of(self.module)

    @cached_property
    def binding(self) -> Binding:
        """Its Space's axes as operations on tensors."""
        return Binding(self.anatomy)

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.source.name

    def space(self, **steps: int) -> Space:
        """Return the Space of everything that can be removed or made smaller.

        Args:
            steps: Step by dim name, e.g. ``width=64`` (default: what the family suggests).
        """
        return self.anatomy.space(steps=steps)

    def derived(self, module: nn.Module) -> Model:
        """Return a model of the same origin around another module, whose weights lie in no file yet."""
        return replace(self, module=module, source=replace(self.source, weights=()))

    def reread(self) -> None:
        """Forget what was read of the module, because it has other parameters now."""
        for name in ("anatomy", "binding"):
            vars(self).pop(name, None)

    def save(self, folder: Path | str, *, manifest: Manifest | None = None) -> Path:
        """Write the model as an artifact folder; see `lissome.models.artifact.save_model`."""
        from lissome.models.artifact import save_model

        return save_model(self, Path(folder), manifest=manifest)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {type(self.module).__name__})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        raise TypeError("copy the module of a Model, not the Model; see lissome.extract.")
