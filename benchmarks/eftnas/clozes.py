"""Questions made of text, so that a small model can learn to look for answers before it sees five articles' questions.

A stretch of a sentence is the answer; the words near it, some of them left out, after a word that asks, are the
question (clozes without a generator, after Lewis, Denoyer and Riedel 2019, arXiv 1906.04980).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.multipruner.texts import PASSAGES
from lissome.core.files import write_text
from lissome.data.local import data_file

COUNT = 8000
_TEXTS, _WORDS = 10, 110
"""Articles that the passages are dealt to; words of a passage, all of which fit beside a question."""
_NEAR, _KEPT, _ANY = 8, 0.75, 0.3
"""Words on each side of an answer that a question has; share of them that stay; answers that are any words."""
_YEAR, _NUMBER = re.compile(r"(1[5-9]|20)\d\d"), re.compile(r"\d[\d,.]*%?")
_EDGES = ".,;:()\"'"


def write_clozes(file: Path, count: int = COUNT) -> Path:
    """Write questions on passages of Wikipedia and of web pages as SQuAD does, and return the file."""
    rng, texts = Random(0), list(_passages())
    articles: list[list[dict[str, Any]]] = [[] for _ in range(_TEXTS)]
    made = 0
    while made < count:
        for at, text in enumerate(texts):
            found = _cloze(text, rng)
            if found is not None and made < count:
                question, answer, start = found
                asked = {"id": str(made), "question": question, "answers": [{"text": answer, "answer_start": start}]}
                articles[at % _TEXTS].append({"context": text, "qas": [asked]})
                made += 1
    data = [{"title": f"passages {at}", "paragraphs": paragraphs} for at, paragraphs in enumerate(articles)]
    write_text(file, json.dumps({"version": "1.1", "data": data}))
    return file


def write_answerable(source: Path, file: Path) -> Path:
    """Write those questions of a file that its texts answer, as SQuAD 1.1 has them, and return the file.

    With the others a small model learns from so few to answer none at all, which is right for every second one.
    """
    whole = json.loads(source.read_text(encoding="utf-8"))
    for article in whole["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [one for one in paragraph["qas"] if one["answers"]]
        article["paragraphs"] = [one for one in article["paragraphs"] if one["qas"]]
    write_text(file, json.dumps(whole))
    return file


def _passages() -> Iterator[str]:
    seen = set()
    for name, sha256 in PASSAGES.items():
        for line in data_file(name, sha256).read_text(encoding="utf-8").splitlines():
            text = " ".join(json.loads(line)["text"].split()[:_WORDS])
            if text not in seen:
                seen.add(text)
                yield text


def _cloze(text: str, rng: Random) -> tuple[str, str, int] | None:
    """Return a question, its answer, and where that starts; None where a text has no sentence of a usual length."""
    sentences = [one for one in re.split(r"(?<=[.!?])\s+", text) if 6 <= len(one.split()) <= 40]
    if not sentences:
        return None
    sentence = rng.choice(sentences)
    places = [(one.start(), one.end()) for one in re.finditer(r"\S+", sentence)]
    words = [sentence[start:end] for start, end in places]
    first, last = rng.choice(_stretches(words, rng))
    answer = sentence[places[first][0] : places[last - 1][1]].strip(_EDGES)
    if not answer:
        return None
    near = [
        word
        for at, word in enumerate(words)
        if not first <= at < last and first - _NEAR <= at < last + _NEAR and rng.random() < _KEPT
    ]
    start = text.index(answer, text.index(sentence) + places[first][0])
    return f"{_asking(answer, rng)} {' '.join(near).rstrip('.')}?", answer, start


def _stretches(words: Sequence[str], rng: Random) -> list[tuple[int, int]]:
    """Return what may be asked for: numbers and names, or any words."""
    found = []
    for at, word in enumerate(words):
        if _NUMBER.fullmatch(word.strip(_EDGES)):
            found.append((at, at + 1))
        elif at and word[:1].isupper() and not words[at - 1][:1].isupper():
            end = at + 1
            while end < len(words) and words[end][:1].isupper() and not words[end - 1].endswith((",", ".")):
                end += 1
            found.append((at, end))
    if found and rng.random() >= _ANY:
        return found
    count = rng.randint(1, 4)
    first = rng.randrange(max(1, len(words) - count))
    return [(first, min(len(words), first + count))]


def _asking(answer: str, rng: Random) -> str:
    if _YEAR.fullmatch(answer):
        return rng.choice(("When", "In what year", "What year"))
    if answer[:1].isdigit():
        return rng.choice(("How many", "How much", "What"))
    if answer[:1].isupper():
        return rng.choice(("Who", "Where", "What", "Which"))
    return rng.choice(("What", "How", "Why"))
