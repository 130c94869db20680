"""Writes what each client of a federation got into a folder of its own, and reads it again after checking it.

Labelled texts and documents are JSON lines, images a NumPy archive. ``part.json`` beside them says whose they are, what
they must be, and of which partition, so that they can be carried to another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lissome.core.errors import DataError
from lissome.core.files import atomic_folder, read_json, sha256_file, write_json
from lissome.data.images import Images, read_images, write_images
from lissome.data.labelled import Labelled, read_labelled
from lissome.data.partition import Partition
from lissome.data.sources import Corpus, read_corpus

Rows = Labelled | Images | Corpus
"""What clients may have: labelled texts or images, or documents."""

PART = "part.json"
"""File that says what the rows of one client must be."""
ROWS, PICTURES, DOCUMENTS = "data.jsonl", "data.npz", "documents.jsonl"
"""Files of the rows beside it, one of them: labelled texts, labelled images, or documents."""


def write_parts(data: Rows, dealt: Partition, folder: Path) -> dict[str, Path]:
    """Write the rows of each client into a folder of its own, for clients on other machines.

    Args:
        data: What was dealt out.
        dealt: Who has what.
        folder: Where a folder per client is made.

    Returns:
        The folders by name of the client.

    Raises:
        DataError: When a picture cannot be read.
        ArtifactError: When a folder of such a name holds something else.
    """
    made = {}
    for name, places in dealt.parts.items():
        made[name] = folder / name
        with atomic_folder(made[name], ours=(PART,)) as part:
            file = _write_rows(data.some(places), part)
            facts = {
                "client": name, "rows": file.name, "sha256": sha256_file(file), "partition": dealt.fingerprint,
                "classes": _classes(data),
            }  # fmt: skip
            write_json(part / PART, facts)
    return made


def is_part(folder: Path) -> bool:
    """Whether a folder is one that `write_parts` made, and says what its rows are."""
    return (folder / PART).is_file()


def read_part(folder: Path) -> tuple[Rows, dict[str, Any]]:
    """Read the rows of one client and what they are, after checking them.

    Returns:
        The rows; and what ``part.json`` says, among it ``client``, ``sha256``, ``partition`` and ``classes``.

    Raises:
        DataError: When the rows are not those that were dealt out.
    """
    facts = read_json(folder / PART)
    name, classes, owner = map(facts.get, ("rows", "classes", "client")) if isinstance(facts, dict) else (None,) * 3
    if name not in (ROWS, PICTURES, DOCUMENTS) or not isinstance(classes, list) or not owner:
        raise DataError(f"{folder / PART} does not say what the rows are, and whose; write the parts again.")
    if not (folder / name).is_file():
        raise DataError(f"{folder / name} is not there, though {PART} speaks of it; copy the whole folder again.")
    found = sha256_file(folder / name)
    if found != facts.get("sha256"):
        raise DataError(
            f"{folder / name} has sha256 {found[:12]}…, the partition says {str(facts.get('sha256', '?'))[:12]}…; "
            "copy the whole folder again."
        )
    return _read_rows(folder / name, tuple(map(str, classes))), facts


def check_part(folder: Path, facts: Mapping[str, Any], *, classes: Sequence[str], partition: str) -> None:
    """Refuse a part that belongs to another federation.

    Args:
        folder: How to call it in an error.
        facts: What `read_part` gave.
        classes: Names of the classes that are learned; none for text.
        partition: Fingerprint of the partition that was dealt out; empty: clients bring what they have.

    Raises:
        DataError: Says what differs.
    """
    own = tuple(map(str, facts["classes"]))
    if own != tuple(classes):
        raise DataError(f"{folder} has rows of {_named(own)}, the federation learns {_named(classes)}; give its part.")
    if partition and facts.get("partition") != partition:
        raise DataError(
            f"{folder} is of the partition {str(facts.get('partition', '?'))[:12]}…, the federation dealt out "
            f"{partition[:12]}…; get this client's part of it."
        )


def _classes(data: Rows) -> list[str]:
    return [] if isinstance(data, Corpus) else list(data.classes)


def _named(classes: Sequence[str]) -> str:
    if not classes:
        return "text without classes"
    return f"{len(classes)} classes ({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''})"


def _write_rows(rows: Rows, folder: Path) -> Path:
    if isinstance(rows, Images):
        return write_images(rows, folder / PICTURES)
    if isinstance(rows, Corpus):
        return _write_lines(folder / DOCUMENTS, ({"text": one.text} for one in rows.documents))
    named = zip(rows.texts, rows.labels, strict=True)
    return _write_lines(folder / ROWS, ({"text": text, "label": rows.classes[label]} for text, label in named))


def _write_lines(file: Path, records: Iterable[Mapping[str, str]]) -> Path:
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(record) + "\n" for record in records)
    return file


def _read_rows(file: Path, classes: tuple[str, ...]) -> Rows:
    if file.name == PICTURES:
        return read_images(file, classes=classes)
    return read_corpus(file) if file.name == DOCUMENTS else read_labelled(file, classes=classes)
