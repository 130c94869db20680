"""Questions in one form, drawn by seed, with the published prompts."""

import json
from pathlib import Path

import pytest

from lissome.core.errors import AssetError, DataError, UnknownNameError
from lissome.data.choice import choice_tasks, draw, find_task, prompts_sha256, read_questions
from lissome.data.local import data_dir, data_file

RECORDS = {
    "piqa": (
        {"query": "Question: ice box\n", "choices": ["add water", "add soda"], "gold": 0},
        [("Question: ice box\nAnswer:", "add water"), ("Question: ice box\nAnswer:", "add soda")],
    ),
    "boolq": (
        {"query": "Passage: It rains.\nQuestion: is it wet?", "choices": ["no", "yes"], "gold": 1},
        [("It rains.\nQuestion: is it wet?\nAnswer:", "no"), ("It rains.\nQuestion: is it wet?\nAnswer:", "yes")],
    ),
    "openbookqa": (
        {"query": "Predators eat", "choices": ["lions", "grass"], "gold": 0},
        [("Predators eat", "lions"), ("Predators eat", "grass")],
    ),
    "winogrande": (
        {"context_options": ["so Sarah", "so Maria"], "continuation": "won.", "gold": 1},
        [("so Sarah", "won."), ("so Maria", "won.")],
    ),
    "siqa": (
        {"query": "Context: Al sat.\nQuestion: Why?\nChoices:\nA. tired. B. too\nB. late\nAnswer:", "gold": 1},
        [("Q: Al sat. Why?\nA:", "tired. B. too"), ("Q: Al sat. Why?\nA:", "late")],
    ),
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_prompts_are_the_published_ones(name: str, tmp_path: Path) -> None:
    record, expected = RECORDS[name]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record) + "\n")
    (question,) = read_questions(file, find_task(name).read)
    assert list(zip(question.contexts, question.options, strict=True)) == expected
    assert question.gold == record["gold"]
    assert question.partial == (name == "winogrande")


@pytest.mark.parametrize("name", sorted(choice_tasks()))
def test_every_local_file_is_understood(name: str) -> None:
    task = find_task(name)
    if not (data_dir() / task.file).is_file():
        pytest.skip(f"{task.file} is not in LISSOME_DATA")
    questions = task.questions()
    assert len(questions) >= 500
    assert all(option.strip() for question in questions for option in question.options)
    assert len({question.partial for question in questions}) == 1


def test_a_draw_is_seeded_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(RECORDS["piqa"][0]) + "\n" for _ in range(40)))
    questions = read_questions(file, find_task("piqa").read)
    first, again, other = (draw(questions, 10, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    indices = [question.index for question in first]
    assert indices == sorted(indices)
    assert indices != list(range(10))
    assert draw(questions, 99, 0) == questions
    with pytest.raises(DataError, match="at least 1"):
        draw(questions, 0, 0)
    assert prompts_sha256(first) != prompts_sha256(questions)


@pytest.mark.parametrize(
    "line", ["[]", '{"query": "q", "choices": ["a", "b"]}', '{"query": "q", "choices": ["a"], "gold": 1}', "{"]
)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(RECORDS["piqa"][0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"a.jsonl:2: not a choice question"):
        read_questions(file, find_task("piqa").read)


def test_a_typo_names_the_nearest_task() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'winogrande'"):
        find_task("winogrand")


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_DATA", str(tmp_path))
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(AssetError, match="another file"):
        data_file("a.txt", "0" * 64)
    with pytest.raises(AssetError, match="set LISSOME_DATA"):
        data_file("b.txt", "0" * 64)
