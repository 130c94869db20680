"""What a client keeps for itself between rounds: on its own disk, whole or absent, undone when a round is repeated.

Every order has a tick that only grows. What a client keeps is stored under the tick of the order after which it holds.
When a server that was killed repeats an order, the client starts again from what it had before that order, so that the
repetition gives the same answer. A lost answer repeats one order, a killed server a whole round: the two newest states
of the newest round are kept, and the one that this round began with.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lissome.core.errors import ArtifactError
from lissome.core.files import atomic_folder, read_json, write_json, write_text
from lissome.engine.federate.orders import PHASES

_TICKED = re.compile(r"\d{8}")
_TENSORS, _FACTS = "tensors.safetensors", "facts.json"


@dataclass(frozen=True)
class Kept:
    """What a client kept.

    Attributes:
        tensors: By name.
        facts: A JSON value.
        damaged: Newer states that could not be read, and were passed over.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[Path, ...] = ()


class ClientStore:
    """The private states of one client in one federation.

    Args:
        folder: A folder of this client and federation alone; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, tick: int) -> Kept:
        """Return what was kept after the last order before `tick`; nothing at first.

        A state that was damaged from outside counts as absent, and the one before it is used; what comes names it.
        """
        damaged: list[Path] = []
        for path in reversed(self._ticked()):
            if int(path.name) < tick:
                try:
                    return Kept(load_file(path / _TENSORS), read_json(path / _FACTS), tuple(damaged))
                except (ArtifactError, OSError, SafetensorError):
                    damaged.append(path)
        return Kept(damaged=tuple(damaged))

    def keep(self, tick: int, kept: Kept) -> None:
        """Store what holds after the order of `tick`; later states, of a server that lost its memory, go.

        Raises:
            OSError: When the disk is full or cannot be written; what was kept before stays.
        """
        with atomic_folder(self.folder / f"{tick:08d}", ours=(_FACTS,)) as part:
            save_file({name: value.contiguous().clone() for name, value in kept.tensors.items()}, part / _TENSORS)
            write_json(part / _FACTS, dict(kept.facts))
        before = [path for path in self._ticked() if int(path.name) <= tick]
        begun = [path for path in before if int(path.name) < tick // PHASES * PHASES]
        for path in set(self._ticked()) - set(begun[-1:]) - set(before[-2:]):
            shutil.rmtree(path, ignore_errors=True)

    def token(self) -> str:
        """Return what identifies this client to the server across restarts; made at random when it is first asked."""
        file = self.folder / "token"
        if not file.is_file():
            write_text(file, secrets.token_hex(16))
            file.chmod(0o600)
        return file.read_text(encoding="utf-8").strip()

    def static(self, tag: str) -> dict[str, Tensor] | None:
        """Return the tensors that were stored under a tag, or None."""
        file = self.folder / "static" / f"{tag}.safetensors"
        try:
            return load_file(file) if file.is_file() else None
        except (OSError, SafetensorError):
            return None

    def keep_static(self, tag: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors that stay as they are for many rounds, in place of those of other tags."""
        folder = self.folder / "static"
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{tag}.part"
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, part)
        part.replace(folder / f"{tag}.safetensors")
        for path in folder.iterdir():
            if path.name != f"{tag}.safetensors":
                path.unlink(missing_ok=True)

    def _ticked(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _TICKED.fullmatch(path.name))
