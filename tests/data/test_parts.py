"""Rows of one client in a folder of their own: the same after reading, whatever they are, or refused in one line."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import ArtifactError, DataError
from lissome.core.files import read_json, sha256_file, write_json
from lissome.data.images import Images
from lissome.data.labelled import Labelled
from lissome.data.partition import Partition
from lissome.data.parts import DOCUMENTS, PART, PICTURES, ROWS, Rows, check_part, is_part, read_part, write_parts
from lissome.data.sources import Corpus, Document

DEALT = Partition(data="d", settings={}, parts={"one": (0, 3, 4), "two": (1, 2, 5)})


def pictures(channels: int, *, even: bool) -> Images:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 256, (6, 5 if even else 5 + at, channels), dtype=np.uint8) for at in range(6)]
    labels, owners = (1, 1, 2, 1, 1, 0), tuple("abcabc")
    return Images("toy", tuple(partial(np.array, one) for one in drawn), labels, ("x", "y", "z"), {}, "0" * 64, owners)


def texts() -> Labelled:
    return Labelled("toy", tuple(f"text {at}\n\u2028é" for at in range(6)), (1, 1, 2, 1, 1, 0), ("x", "y", "z"))


def documents() -> Corpus:
    return Corpus("toy", tuple(Document(f"one {at}\r\n\n\0two", f"toy:{at}") for at in range(6)))


def content(rows: Rows) -> object:
    if isinstance(rows, Images):
        return [(one().shape, one().tobytes()) for one in rows.pictures], rows.labels, rows.classes
    return [one.text for one in rows.documents] if isinstance(rows, Corpus) else (rows.texts, rows.labels, rows.classes)


@pytest.mark.parametrize(
    ("rows", "file"),
    [
        (texts(), ROWS),
        (documents(), DOCUMENTS),
        (pictures(3, even=True), PICTURES),
        (pictures(1, even=True), PICTURES),
        (pictures(4, even=True), PICTURES),
        (pictures(3, even=False), PICTURES),
        (pictures(1, even=False), PICTURES),
    ],
)  # fmt: skip
def test_a_client_checks_the_rows_that_it_was_given(rows: Rows, file: str, tmp_path: Path) -> None:
    folders = write_parts(rows, DEALT, tmp_path / "first")
    assert list(folders) == ["one", "two"]
    again = write_parts(rows, DEALT, tmp_path / "second")
    for name, folder in folders.items():
        part, facts = read_part(folder)
        assert content(part) == content(rows.some(DEALT.parts[name])), "classes are numbered alike everywhere"
        assert facts["partition"] == DEALT.fingerprint
        assert facts["client"] == name
        assert sha256_file(again[name] / file) == facts["sha256"], "the same rows are the same bytes"
    data = bytearray((folders["two"] / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folders["two"] / file).write_bytes(data)
    with pytest.raises(DataError, match=r"sha256 \w+…, the partition says \w+…; copy the whole folder again\.$"):
        read_part(folders["two"])
    (folders["two"] / file).unlink()
    with pytest.raises(DataError, match=r"is not there, though part\.json speaks of it"):
        read_part(folders["two"])


@pytest.mark.parametrize(
    "change", [{"rows": "../data.jsonl"}, {"rows": None}, {"rows": ["a"]}, {"classes": "xyz"}, {"client": None}]
)
def test_facts_that_say_nothing_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    folder = write_parts(texts(), DEALT, tmp_path)["one"]
    write_json(folder / PART, {**read_json(folder / PART), **change})
    with pytest.raises(DataError, match="does not say what the rows are, and whose; write the parts again"):
        read_part(folder)
    (folder / PART).write_text("{}")
    with pytest.raises(DataError, match="does not say"):
        read_part(folder)


def test_parts_of_other_federations_are_refused(tmp_path: Path) -> None:
    folder = write_parts(texts(), DEALT, tmp_path)["one"]
    _, facts = read_part(folder)
    check_part(folder, facts, classes=("x", "y", "z"), partition=DEALT.fingerprint)
    check_part(folder, facts, classes=("x", "y", "z"), partition="")
    other = replace(DEALT, settings={"seed": 1}).fingerprint
    for classes, partition, words in (
        (("x", "z", "y"), "", r"rows of 3 classes \(x, y, z\), the federation learns 3 classes \(x, z, y\)"),
        ((), "", "the federation learns text without classes"),
        (
            ("x", "y", "z"),
            other,
            f"is of the partition {DEALT.fingerprint[:12]}…, the federation dealt out {other[:12]}…",
        ),
    ):
        with pytest.raises(DataError, match=words):
            check_part(folder, facts, classes=classes, partition=partition)


def test_folders_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "letters.txt").write_text("mine")
    assert not is_part(tmp_path / "one")
    with pytest.raises(ArtifactError, match="holds other files"):
        write_parts(texts(), DEALT, tmp_path)
    assert (tmp_path / "one" / "letters.txt").read_text() == "mine"
