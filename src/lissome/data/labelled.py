"""Labelled texts from JSON lines, {"text": …, "label": …}, dealt into parts that share no text."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lissome.core.errors import DataError, unknown_name

_RECORD = '{"text": "…", "label": "…"}'


@dataclass(frozen=True)
class Labelled:
    """Texts with their classes.

    Attributes:
        name: What the user called them.
        texts: Each once, never empty.
        labels: Class of each text, an index into `classes`.
        classes: Names of the classes, sorted.
        owners: Who each text belongs to, where the rows say it (``"client"``); otherwise empty.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    owners: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Hash of all texts and labels in order, hexadecimal."""
        body = json.dumps([self.texts, self.labels, self.classes])
        return hashlib.sha256(body.encode()).hexdigest()

    def parts(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, Labelled]:
        """Deal the texts out, each class by itself, so that every part has nearly the same mixture.

        Args:
            shares: Share of each part by name; they sum to at most 1. What is left over is dropped.
            seed: Of the dealing.

        Raises:
            DataError: When the shares are no shares, or a part gets no text.
        """
        if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
            raise DataError(f"shares must be positive and sum to at most 1, got {dict(shares)}.")
        chosen: dict[str, list[int]] = {name: [] for name in shares}
        rng = Random(seed)
        for label in range(len(self.classes)):
            members = [index for index, one in enumerate(self.labels) if one == label]
            rng.shuffle(members)
            start = 0.0
            for name, share in shares.items():
                places = (round(edge * len(members)) for edge in (start, start + share))
                chosen[name] += members[slice(*places)]
                start += share
        for name, members in chosen.items():
            if not members:
                raise DataError(f"{self.name} has {len(self)} texts, too few for the part {name!r}; give more of them.")
        return {name: self.some(sorted(members)) for name, members in chosen.items()}

    def some(self, indices: Sequence[int]) -> Labelled:
        """Return the texts at some positions, of the same classes."""
        texts, labels = tuple(self.texts[i] for i in indices), tuple(self.labels[i] for i in indices)
        owners = tuple(self.owners[i] for i in indices) if self.owners else ()
        return Labelled(self.name, texts, labels, self.classes, owners)


def read_labelled(path: Path | str, *, classes: tuple[str, ...] | None = None) -> Labelled:
    """Read labelled texts; of repeated ones the first counts.

    Args:
        path: JSON lines, perhaps compressed (``.gz``): objects with ``text`` and ``label`` (text or a whole number),
            and perhaps ``client``, to whom the text belongs.
        classes: Names of all classes, when the file is a part that may lack some (default: those that occur).

    Raises:
        DataError: When the file cannot be read, a line is no such object (names the line), or there is one class only.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as labelled text ({error}); give JSON lines, {_RECORD}.") from error
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            text, label, owner = _record(f"{file}:{number}", line)
            found.setdefault(text, (label, owner))
    seen = tuple(sorted({label for label, _ in found.values()}))
    known = seen if classes is None else classes
    if len(known) < 2:
        raise DataError(f"{file} has {len(found)} texts of {len(known)} class; at least two classes are needed.")
    for label in seen:
        if label not in known:
            raise DataError(f"{file}: {unknown_name('class', label, known)}")
    place = {name: index for index, name in enumerate(known)}
    labels, owners = (
        tuple(place[label] for label, _ in found.values()), tuple(owner for _, owner in found.values())
    )  # fmt: skip
    return Labelled(str(path), tuple(found), labels, known, owners if any(owners) else ())


def _record(where: str, line: str) -> tuple[str, str, str]:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({str(error).splitlines()[0]}); each line must be {_RECORD}.") from error
    match fields:
        case {"text": str(text), "label": str() | int() as label} if text.strip() and not isinstance(label, bool):
            owner = fields.get("client", "")
            return text, str(label), str(owner) if isinstance(owner, str | int) else ""
    raise DataError(f"{where}: no usable text and label; each line must be {_RECORD}.")
