"""Questions: read, refused, dealt by articles; answers compared as SQuAD compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lissome.core.errors import DataError
from lissome.data.questions import exact, holds_questions, overlap, read_questions
from lissome.testing.examples import asked_texts


def one_asked(context: Any = "abc", question: Any = "?", answers: Any = ()) -> dict[str, Any]:
    asked = {"context": context, "qas": [{"question": question, "answers": list(answers)}]}
    return {"data": [{"title": "x", "paragraphs": [asked]}]}


def test_questions_are_dealt_by_articles_and_paragraphs(tmp_path: Path) -> None:
    data = read_questions(asked_texts(tmp_path / "q.json"))
    assert all(row.context[start : start + len(text)] == text for row in data.rows for start, text in row.answers)
    parts = data.parts({"recovery": 0.6, "search": 0.1, "selection": 0.1, "test": 0.2})
    assert sum(map(len, parts.values())) == len(data)
    articles = {name: {row.article for row in part.rows} for name, part in parts.items()}
    assert not articles["test"] & (articles["recovery"] | articles["search"] | articles["selection"])
    assert len(parts["test"]) >= 0.2 * len(data)
    contexts = [{row.context for row in part.rows} for part in parts.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts)), "a paragraph lies in one part"
    assert data.parts({"recovery": 0.8, "test": 0.2})["test"].sha256 == parts["test"].sha256


@pytest.mark.parametrize(
    ("said", "wanted", "f1", "same"),
    [
        ("the Normans", ["Normans", "x"], 1.0, 1.0),
        ("10th century", ["10th and 11th centuries"], 2 / 6, 0.0),
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["something"], 0.0, 0.0),
        ("red, RED!", ["red red"], 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(said: str, wanted: list[str], f1: float, same: float) -> None:
    assert overlap(said, wanted) == pytest.approx(f1)
    assert exact(said, wanted) == same


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ("{", "cannot be read"),
        ({"data": []}, "has no questions"),
        ({"data": [{"title": "x"}]}, "'paragraphs'"),
        ({"data": [{"title": "x", "paragraphs": [{"context": "abc", "qas": [{"question": "?"}]}]}]}, "'answers'"),
        (
            {"data": [{"title": "x", "paragraphs": [
                {"context": "abc", "qas": [{"question": "?", "answers": [{"text": "b", "answer_start": 0}]}]}
            ]}]},
            "does not stand at 0",
        ),
        (one_asked(answers=[{"text": "b", "answer_start": -2}]), "does not stand at -2"),
        (one_asked(answers=[{"text": "", "answer_start": 1}]), "'' does not stand at 1"),
        (one_asked(answers=[{"text": "b", "answer_start": "first"}]), "'first'"),
        (one_asked(question=None), "the question None is no text"),
        (one_asked(context=" "), "the context ' ' is no text"),
        (one_asked(context="ab\ud800"), "the context .* is no text"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_questions_is_refused(whole: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(whole if isinstance(whole, str) else json.dumps(whole))
    with pytest.raises(DataError, match=words):
        read_questions(file)


def test_a_mark_of_the_encoding_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(one_asked()), encoding="utf-8-sig")
    assert len(read_questions(file)) == 1


def test_questions_on_one_article_are_too_few(tmp_path: Path) -> None:
    data = read_questions(asked_texts(tmp_path / "q.json", articles=1))
    with pytest.raises(DataError, match="on 1 articles, too few"):
        data.parts({"recovery": 0.8, "test": 0.2})


def test_a_file_of_questions_is_known_by_its_beginning(tmp_path: Path) -> None:
    assert holds_questions(asked_texts(tmp_path / "q.json"))
    (tmp_path / "x.json").write_text('{"text": "paragraphs"}')
    assert not holds_questions(tmp_path / "x.json") and not holds_questions(tmp_path / "none.json")
