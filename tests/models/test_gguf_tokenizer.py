"""GGUF import: the tokenizer cuts text as the file's own does, and puts it together again."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from lissome.core.errors import ArtifactError, UnsupportedModelError
from lissome.models.gguf import convert
from lissome.testing.toys import DECODERS
from tests.models.gguf_toys import CHAT, bytes_tokenizer, pieces_tokenizer, write_gguf

TEXTS = ["the hello 12", "  two  spaces ", "a\n\n\tb", "Ünïcödé 中文 😀", "x" * 40, "", "don't 3.14", "\x00\u200b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Convert one toy file per kind of tokenizer, in a cache of this module's own."""
    root = tmp_path_factory.mktemp("tokenizers")

    def build(name, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LISSOME_CACHE", str(root / "cache"))
            write_gguf(root / f"{name}.gguf", **options)
            return convert(root / f"{name}.gguf")

    return build


@pytest.fixture(scope="module")
def byte_level(folder):
    return AutoTokenizer.from_pretrained(folder("bytes"))


@pytest.fixture(scope="module")
def sentence_piece(folder):
    return AutoTokenizer.from_pretrained(folder("pieces", tokenizer=pieces_tokenizer))


def reference() -> Tokenizer:
    """The toy's byte-level tokenizer, put together by hand: digits apart, then GPT-2's words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "t"), ("Ġt", "he"), ("1", "2")]
    tokens = ["<pad>", "<s>", "</s>", *letters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return core


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(TEXTS))
def test_byte_level_equals_a_tokenizer_made_by_hand(byte_level, text):
    ids = byte_level(text)["input_ids"]
    assert ids == reference().encode(text).ids
    assert byte_level.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | st.sampled_from(TEXTS))
def test_sentence_piece_puts_text_together_again(sentence_piece, text):
    ids = sentence_piece(text, add_special_tokens=False)["input_ids"]
    assert sentence_piece.decode(ids) == text


def test_best_scored_piece_is_merged_first(sentence_piece):
    assert sentence_piece.tokenize("the athe") == ["t", "he", "▁a", "t", "he"]
    assert sentence_piece.tokenize(" the") == ["▁the"]
    assert sentence_piece.tokenize("aaaa") == ["aa", "aa"]  # aa scores above aaa
    assert sentence_piece.tokenize("é") == ["<0xC3>", "<0xA9>"]


def test_user_defined_tokens_stay_whole(byte_level, sentence_piece):
    assert byte_level.tokenize("a<think>b") == ["a", "<think>", "b"]
    assert sentence_piece.tokenize("a  b") == ["a", "  ", "b"]
    assert byte_level.decode(byte_level("<s><think>")["input_ids"], skip_special_tokens=True) == "<think>"


def test_prefix_space_is_added_and_taken_away(folder):
    path = folder("prefixed", tokenizer=lambda writer: pieces_tokenizer(writer, prefix=True))
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer("the")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁the"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the"


@pytest.mark.parametrize(
    ("tokenizer", "flags", "first", "last"),
    [
        (bytes_tokenizer, {}, None, None),
        (bytes_tokenizer, {"add_eos_token": True}, None, 2),
        (pieces_tokenizer, {}, 1, None),  # the habit of this kind, when the file does not say
        (pieces_tokenizer, {"add_bos_token": False}, None, None),
        (pieces_tokenizer, {"add_bos_token": True, "add_eos_token": True}, 1, 2),
    ],
)
def test_begin_and_end_of_text(tokenizer, flags, first, last, folder):
    def build(writer):
        tokenizer(writer)
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)

    path = folder(f"{tokenizer.__name__}{'-'.join(flags)}{first}", tokenizer=build)
    ids = AutoTokenizer.from_pretrained(path)("ab")["input_ids"]
    assert (ids[0] == 1, ids[-1] == 2) == (first == 1, last == 2)


@pytest.mark.parametrize("family", DECODERS)
def test_same_tokenizer_in_every_family(family, byte_level, folder):
    """transformers has its own ideas for some model types; none may change what the file says."""
    tokenizer = AutoTokenizer.from_pretrained(folder(family, family=family))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == byte_level(text)["input_ids"]


def test_chat_template_and_special_tokens_are_kept(byte_level):
    assert byte_level.chat_template == CHAT
    assert byte_level.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"
    assert (byte_level.bos_token_id, byte_level.eos_token_id, byte_level.pad_token_id) == (1, 2, 0)


def test_phi_3_swallows_the_space_behind_a_control_token(folder):
    path = folder("phi3", family="phi3", tokenizer=lambda writer: pieces_tokenizer(writer, prefix=True))
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("</s> a", "<s> a")}
    assert tokenizer.convert_ids_to_tokens(ids["</s> a"]) == ["</s>", "▁a"]
    assert tokenizer.convert_ids_to_tokens(ids["<s> a"]) == ["<s>", "▁", "▁a"]


PATTERNS = {  # what each splits "I'LL pay 12345 now!!\n\n  x" into
    "gpt-2": ["I", "'", "LL", " pay", " 12345", " now", "!!", "\n\n ", " x"],
    "smollm": ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!!", "\n\n ", " x"],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "45", " now", "!!\n\n", " ", " x"],
    "qwen2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!!\n\n", " ", " x"],
    "tekken": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " now", "!!\n\n", " ", " x"],
    "gpt-4o": ["I'LL", " pay", " ", "123", "45", " now", "!!\n\n", " ", " x"],
}


@pytest.mark.parametrize("name", PATTERNS)
def test_text_is_split_as_the_file_says(name, folder):
    def build(writer):
        bytes_tokenizer(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = name

    core = AutoTokenizer.from_pretrained(folder(name, tokenizer=build)).backend_tokenizer
    text = "I'LL pay 12345 now!!\n\n  x"
    assert [text[start:end] for _, (start, end) in core.pre_tokenizer.pre_tokenize_str(text)] == PATTERNS[name]


def test_unknown_ways_to_split_are_refused(folder):
    def build(writer):
        bytes_tokenizer(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "future"

    with pytest.raises(UnsupportedModelError, match="'future'; known: dbrx, deepseek-r1-qwen"):
        folder("future", tokenizer=build)


def test_unknown_kinds_are_refused(folder):
    def build(writer):
        bytes_tokenizer(writer)
        writer.kv_data[0]["tokenizer.ggml.model"].value = "bert"

    with pytest.raises(UnsupportedModelError, match="kind 'bert'; known: gpt2"):
        folder("bert", tokenizer=build)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("merges", ["h e", "x yz"], "a merge"),
        ("merges", ["he"], "a merge"),
        ("token_type", [1, 1], "token types"),
        ("eos_token_id", 9999, "eos token is 9999, outside its vocabulary of 320"),
    ],
)
def test_parts_that_do_not_fit_are_refused(key, value, match, folder):
    def build(writer):
        bytes_tokenizer(writer)
        writer.kv_data[0][f"tokenizer.ggml.{key}"].value = value

    with pytest.raises(ArtifactError, match=match):
        folder(f"{key}-{match[:5]}", tokenizer=build)
