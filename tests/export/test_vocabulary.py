"""The tokenizer in a GGUF file: what is written for each kind, and that the importer reads the same tokenizer back."""

from __future__ import annotations

from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lissome.core.errors import ExportError
from lissome.export._vocabulary import vocabulary_of
from lissome.export.gguf import export
from lissome.models.gguf import convert
from lissome.models.gguf.tokenizer import SPLITS
from lissome.models.model import Model, Source
from lissome.testing.tokenizers import toy_tokenizer
from tests.export.toys import byte_level, sentence_piece
from tests.models.gguf_toys import module_of

TEXTS = ["the hello 12", "  two  spaces ", "a\n\n\tb", "Ünïcödé 中文 😀", "x" * 40, "", "don't 3.14", "a<think>b<s>"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tokenizer of each kind with what came back from a file."""
    root = tmp_path_factory.mktemp("vocabulary")
    made = {"bytes": byte_level(), "pieces": sentence_piece(), "prefixed": sentence_piece(prefix=True)}
    result = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LISSOME_CACHE", str(root / "cache"))
        for name, tokenizer in made.items():
            path = export(Model(module_of("llama"), tokenizer, Source(name)), root / f"{name}.gguf").path
            result[name] = (tokenizer, AutoTokenizer.from_pretrained(convert(path)))
    return result


@pytest.mark.parametrize("kind", ["bytes", "pieces", "prefixed"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | st.sampled_from(TEXTS))
def test_the_tokenizer_comes_back(pairs, kind, text):
    original, back = pairs[kind]
    assert back(text, add_special_tokens=False)["input_ids"] == original(text, add_special_tokens=False)["input_ids"]
    assert (back.bos_token_id, back.eos_token_id, back.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (byte_level("llama-bpe", whole_words=True), "llama-bpe"),
        (byte_level("llama-bpe"), "dbrx"),  # the same pattern, but words in the vocabulary are not taken whole
        (byte_level("qwen2"), "qwen2"),
        (byte_level("gpt-2"), "gpt-2"),
        (byte_level("smollm"), "smollm"),
        (byte_level("gpt-4o"), "gpt-4o"),
        (byte_level("tekken", whole_words=True), "tekken"),
    ],
)
def test_splitting_patterns_are_named(tokenizer, expected):
    assert vocabulary_of(tokenizer, 320).entries["ggml.pre"] == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
    ],
)
def test_spellings_of_one_pattern_are_one(steps, expected):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert vocabulary_of(tokenizer, 320).entries["ggml.pre"] == expected


def test_an_unknown_pattern_is_refused():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ExportError, match=r"no name for.*Punctuation.*known: gpt-2"):
        vocabulary_of(tokenizer, 320)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (SimpleNamespace(), "not a fast tokenizer"),
        (toy_tokenizer(), "kind 'WordLevel'"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))), "neither byte-level nor"),
    ],
)
def test_other_kinds_are_refused(tokenizer, message):
    with pytest.raises(ExportError, match=message):
        vocabulary_of(tokenizer, 320)


def test_rows_without_token_and_tokens_without_row_are_said():
    tokenizer = byte_level()
    roomy = vocabulary_of(tokenizer, len(tokenizer) + 3)
    assert roomy.entries["ggml.tokens"][-1] == f"[PAD{len(tokenizer) + 2}]"
    assert roomy.entries["ggml.token_type"][-4:] == [4, 5, 5, 5]
    assert roomy.notes == ("3 embedding rows have no token and were named [PAD…]",)
    tight = vocabulary_of(tokenizer, len(tokenizer) - 1)
    assert len(tight.entries["ggml.tokens"]) == len(tokenizer) - 1
    assert tight.notes == ("1 tokens have no embedding row and were left out (<think>)",)


def test_framing_and_template():
    entries = vocabulary_of(byte_level(), 320).entries
    assert (entries["ggml.add_bos_token"], entries["ggml.add_eos_token"]) == (False, False)
    assert entries["ggml.bos_token_id"] == 1
    assert "m.role" in entries["chat_template"]
    framed = byte_level()
    framed.chat_template = {"default": "{{ 1 }}", "tools": "{{ 2 }}"}
    framed.backend_tokenizer.post_processor = _frame()
    entries = vocabulary_of(framed, 320).entries
    assert (entries["ggml.add_bos_token"], entries["ggml.add_eos_token"]) == (True, True)
    assert entries["chat_template"] == "{{ 1 }}"


def _frame():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])


def test_pieces_are_scored_by_how_early_they_are_made():
    entries = vocabulary_of(sentence_piece(), 320).entries
    scores = dict(zip(entries["ggml.tokens"], entries["ggml.scores"], strict=True))
    assert scores["he"] > scores["▁t"] > scores["▁the"] > scores["ll"] > scores["hell"] > scores["hello"] > scores["a"]
    types = dict(zip(entries["ggml.tokens"], entries["ggml.token_type"], strict=True))
    assert [types[token] for token in ("<s>", "<unk>", "<0x41>", "he")] == [3, 2, 6, 1]
    assert entries["ggml.add_space_prefix"] is False
    assert vocabulary_of(sentence_piece(prefix=True), 320).entries["ggml.add_space_prefix"] is True


def test_every_known_pattern_has_a_name():
    assert all(vocabulary_of(byte_level(name), 320).entries["ggml.pre"] for name in SPLITS)
