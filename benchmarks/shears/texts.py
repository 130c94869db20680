"""The data of the claim: in which language a few words are, and windows of web text and Wikipedia.

Words are from the Universal Declaration of Human Rights, dealt by its articles, the same ones in all languages: what is
tested is no translation of anything that was learnt. Runs of words that two languages share are left out, and what is
tested is not learnt. Runs that are learnt begin at every word, so that adapters do not know all of them by heart soon.
"""

# n windows, T tokens

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from lissome.data.labelled import Labelled
from lissome.data.local import data_file
from lissome.data.sources import read_corpus
from lissome.data.text import Encoder, spread, windows_sha256
from lissome.engine.classify import Encoded, encode
from lissome.engine.stream import Inputs, windows_of
from lissome.models.model import Model

LANGUAGES = (
    "spa", "cat", "por_PT", "ita", "fra", "ron_2006", "deu_1996", "nld", "eng", "dan", "swe", "isl", "ces", "pol",
    "slv", "hrv", "fin", "est", "lit", "lav",
)  # fmt: skip
"""Declarations in Latin letters, by the names of their files."""
WORDS = 4
CALIBRATION_TEXTS = 256
"""Runs of words that Wanda looks at."""
PARTS = ("train", "validation", "test")

LENGTH = 128
CALIBRATION = 32
"""Windows of text that Wanda looks at: 4,096 tokens."""
VALIDATION, TEST = 16, 32
"""Windows that choose a learning rate, and held-out ones: 4,096 tokens, half web text, half Wikipedia."""

_DECLARATION = ("multilingual/udhr.jsonl.gz", "65e3eefb539141effda676a684951c420bc9c87e089fe0137ad63d4e11c14c90")
_PASSAGES = {
    "lm/owt_passages.jsonl": "89b166a9b1a0857c367c83f470f869133d4e925bf1b96b1d7903fb063905642f",
    "lm/wikipedia_passages.jsonl": "ef129cc93cbf4ebb9b984b366cb5a380fdd3ebcf5660517c72482b8dc496e074",
}
_SPLIT = {"train": slice(0, 400), "validation": slice(400, 500), "test": slice(500, 800)}
_HEADING = re.compile(r"\d+")
_LONGEST_HEADING = 40
_WORD = re.compile(r"[^\W\d_]+(?:['’‐-][^\W\d_]+)*")


@dataclass(frozen=True, eq=False)
class Words:
    """Runs of words and their languages, encoded for one model.

    Attributes:
        train: What is learnt, and what Wanda looks at.
        validation: Chooses learning rates.
        test: Judges; like validation sorted by length, so that batches hold little padding.
        sha256: Of all three, before they were encoded.
    """

    train: Encoded
    validation: Encoded
    test: Encoded
    sha256: str

    def inputs(self, seed: int) -> list[Inputs]:
        """Draw texts to prune by."""
        chosen = Random(seed).sample(range(len(self.train)), CALIBRATION_TEXTS)
        return list(_some(self.train, torch.tensor(chosen)).batches())

    def facts(self) -> dict[str, Any]:
        """Return what a result must say about its texts."""
        sizes = {name: len(getattr(self, name)) for name in PARTS}
        return {"words": WORDS, "languages": len(LANGUAGES), "sizes": sizes, "sha256": self.sha256}


def words(model: Model) -> Words:
    """Return runs of words for a model, all of them.

    Raises:
        AssetError: When they are not on this machine.
    """
    parts = declarations()
    train, *others = (encode(model, part) for part in parts.values())
    digest = ",".join(part.sha256[:16] for part in parts.values())
    return Words(train, *map(_by_length, others), digest)


@cache
def declarations() -> dict[str, Labelled]:
    """Return the runs of words of every part."""
    file = data_file(*_DECLARATION)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = {row["file"]: row["text"] for row in map(json.loads, lines)}
    return dealt({name: found[name] for name in LANGUAGES})


def dealt(texts: dict[str, str]) -> dict[str, Labelled]:
    """Cut declarations into runs of words and deal them to the parts by article.

    Args:
        texts: Declaration by language.
    """
    taken, parts = set[str](), {}
    classes = tuple(sorted(texts))
    for part in reversed(PARTS):  # what judges chooses first
        languages: dict[str, set[str]] = {}
        for language, text in texts.items():
            for article, line in articles(text):
                if part_of(article) == part:
                    for run in runs(line, 1 if part == "train" else WORDS):
                        languages.setdefault(run, set()).add(language)
        own = {run: min(found) for run, found in languages.items() if len(found) == 1 and run not in taken}
        taken.update(languages)
        labels = tuple(classes.index(language) for language in own.values())
        parts[part] = Labelled("declarations", tuple(own), labels, classes)
    return {part: parts[part] for part in PARTS}


def articles(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a declaration with the number of their article, 0 for what precedes the first number."""
    article = 0
    for line in text.split("\n"):
        heading = _HEADING.search(line) if len(line) < _LONGEST_HEADING else None
        if heading:
            article = int(heading[0])
        else:
            yield article, line


def part_of(article: int) -> str:
    """Say to which part an article belongs: 2, 6, 10 … are tested; 4, 8, 12 … choose; the others are learnt."""
    return {2: "test", 0: "validation"}.get(article % 4, "train") if article else "train"


def runs(line: str, every: int = WORDS) -> list[str]:
    """Cut a line into runs of `WORDS` words, one from every so many words on; what is left at its end is dropped."""
    found = _WORD.findall(line)
    return [" ".join(found[start : start + WORDS]) for start in range(0, len(found) - WORDS + 1, every)]


def _by_length(texts: Encoded) -> Encoded:
    return _some(texts, texts.mask.sum(1).argsort(stable=True))


def _some(texts: Encoded, chosen: Tensor) -> Encoded:
    return Encoded(texts.ids[chosen], texts.mask[chosen], texts.labels[chosen])


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of token ids LongTensor[n, 128] for one model, equally from both sources; parts share no passage.

    Attributes:
        train: What is learnt, and what Wanda looks at.
        validation: Chooses learning rates.
        test: Judges.
    """

    train: Tensor
    validation: Tensor
    test: Tensor

    def inputs(self, seed: int) -> list[Inputs]:
        """Draw windows to prune by."""
        chosen = Random(seed).sample(range(len(self.train)), CALIBRATION)
        return list(windows_of(self.train[sorted(chosen)]))

    def facts(self) -> dict[str, Any]:
        """Return what a result must say about its text."""
        return {part: [*getattr(self, part).shape, windows_sha256(getattr(self, part))] for part in PARTS}


def windows(model: Model) -> Windows:
    """Return windows of text for a model.

    Raises:
        AssetError: When it is not on this machine.
    """
    encoder, found = Encoder(model.tokenizer, model.anatomy.vocabulary), dict[str, list[Tensor]]()
    for name, sha256 in _PASSAGES.items():
        passages = [document.text for document in read_corpus(data_file(name, sha256)).documents]
        for part, places in _SPLIT.items():
            rows = encoder.windows(encoder.encode("\n\n".join(passages[places])), LENGTH, "auto")
            count = {"validation": VALIDATION, "test": TEST}.get(part)
            found.setdefault(part, []).append(rows if count is None else spread(rows, count // len(_PASSAGES)))
    return Windows(*(torch.cat(rows) for rows in found.values()))
