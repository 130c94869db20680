"""Questions made of text: what is asked for stands where it says, and not in the question."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from benchmarks.eftnas import clozes
from lissome.data.questions import read_questions

TEXT = (
    "Aubrey Haines was born in Portland in 1914. He left high school in Seattle and studied forestry. "
    "In June 1941, Haines was furloughed from Yellowstone National Park for 4 years."
)


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_stands_where_it_says(seed: int) -> None:
    found = clozes._cloze(TEXT, Random(seed))
    assert found is not None
    question, answer, start = found
    assert TEXT[start : start + len(answer)] == answer and answer == answer.strip(".,")
    assert question.endswith("?") and set(question[:-1].split()[3:]) <= set(TEXT.replace(".", " ").split())


def test_names_and_numbers_are_asked_for_as_such() -> None:
    asked = {clozes._asking(answer, Random(seed)) for answer in ("1914", "1941") for seed in range(20)}
    assert asked == {"When", "In what year", "What year"}
    assert {clozes._asking("4", Random(seed)) for seed in range(20)} == {"How many", "How much", "What"}
    assert clozes._cloze("Too short.", Random(0)) is None


def test_only_what_a_text_answers_stays(tmp_path: Path) -> None:
    yes = {"question": "Where?", "id": "1", "answers": [{"text": "Portland", "answer_start": TEXT.index("Portland")}]}
    no = {"question": "Why?", "id": "2", "answers": [], "is_impossible": True}
    paragraphs = [{"context": TEXT, "qas": [yes, no]}, {"context": TEXT, "qas": [no]}]
    source = tmp_path / "all.json"
    source.write_text(json.dumps({"data": [{"title": "one", "paragraphs": paragraphs}]}))
    kept = read_questions(clozes.write_answerable(source, tmp_path / "some.json"))
    assert [row.text for row in kept.rows] == ["Where?"]
