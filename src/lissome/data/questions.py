"""Questions whose answers are spans of a text (SQuAD, Rajpurkar et al. 2016, arXiv 1606.05250), dealt into parts."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lissome.core.errors import DataError
from lissome.data.sources import halved

_FORM = (
    'give JSON as SQuAD writes it: {"data": [{"title": …, "paragraphs": [{"context": …, "qas": [{"question": …, '
    '"answers": [{"text": …, "answer_start": …}]}]}]}]}'
)
_TEST = 0.2  # share of the questions that the articles for the test hold at least
_ARTICLE = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: The question.
        context: The text that holds the answer.
        answers: What people answered, with the places of their first characters in the text; none where the text does
            not answer it.
        article: What the text is from.
    """

    text: str
    context: str
    answers: tuple[tuple[int, str], ...]
    article: str


@dataclass(frozen=True)
class Questions:
    """Questions of one source.

    Attributes:
        name: What the user called it.
        rows: The questions.
    """

    name: str
    rows: tuple[Question, ...]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.rows)

    @property
    def sha256(self) -> str:
        """Hash of all questions in order, hexadecimal."""
        body = json.dumps([[row.text, row.context, row.answers, row.article] for row in self.rows])
        return hashlib.sha256(body.encode()).hexdigest()

    def parts(self, shares: Mapping[str, float]) -> dict[str, Questions]:
        """Deal questions out: whole articles for the part ``test``, those of other articles by their paragraphs.

        Args:
            shares: Share of each part by name, ``test`` among them.

        Raises:
            DataError: When a part gets none: fewer than two articles, or too few paragraphs.
        """
        articles = sorted({row.article for row in self.rows})
        Random(0).shuffle(articles)
        held: set[str] = set()
        while articles and sum(row.article in held for row in self.rows) < _TEST * len(self):
            held.add(articles.pop())
        found = {"test": tuple(row for row in self.rows if row.article in held)}
        paragraphs = sorted({row.context for row in self.rows if row.article not in held})
        Random(1).shuffle(paragraphs)
        rest = {name: share for name, share in shares.items() if name != "test"}
        start, whole = 0.0, sum(rest.values())
        for name, share in rest.items():
            edges = [round(edge / whole * len(paragraphs)) for edge in (start, start + share)]
            chosen = set(paragraphs[slice(*edges)])
            found[name] = tuple(row for row in self.rows if row.article not in held and row.context in chosen)
            start += share
        for name, rows in found.items():
            if not rows:
                raise DataError(
                    f"{self.name} has {len(self)} questions on {len({row.article for row in self.rows})} articles, too "
                    f"few for the part {name!r}; give more of them."
                )
        return {name: Questions(self.name, found[name]) for name in shares}


def holds_questions(source: str | Path) -> bool:
    """Whether a file is JSON with SQuAD's questions, judged by its beginning."""
    path = Path(source)
    if not path.is_file() or path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return b'"paragraphs"' in head and b'"data"' in head


def read_questions(source: str | Path) -> Questions:
    """Read questions; of those that the text does not answer the answers are empty.

    Raises:
        DataError: When the file cannot be read, has no questions, or an answer is not where it says.
    """
    path = Path(source)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_FORM}.") from error
    rows = []
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                rows += [_row(path, str(article["title"]), paragraph["context"], one) for one in paragraph["qas"]]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} lacks or has a wrong {error}; {_FORM}.") from error
    if not rows:
        raise DataError(f"{path} has no questions; {_FORM}.")
    return Questions(str(source), tuple(rows))


def _row(path: Path, article: str, context: str, given: Mapping[str, Any]) -> Question:
    answers = tuple(dict.fromkeys((int(one["answer_start"]), str(one["text"])) for one in given["answers"]))
    question = given["question"]
    for what, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip() or halved(text):
            raise DataError(f"{path}: the {what} {ascii(text)[:60]} is no text that can be used; repair it.")
    for start, text in answers:
        if start < 0 or not text or context[start : start + len(text)] != text:
            raise DataError(f"{path}: the answer {ascii(text)[:60]} does not stand at {start} in its text; repair it.")
    return Question(question, context, answers, article)


def exact(answer: str, wanted: Sequence[str]) -> float:
    """1 when an answer is one of those that are wanted (none wanted: when it is empty), else 0, as SQuAD compares."""
    return float(_plain(answer) in {_plain(one) for one in wanted or ("",)})


def overlap(answer: str, wanted: Sequence[str]) -> float:
    """F1 of the words of an answer and of the nearest one that is wanted; of empty ones 1 or 0."""
    return max(_f1(_plain(answer).split(), _plain(one).split()) for one in wanted or ("",))


def _f1(mine: Sequence[str], theirs: Sequence[str]) -> float:
    if not mine or not theirs:
        return float(not mine and not theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


def _plain(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(_ARTICLE.sub(" ", bare).split())
