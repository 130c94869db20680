"""What the functions of the Python surface take, and how they refuse the rest before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import decoders

import lissome
from lissome import pipeline
from lissome.core.errors import ConfigError, DataError
from lissome.core.manifest import Base, Manifest
from lissome.models.model import Model
from lissome.pipeline.in_torch import behind
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

BOUND = "block_params=75%"


@pytest.fixture(scope="module")
def toy() -> Model:
    """A toy with a tokenizer of its own."""
    return replace(toy_model("llama", vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())


@pytest.fixture(scope="module")
def misfit() -> Model:
    """A toy with the tokenizer of a larger model."""
    return replace(toy_model("llama", vocab_size=TOY_VOCABULARY // 4), tokenizer=toy_tokenizer())


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "3", None])
def test_a_seed_is_checked_first(seed: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for call in (
        lambda: lissome.plan("no such model", seed=seed),
        lambda: lissome.fit("no such model", seed=seed, out=out),
        lambda: lissome.evaluate("no such model", seed=seed),
        lambda: pipeline.search("no such model", seed=-1 if seed is None else seed, out=out),  # None is its default
    ):
        with pytest.raises(ConfigError, match="the seed must be a whole number from 0 to"):
            call()
    assert not out.exists()


@pytest.mark.parametrize(
    "budget",
    [BOUND, lissome.Budget.parse(BOUND), [BOUND], (lissome.Budget.parse(BOUND),), ["params<=99%", BOUND]],
)
def test_a_budget_is_text_or_a_budget(toy_folder: Path, toy_text: Path, budget: Any) -> None:
    planned = lissome.plan(toy_folder, budget=budget, data=toy_text)
    assert planned.budget == str(lissome.Budget.parse(budget))


def test_fit_takes_a_budget(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": toy_text, "settings": ["width_step=8", "recover_steps=0"], "out": tmp_path / "o"}
    report = lissome.fit(toy_folder, budget=lissome.Budget.parse(BOUND), **given)
    assert report.ok
    assert lissome.fit(toy_folder, budget=BOUND, **given) == report, "the same job as with the text"


def test_a_tokenizer_of_another_model_is_named(misfit: Model, toy_text: Path) -> None:
    for call in (
        lambda: pipeline.generate(misfit, "zebras jump"),
        lambda: lissome.evaluate(misfit, text=toy_text),
        lambda: lissome.plan(misfit, budget=BOUND, data=toy_text),
    ):
        with pytest.raises(DataError, match="the tokenizer does not fit the model: it gives id") as caught:
            call()
        assert f"ids 0 to {TOY_VOCABULARY // 4 - 1}" in str(caught.value)


def test_a_baseline_that_a_model_does_not_come_from_is_said(toy: Model, tmp_path: Path) -> None:
    """Said only where both are known: a manifest tells what a model was made from, a file has a hash."""
    folders = {}
    for name, seed in (("first", 1), ("second", 2)):
        folders[name] = replace(toy, module=toy_model("llama", vocab_size=TOY_VOCABULARY, seed=seed).module).save(
            tmp_path / name
        )
    original = lissome.load(folders["first"])
    made_from = Base(name="first", architecture="llama", sha256=original.source.sha256)
    small, sibling = (
        original.save(tmp_path / name, manifest=Manifest(name=name, base=made_from)) for name in ("small", "sibling")
    )
    text = tmp_path / "text.txt"
    text.write_text("all work and no play makes jack a dull boy. " * 50)
    for against, said in ((folders["first"], False), (sibling, False), (folders["second"], True), (toy, False)):
        for report in (lissome.evaluate(small, against, text=text), lissome.measure(small, against)):
            assert any("was made from first, not from" in note for note in report.notes) == said
    assert not lissome.evaluate(folders["first"], folders["second"], text=text).notes


def test_text_behind_a_prompt_begins_where_that_ends() -> None:
    """A tokenizer of SentencePiece's kind drops the space of a beginning; others tidy up across the seam."""
    tidy = toy_tokenizer()
    tidy.clean_up_tokenization_spaces = True
    for before, new in (("i do n", "'t"), ("say '", " hello '")):
        assert behind(tidy, tidy.encode(before), tidy.encode(new)) == new
    tidy.backend_tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    assert behind(tidy, tidy.encode("hello"), tidy.encode(" you")) == " you"
    assert behind(tidy, [], tidy.encode(" you")) == "you"


def test_what_was_not_timed_has_no_speed(toy: Model) -> None:
    one, some = (pipeline.generate(toy, "the quick", max_new_tokens=count) for count in (1, 5))
    assert one.tokens == 1
    assert one.decode is None
    assert one.prefill > 0
    assert (some.decode is None) == (some.tokens == 1)
    assert some.tokens == 1 or 0 < some.decode < 1e7


def test_writing_ends_where_the_model_reads_no_more(toy: Model) -> None:
    room = toy.module.config.max_position_embeddings
    prompt = "a" * (room - 2)
    assert 1 <= pipeline.generate(toy, prompt, max_new_tokens=10**6).tokens <= 2
    with pytest.raises(DataError, match=f"the prompt has {room + 3} tokens, .* reads {room}"):
        pipeline.generate(toy, "a" * (room + 3))


def test_no_tokens_and_no_prompt_are_refused_before_loading() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        pipeline.generate("no such model", "a", max_new_tokens=0)
    with pytest.raises(DataError, match="the prompt is empty"):
        pipeline.generate("no such model", " \n")
    with pytest.raises(DataError, match="no text from letter 3 on"):  # what Python makes of bytes that are no UTF-8
        pipeline.generate("no such model", "ab\udcff")


@pytest.mark.parametrize("data", [[1, 2], np.zeros((2, 3)), {"text": []}], ids=lambda value: type(value).__name__)
def test_data_in_memory_are_told_to_be_written_down(data: Any, toy: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for call in (
        lambda: lissome.fit(toy, budget=[BOUND], data=data, out=out),
        lambda: pipeline.supernet(toy, data=data, out=out),
        lambda: pipeline.search(toy, data=data, out=out),
    ):
        with pytest.raises(DataError, match=rf"data must be the path of .*, got {type(data).__name__}; write it down"):
            call()
    assert not out.exists()
