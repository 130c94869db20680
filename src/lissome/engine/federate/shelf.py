"""Merges answers in the order of the clients' names while they arrive in any order.

An answer whose turn it is goes straight into the merge. One that comes early is put on disk until those before it have
come or are known not to come. So the result does not depend on who was faster, and memory not on how many there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.engine.federate.merge import Merge, Piece


class _Stored(Mapping[str, Tensor]):
    """Tensors in a file, each read when it is asked for."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, "pt") as opened:
            self._names = tuple(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Intake:
    """Feeds one merge.

    Args:
        merge: What the pieces go into.
        clients: Names of those who were asked.
        folder: For pieces that have to wait; emptied now and by `close`.

    Attributes:
        refused: Why the merge did not take a client's answer.
        too_late: Why it did not take one to an earlier order, which breaks no rule.
    """

    def __init__(self, merge: Merge, clients: Iterable[str], folder: Path) -> None:
        self._merge, self._folder = merge, folder
        self._turns = sorted(clients)
        self._waiting: dict[str, Piece] = {}
        self._extra: list[Piece] = []
        self._gone: set[str] = set()
        self.refused: dict[str, str] = {}
        self.too_late: dict[str, str] = {}
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, piece: Piece) -> None:
        """Take the answer of a client that was asked."""
        mine = self._turns and self._turns[0] == piece.client
        self._waiting[piece.client] = piece if mine and not self._merge.keeps else self._stored(piece, piece.client)
        self._advance()

    def add_stale(self, piece: Piece) -> None:
        """Take an answer to the order of an earlier round; it is merged after all others."""
        # No client's name begins with a dot.
        self._extra.append(self._stored(piece, f".stale-{len(self._extra)}"))

    def gone(self, client: str) -> None:
        """Know that nothing will come from a client."""
        self._gone.add(client)
        self._advance()

    def result(self) -> dict[str, Tensor]:
        """Merge what is left and return the result."""
        self._gone |= set(self._turns) - set(self._waiting)
        self._advance()
        for piece in sorted(self._extra, key=lambda one: one.client):
            self._put(piece, self.too_late)
        return self._merge.result()

    def close(self) -> None:
        """Remove what was kept on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _advance(self) -> None:
        while self._turns and (self._turns[0] in self._waiting or self._turns[0] in self._gone):
            piece = self._waiting.pop(self._turns.pop(0), None)
            if piece is not None:
                self._put(piece, self.refused)

    def _put(self, piece: Piece, refused: dict[str, str]) -> None:
        try:
            self._merge.add(piece)
        except FederationError as error:
            refused[piece.client] = str(error)

    def _stored(self, piece: Piece, name: str) -> Piece:
        if not piece.tensors:
            return piece
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in piece.tensors.items()}, file)
        return replace(piece, tensors=_Stored(file))
