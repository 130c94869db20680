"""Labelled texts from JSON lines, {"text": …, "label": …}, or CSV, dealt into parts that share no text."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lissome.core.errors import DataError, unknown_name
from lissome.data.sources import halved, refuse_whole_json

_RECORD = '{"text": "…", "label": "…"}'
_FORMS = f"give JSON lines, {_RECORD}, or a .csv or .tsv file with the columns text and label"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


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
        chosen = dealt(self.labels, shares, seed=seed)
        require_dealt(f"{self.name} has {len(self)} texts", chosen, shares)
        return {name: self.some(members) for name, members in chosen.items()}

    def some(self, indices: Sequence[int]) -> Labelled:
        """Return the texts at some positions, of the same classes."""
        texts, labels = tuple(self.texts[i] for i in indices), tuple(self.labels[i] for i in indices)
        owners = tuple(self.owners[i] for i in indices) if self.owners else ()
        return Labelled(self.name, texts, labels, self.classes, owners)


def dealt(labels: Sequence[int], shares: Mapping[str, float], *, seed: int = 0) -> dict[str, list[int]]:
    """Deal positions out to parts, each class by itself, so that every part has nearly the same mixture.

    Args:
        labels: Class of every position.
        shares: As of `Labelled.parts`.
        seed: Of the dealing.

    Returns:
        The positions of each part, ascending; perhaps none.

    Raises:
        DataError: When the shares are no shares.
    """
    if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise DataError(f"shares must be positive and sum to at most 1, got {dict(shares)}.")
    classes: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        classes.setdefault(label, []).append(place)
    chosen: dict[str, list[int]] = {name: [] for name in shares}
    rng = Random(seed)
    for _, members in sorted(classes.items()):
        rng.shuffle(members)
        start = 0.0
        for name, share in shares.items():
            chosen[name] += members[round(start * len(members)) : round((start + share) * len(members))]
            start += share
    return {name: sorted(members) for name, members in chosen.items()}


def require_dealt(what: str, chosen: Mapping[str, Sequence[int]], shares: Mapping[str, float]) -> None:
    """Refuse a source of which some part got nothing.

    Args:
        what: The source, and how much it has.
        chosen: Positions of each part, as `dealt` returns them.
        shares: Of each part.

    Raises:
        DataError: Says how many examples a class must have.
    """
    for name, found in chosen.items():
        if not found:
            least = math.ceil(1 / shares[name])  # that many times the share is one of each class
            raise DataError(f"{what}, too few for the part {name!r}; give at least {least} of a class.")


def read_labelled(path: Path | str, *, classes: Sequence[str] = ()) -> Labelled:
    """Read labelled texts; of repeated ones the first counts.

    Args:
        path: JSON lines, objects with ``text`` and ``label`` (text or a whole number); or ``.csv`` or ``.tsv``, with a
            first line that names the columns, ``text`` and ``label`` among them. Either perhaps compressed (``.gz``),
            and perhaps with ``client``, to whom a text belongs.
        classes: The classes that are known, in their order; then one of them alone may be there. Without any, they are
            what the file says, sorted, and at least two.

    Raises:
        DataError: When the file cannot be read or holds no texts, a line has no text or no label (names the line), a
            label is not a known one, or there is one class only.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
        body = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as labelled text ({error}); {_FORMS}.") from error
    separator = _SEPARATORS.get(Path(file.name.removesuffix(".gz")).suffix.lower())
    found: dict[str, tuple[str, str]] = {}
    for where, text, label, owner in _rows(file, body, separator) if separator else _objects(file, body):
        if classes and label not in classes:
            raise DataError(f"{where}: {unknown_name('label', label, classes)}")
        found.setdefault(text, (label, owner))
    known = tuple(classes) or tuple(sorted({label for label, _ in found.values()}))
    if not found or len(known) < 2:
        raise DataError(f"{file} has {len(found)} texts of {len(known)} class; at least two classes are needed.")
    place = {name: index for index, name in enumerate(known)}
    labels, owners = tuple(place[label] for label, _ in found.values()), tuple(owner for _, owner in found.values())
    return Labelled(str(path), tuple(found), labels, known, owners if any(owners) else ())


_Row = tuple[str, str, str, str]
"""Where a row stands, its text, its label, and to whom it belongs."""


def _objects(file: Path, body: str) -> Iterator[_Row]:
    refuse_whole_json(body, str(file), _RECORD)
    for number, line in enumerate(body.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            fields: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({str(error).splitlines()[0]}); {_FORMS}.") from error
        given = fields if isinstance(fields, dict) else {}
        yield _usable(where, given.get("text"), given.get("label"), given.get("client"))


def _rows(file: Path, body: str, separator: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if not {"text", "label"} <= set(names):
            raise DataError(f"{file}:1: no columns text and label, but {', '.join(map(ascii, names))[:80]}; {_FORMS}.")
        for row in reader:
            fields = dict(zip(names, row, strict=False))
            if any(map(str.strip, row)):
                label, owner = fields.get("label", "").strip(), fields.get("client", "").strip()
                yield _usable(f"{file}:{reader.line_num}", fields.get("text"), label, owner)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not CSV ({error}); {_FORMS}.") from error


def _usable(where: str, text: Any, label: Any, owner: Any) -> _Row:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no usable text; {_FORMS}.")
    if halved(text) or halved(str(label)):
        raise DataError(f"{where}: the text or its label holds half a character (a lone surrogate); repair the row.")
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise DataError(f"{where}: no usable label; {_FORMS}.")
    return where, text, str(label), str(owner) if isinstance(owner, str | int) else ""
