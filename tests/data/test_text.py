"""Windows: right length, right start, never shared between splits, refused when there are too few."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import DataError
from lissome.data.sources import Corpus, Document, shipped_corpus
from lissome.data.text import Encoder, WindowPlan, all_windows, make_splits, spread, text_splits
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

PLAIN = Encoder(toy_tokenizer())
WITH_BOS = Encoder(toy_tokenizer(bos=True))
SMALL = WindowPlan(length=8, calibration=2, selection=2, test=3)


def corpus(texts: Sequence[str]) -> Corpus:
    return Corpus("toy", tuple(Document(text, f"toy:{index}") for index, text in enumerate(texts)))


def numbered(count: int, size: int = 30) -> Corpus:
    return corpus([f"{index:04d}" * (size // 4) for index in range(count)])


def test_one_text_is_tokenised_once_and_cut_without_overlap() -> None:
    text = "abcdefghij" * 3
    windows = all_windows(corpus([text]), PLAIN, length=8)
    assert windows.shape == (3, 8)
    assert windows.flatten().tolist() == PLAIN.encode(text)[:24]


def test_documents_are_joined_by_a_blank_line() -> None:
    windows = all_windows(corpus(["abcd", "efgh"]), PLAIN, length=10)
    assert windows.flatten().tolist() == PLAIN.encode("abcd\n\nefgh")


@pytest.mark.parametrize(("begin", "heads"), [("start", [1, None, None]), ("window", [1, 1, 1]), ("auto", [1, 1, 1])])
def test_the_beginning_token_stands_where_the_plan_says(begin: str, heads: list[int | None]) -> None:
    windows = all_windows(corpus(["abcdefgh" * 4]), WITH_BOS, length=8, begin=begin)
    for window, head in zip(windows, heads, strict=False):
        assert (window[0].item() == 1) == (head == 1)
    kept = [token for token in windows.flatten().tolist() if token != 1]
    assert kept == PLAIN.encode("abcdefgh" * 4)[: len(kept)]


def test_a_tokenizer_without_beginning_token_gets_none() -> None:
    assert PLAIN.prefix == []
    assert WITH_BOS.prefix == [1]
    assert 1 not in all_windows(corpus(["abcdefgh" * 4]), PLAIN, length=8, begin="window")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100))
def test_no_document_stands_in_two_splits(split_seed: int) -> None:
    pieces = [chr(ord("a") + index) * 40 for index in range(20)]
    plan = WindowPlan(length=8, calibration=4, selection=4, test=6, split_seed=split_seed)
    splits = make_splits(corpus(pieces), PLAIN, plan)
    letters = {
        name: {t for t in getattr(splits, name).flatten().tolist() if t != PLAIN.encode("\n")[0]}
        for name in ("recovery", "selection", "test")
    }
    assert splits.split_by == "documents"
    assert not letters["recovery"] & letters["selection"]
    assert not letters["recovery"] & letters["test"]
    assert not letters["selection"] & letters["test"]


def test_one_long_text_is_cut_into_regions_in_order() -> None:
    text = "".join(chr(ord("a") + index) * 10 for index in range(20))
    splits = make_splits(corpus([text]), PLAIN, SMALL)
    assert splits.split_by == "regions"
    assert splits.recovery.max() < splits.selection.min()
    assert splits.selection.max() < splits.test.min()
    assert torch.equal(splits.test.flatten(), torch.tensor(PLAIN.encode(text)[-24:]))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 80), st.booleans())
def test_every_text_is_cut_or_refused_with_numbers(count: int, size: int, bos: bool) -> None:
    encoder = WITH_BOS if bos else PLAIN
    source = corpus([f"{index}" + "x" * size for index in range(count)])
    total = len(PLAIN.encode("\n\n".join(document.text for document in source.documents)))
    if total < 56:
        with pytest.raises(DataError, match=f"{total} tokens found, 56 needed"):
            make_splits(source, encoder, SMALL)
        return
    splits = make_splits(source, encoder, SMALL)
    assert (len(splits.calibration), len(splits.selection), len(splits.test)) == (2, 2, 3)


def test_the_seed_moves_the_calibration_windows_and_nothing_else() -> None:
    source = numbered(60)
    first, again, other = (make_splits(source, PLAIN, SMALL, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.calibration, again.calibration)
    assert not torch.equal(first.calibration, other.calibration)
    assert torch.equal(first.test, other.test)
    assert first.test_fingerprint == other.test_fingerprint
    assert first.fingerprint != other.fingerprint


def test_another_split_seed_tests_on_other_documents() -> None:
    plans = [WindowPlan(length=8, calibration=2, selection=2, test=3, split_seed=seed) for seed in (0, 1)]
    first, second = (make_splits(numbered(60), PLAIN, plan) for plan in plans)
    assert first.test_fingerprint != second.test_fingerprint


def test_methods_get_no_test_windows() -> None:
    splits = make_splits(numbered(60), PLAIN, SMALL).for_methods()
    assert len(splits.test) == 0
    assert len(splits.selection) == 2


def test_the_shipped_text_is_enough_for_the_default_plan() -> None:
    splits = make_splits(shipped_corpus(), PLAIN, WindowPlan())
    assert splits.split_by == "source"
    assert splits.calibration.numel() >= 1000
    assert splits.test.numel() >= 8000
    assert splits.describe()["windows"]["test"] == [16, 512]


def test_a_foreign_tokenizer_is_refused() -> None:
    encoder = Encoder(toy_tokenizer(), vocabulary=TOY_VOCABULARY - 3)
    with pytest.raises(DataError, match="the tokenizer does not fit the model: it gives id"):
        all_windows(corpus(["all + of * this %" * 4]), encoder, length=8)
    with pytest.raises(DataError, match="no tokenizer"):
        text_splits(toy_model())


@pytest.mark.parametrize("fields", [{"length": 1}, {"test": -1}])
def test_a_plan_that_means_nothing_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(DataError):
        WindowPlan(**fields)


def test_too_short_for_one_window_says_how_short() -> None:
    with pytest.raises(DataError, match="toy has 5 tokens; one window of 8 is needed"):
        all_windows(corpus(["abcde"]), PLAIN, length=8)


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 30))
def test_spread_is_even_and_ordered(size: int, count: int) -> None:
    rows = spread(torch.arange(size)[:, None], count).flatten().tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(size, count)
