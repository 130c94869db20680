"""Multiple-choice questions: which continuation of a text does the model find most likely?

The files are the local copies of public sets (`LISSOME_DATA`, folder `choice/`), brought to one form here: one
context and one continuation for every option. Prompts are the published zero-shot ones; SIQA, whose copy asks for a
letter, is rewritten to score the text of each option, because a small model is near chance on letters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from lissome.core.errors import DataError, UnknownNameError, unknown_name
from lissome.data.local import data_file

Score = Literal["acc", "acc_norm"]
_LETTERS = re.compile(r"Context: (?P<context>.*)\nQuestion: (?P<question>.*)\nChoices:\n(?P<options>.*)\nAnswer:", re.S)
_OPTION = re.compile(r"(?:^|\n)[A-E]\. ")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        index: Its line in the file, from 0: the same question in every run.
        contexts: What comes before, per option (all equal, except where the option itself stands in the context).
        options: What is scored after a space, per option.
        gold: Index of the right option.
    """

    index: int
    contexts: tuple[str, ...]
    options: tuple[str, ...]
    gold: int

    @property
    def partial(self) -> bool:
        """Whether the options stand in the contexts and one continuation is scored (WinoGrande)."""
        return len(set(self.contexts)) > 1


@dataclass(frozen=True)
class ChoiceTask:
    """A set of questions.

    Attributes:
        name: What the user types.
        file: Its file below `LISSOME_DATA`.
        sha256: Checksum of the file, hexadecimal.
        score: The figure that papers report: ``acc``, or ``acc_norm`` (log-likelihood per character).
        read: Turns one record into (contexts, options).
    """

    name: str
    file: str
    sha256: str
    score: Score
    read: Callable[[Mapping[str, Any]], tuple[list[str], list[str]]]

    def questions(self, *, limit: int | None = None, seed: int = 0) -> tuple[Question, ...]:
        """Read the questions, or `limit` of them drawn with `seed` (files are ordered, so never the first ones).

        Raises:
            AssetError: When the file is absent or differs from the pinned one.
            DataError: When `limit` is not positive.
        """
        return draw(read_questions(data_file(self.file, self.sha256), self.read), limit, seed)


def draw(questions: tuple[Question, ...], limit: int | None, seed: int) -> tuple[Question, ...]:
    """Return `limit` questions drawn with `seed`, in their order in the file; all of them without a limit."""
    if limit is None or limit >= len(questions):
        return questions
    if limit < 1:
        raise DataError(f"the limit must be at least 1 question, got {limit}.")
    chosen = Random(seed).sample(range(len(questions)), limit)
    return tuple(questions[index] for index in sorted(chosen))


def read_questions(
    path: Path, read: Callable[[Mapping[str, Any]], tuple[list[str], list[str]]]
) -> tuple[Question, ...]:
    """Read a JSON-lines file of questions.

    Raises:
        DataError: When a line cannot be used; names it.
    """
    questions = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
            contexts, options = read(record)
            question = Question(index, tuple(contexts), tuple(options), int(record["gold"]))
            if not (0 <= question.gold < len(options) == len(contexts)):
                raise ValueError("gold names no option")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{index + 1}: not a choice question ({error}).") from error
        questions.append(question)
    return tuple(questions)


def prompts_sha256(questions: Iterable[Question]) -> str:
    """Return the hash of everything that is asked, hexadecimal: what a report must carry to be repeated."""
    items = [[question.contexts, question.options, question.gold] for question in questions]
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def _plain(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return [record["query"]] * len(record["choices"]), record["choices"]


def _piqa(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return [f"{record['query'].rstrip()}\nAnswer:"] * len(record["choices"]), record["choices"]


def _boolq(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    context = f"{record['query'].removeprefix('Passage: ').rstrip()}\nAnswer:"
    return [context] * len(record["choices"]), record["choices"]


def _winogrande(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return record["context_options"], [record["continuation"]] * len(record["context_options"])


def _siqa(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    match = _LETTERS.fullmatch(record["query"])
    if match is None:
        raise ValueError("the query is not of the form Context, Question, Choices")
    options = _OPTION.split(match["options"])[1:]
    return [f"Q: {match['context']} {match['question']}\nA:"] * len(options), options


_TASKS = (
    ChoiceTask(
        name="piqa",
        file="choice/piqa.jsonl",
        sha256="d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
        score="acc_norm",
        read=_piqa,
    ),
    ChoiceTask(
        name="winogrande",
        file="choice/winogrande.jsonl",
        sha256="ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
        score="acc",
        read=_winogrande,
    ),
    ChoiceTask(
        name="openbookqa",
        file="choice/openbook_qa.jsonl",
        sha256="adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09",
        score="acc_norm",
        read=_plain,
    ),
    ChoiceTask(
        name="boolq",
        file="choice/boolq.jsonl",
        sha256="454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8",
        score="acc",
        read=_boolq,
    ),
    ChoiceTask(
        name="siqa",
        file="choice/siqa.jsonl",
        sha256="2722a2c30a08dfaee4c5210eeb318dc82c73d675bda32a920b749ae4e2b89598",
        score="acc",
        read=_siqa,
    ),
)


def choice_tasks() -> dict[str, ChoiceTask]:
    """Return every choice task by name."""
    return {task.name: task for task in _TASKS}


def find_task(name: str) -> ChoiceTask:
    """Return the choice task called `name`.

    Raises:
        UnknownNameError: When there is none; names the nearest.
    """
    known = choice_tasks()
    if name not in known:
        raise UnknownNameError(unknown_name("task", name, known))
    return known[name]
