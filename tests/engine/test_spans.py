"""Answers as spans: where they stand in tokens, what is read off scores, and a head that learns to find them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lissome import pipeline
from lissome.core.errors import DataError
from lissome.data.questions import Questions, read_questions
from lissome.engine.spans import Spans, answer, ask, span_splits
from lissome.engine.train import train
from lissome.models.labels import answers_by_spans, with_answers
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.examples import asked_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

SIZES = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 128}


@pytest.fixture
def model() -> Model:
    return with_answers(Model(toy_module("bert", **SIZES), toy_tokenizer()), seed=0)


@pytest.fixture
def data(tmp_path: Path) -> Questions:
    return read_questions(asked_texts(tmp_path / "q.json"))


def test_spans_of_tokens_are_the_answers(model: Model, data: Questions) -> None:
    asked = ask(model, data)
    for at, row in enumerate(data.rows):
        scores = torch.zeros(2, asked.ids.shape[1])
        scores[0, asked.spans[at, 0]], scores[1, asked.spans[at, 1]] = 9.0, 9.0
        assert answer(row, asked, at, scores) == row.answers[0][1]
        scores[:, 0] = 99.0
        assert answer(row, asked, at, scores) == "", "the first token is likelier: the text does not answer it"
    assert set(asked.kinds[asked.mask == 0].tolist()) <= {0}


def test_an_answer_that_is_cut_off_or_missing_is_none(model: Model, data: Questions) -> None:
    row = data.rows[0]
    long = replace(row, context=f"{'the ' * 80}{row.context}", answers=((320 + row.answers[0][0], row.answers[0][1]),))
    asked = ask(model, Questions("x", (long, replace(row, answers=()))))
    assert asked.spans.tolist() == [[0, 0], [0, 0]]


def test_a_question_that_fills_the_window_is_cut_and_leaves_room_for_its_text(model: Model, data: Questions) -> None:
    row = data.rows[0]
    long = ask(model, Questions("x", (replace(row, text=row.text * 99), data.rows[1])))
    assert long.ids.shape[1] <= 128 and int(long.kinds[0].sum()) > 0
    assert long.spans[0, 0] > 0, "its answer is still there"
    alone = ask(model, Questions("x", (data.rows[1],)))
    assert torch.equal(long.ids[1][long.mask[1] == 1], alone.ids[0]), "the others stay as they are"


def test_a_head_learns_to_find_answers(model: Model, data: Questions, tmp_path: Path) -> None:
    spans = Spans(span_splits(model, data))
    before = spans.figures(model, "test")
    settings = spans.training(steps=150, lr=5e-3, batch=None, max_seconds=None)
    train(spans.task(model), settings, seed=0)
    after = spans.figures(model, "test")
    assert tuple(after) == Spans.names == ("f1", "exact", "loss", "answered")
    assert after["f1"] > max(0.6, before["f1"]) and after["loss"] < before["loss"]
    assert after["answered"] == 1.0, "the text answers every question"
    row = spans.data.test.rows[0]
    nothing = Spans(replace(spans.data, test=ask(model, Questions("x", (replace(row, answers=()),)))))
    found = nothing.figures(model, "test")
    assert found["f1"] == 1 - found["answered"], "words that nobody asked for, or rightly none"
    assert spans.splits["test"].endswith(" questions") and spans.selects
    model.save(tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert answers_by_spans(again) and spans.figures(again, "test") == pytest.approx(after)
    taught = spans.lesson(model, again, share=0.9, temperature=2.0)
    batch = torch.utils.data.default_collate([spans.data.recovery[at] for at in range(4)])
    from lissome.engine.hooks import Batch

    assert taught(model.module, Batch(batch, torch.arange(4), None, 0)).shape == (4,)
    report = pipeline.evaluate(tmp_path / "out", data=tmp_path / "q.json")
    assert {"f1", "exact", "loss", "answered"} <= set(report.rows[0].figures)
    assert report.notes == (f"figures on {len(data)} questions",)


def test_without_a_tokenizer_there_is_no_place(data: Questions) -> None:
    bare = with_answers(Model(toy_module("bert", **SIZES)))
    with pytest.raises(DataError, match="fast tokenizer"):
        ask(bare, data)


@pytest.mark.long
def test_an_encoder_that_finds_answers_becomes_a_super_network(model: Model, data: Questions, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    settings = ("steps=4", "score_steps=4", "batch=4", "smallest=0.6", "targets=2")
    made = pipeline.supernet(
        tmp_path / "model", method="eftnas", data=tmp_path / "q.json", settings=settings, out=tmp_path / "S"
    )
    assert set(made.points[0]["quality"]) == {"f1", "exact", "loss", "answered"}
    found = pipeline.search(tmp_path / "S", out=tmp_path / "S" / "search", trials=6, settings=("population=3",))
    assert found.objectives == ("max f1", "min macs")
    cut = pipeline.extract_for(tmp_path / "S", budget="macs<=80%", out=tmp_path / "small")
    assert answers_by_spans(pipeline.load(tmp_path / "small")) and cut.figures["macs"] <= 0.8 * cut.original["macs"]
