"""What super-networks learn in the claims on them, as files that `lissome supernet --data` reads.

All of it is dealt into parts by lissome itself, which keeps 1,800 examples at least for the test. Runs of words of one
declaration may lie in several parts, but no run in two.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.shears.texts import runs
from lissome.core.files import atomic_file, cache_dir, write_text
from lissome.data.local import data_file

LANGUAGES = (
    "spa", "cat", "por_PT", "ita", "fra", "ron_2006", "deu_1996", "nld", "eng", "dan", "swe", "isl", "ces", "pol",
    "slv", "hrv", "fin", "est", "lit", "lav", "hun", "tur", "eus", "glg", "afr", "slk", "cym", "ind",
)  # fmt: skip
"""Declarations in Latin letters, by the names of their files."""

_SST2 = {
    "text/sst2_train.tsv": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "text/sst2_dev.tsv": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "text/sst2_test.tsv": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
}
_DECLARATIONS = ("multilingual/udhr.jsonl.gz", "65e3eefb539141effda676a684951c420bc9c87e089fe0137ad63d4e11c14c90")
_ADDRESSES = ("lm/sotu.jsonl.gz", "8575a219d1a0e97075d971302337a12d247b146a2a108adbadd9c0dde310fa5c")
_SQUAD = ("text/squad_dev_slice.json", "db71d0a19c3f656b1ebefafce642b828cfab269f0d906312dfb0efdc7173b31a")
_MAILS = ("text/spam.jsonl.gz", "0e4507e5ab10f305af1d2e80d3d63194ec0c0cb8ea2cbfbcd016bf95e9d71b43")
_BEGINNING = 400  # characters of a mail
_CIFAR = ("vision/cifar10_jpeg.npz", "f1000a02bf4d1af3c8931671a029c1851913df3dbc6c7128ce74fcc6a249ef13")


def sentences() -> Path:
    """Write SST-2's sentences, all of its parts together: 1,900 of them are the test split."""

    def rows() -> Iterable[tuple[str, str]]:
        for name, sha256 in _SST2.items():
            with data_file(name, sha256).open(encoding="utf-8", newline="") as file:
                lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                yield from ((line[0], line[1]) for line in lines if len(line) == 2)

    return _written("sst2.jsonl", rows)


def languages() -> Path:
    """Write runs of four words of the Declaration of Human Rights, their class being the language: 28 of them.

    Runs that two languages have in common are left out.
    """

    def rows() -> Iterable[tuple[str, str]]:
        with gzip.open(data_file(*_DECLARATIONS), "rt", encoding="utf-8") as lines:
            texts = {row["file"]: row["text"] for row in map(json.loads, lines)}
        found: dict[str, set[str]] = {}
        for language in LANGUAGES:
            for line in texts[language].split("\n"):
                for run in runs(line):
                    found.setdefault(run, set()).add(language)
        return [(run, min(known)) for run, known in found.items() if len(known) == 1]

    return _written("languages.jsonl", rows)


def mails() -> Path:
    """Write the beginnings of mails, subject and body, their class being whether they are spam."""

    def rows() -> Iterable[tuple[str, str]]:
        with gzip.open(data_file(*_MAILS), "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                text = f"{row['subject']} {row['text']}".strip()[:_BEGINNING]
                yield from [(text, "spam" if row["label"] else "ham")] if text else ()

    return _written("mails.jsonl", rows)


def questions() -> Path:
    """Return questions on five articles whose answers are spans of them: a slice of SQuAD."""
    return data_file(*_SQUAD)


def addresses() -> Path:
    """Return addresses to Congress, one a line."""
    return data_file(*_ADDRESSES)


def photographs() -> Path:
    """Return CIFAR-10 as JPEG images, 10,000 of them for tests: not comparable with published accuracy."""
    return data_file(*_CIFAR)


def few_photographs(train: int = 8000, test: int = 2000) -> Path:
    """Write some images of CIFAR-10's own parts, for a network that is too large for all of them."""
    return _photographs(f"cifar10-{train}-{test}-drawn", _some(train, test))


def other_photographs(after: int) -> Path:
    """Write CIFAR-10's own training part, less so many images that were drawn of it."""
    return _photographs(f"cifar10-after-{after}-drawn", lambda whole: _drawn(whole["is_train"])[after:])


def turned_photographs(count: int) -> Path:
    """Write some images of CIFAR-10's own training part, turned by a quarter: what a camera held upright sees."""

    def turned(blob: np.ndarray) -> np.ndarray:
        made = io.BytesIO()
        Image.open(io.BytesIO(blob.tobytes())).transpose(Image.Transpose.ROTATE_90).save(made, "png")
        return np.frombuffer(made.getvalue(), dtype=np.uint8)

    chosen = _some(count, 0)
    return _photographs(f"cifar10-{count}-turned", chosen, turned)


def _drawn(wanted: np.ndarray) -> np.ndarray:
    """Return the places of what is wanted, shuffled once: the archive is in the order of its classes."""
    return np.random.default_rng(0).permutation(np.flatnonzero(wanted))


def _some(train: int, test: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    def chosen(whole: Mapping[str, np.ndarray]) -> np.ndarray:
        parts = _drawn(whole["is_train"])[:train], _drawn(~whole["is_train"])[:test]
        return np.concatenate(parts)

    return chosen


def _photographs(
    name: str,
    choose: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Path:
    place = cache_dir() / "benchmarks" / f"{name}.npz"
    if not place.exists():
        with np.load(photographs(), allow_pickle=False) as whole:
            chosen, blob, starts = choose(whole), whole["blob"], whole["offsets"]  # each look at `whole` reads again
            pieces = [blob[slice(*starts[at : at + 2])] for at in chosen]
            arrays = {one: whole[one][chosen] for one in ("label", "is_train")} | {"classes": whole["classes"]}
        pieces = pieces if change is None else list(map(change, pieces))
        place.parent.mkdir(parents=True, exist_ok=True)
        offsets = np.cumsum([0, *map(len, pieces)])
        with atomic_file(place) as part, part.open("wb") as file:
            np.savez(file, blob=np.concatenate(pieces), offsets=offsets, **arrays)
    return place


def _written(name: str, rows: Callable[[], Iterable[tuple[str, str]]]) -> Path:
    place = cache_dir() / "benchmarks" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows()))
    return place
