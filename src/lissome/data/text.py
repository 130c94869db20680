"""Windows of token ids for calibration, selection, recovery and test, cut from documents that never mix.

Documents are tokenised one by one, joined by a blank line into one stream per split, and the stream is cut into
windows of equal length; the tail is dropped. That is the protocol of SparseGPT, Wanda and GPTQ for one long text
(Frantar & Alistarh 2023, arXiv 2301.00774), with the joint of BlockPruner for many short ones.
"""

# n windows, L tokens of a window

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lissome.core.errors import DataError
from lissome.data.sources import Corpus, Document, read_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lissome.models.model import Model

Begin = Literal["auto", "start", "window"]
_SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """How much text is wanted, and in what form.

    Attributes:
        length: Tokens of a window L, default 512: as long as most answers of a small model, and cheap on a CPU.
        calibration: Windows for choosing what to change (8: 4,096 tokens).
        selection: Windows for choosing between results (8).
        test: Held-out windows (16: 8,192 tokens).
        recovery: Most windows for training, all of the calibration split up to this (1,024).
        begin: ``"start"`` puts the beginning-of-text token only where the tokenizer puts it, at the very start of
            the stream, as SparseGPT does; ``"window"`` at the start of every window; ``"auto"`` is ``"window"`` for
            a tokenizer that adds such a token by itself (Gemma, Llama-2/3), because its model never saw text without.
        split_seed: Seed of the assignment of documents to splits. Apart from the seed of the windows, so that runs
            with several calibration seeds share one test split.
    """

    length: int = 512
    calibration: int = 8
    selection: int = 8
    test: int = 16
    recovery: int = 1024
    begin: Begin = "auto"
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 2:
            raise DataError(f"a window needs at least 2 tokens (one predicts the next), got length {self.length}.")
        for name in ("calibration", "selection", "test", "recovery"):
            if getattr(self, name) < 0:
                raise DataError(f"the number of {name} windows must not be negative, got {getattr(self, name)}.")

    @property
    def needed(self) -> dict[str, int]:
        """Tokens that each split must hold."""
        counts = {"calibration": self.calibration, "selection": self.selection, "test": self.test}
        return {name: count * self.length for name, count in counts.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSplits:
    """Windows for every purpose; satisfies `lissome.core.protocols.Splits`.

    Attributes:
        calibration: LongTensor[n, L], drawn with the seed from the calibration split.
        selection: LongTensor[n, L].
        recovery: LongTensor[n, L]: the whole calibration split, in order (the trainer shuffles).
        test: LongTensor[n, L]; empty in what a method sees.
        source: What the corpus was called.
        split_by: How documents were kept apart: ``"source"`` (it says so itself), ``"documents"`` or ``"regions"``.
        fingerprint: Hash of the text, the tokenizer, the plan and the split.
        test_fingerprint: Hash of the test windows alone: equal for all calibration seeds.
    """

    calibration: Tensor
    selection: Tensor
    recovery: Tensor
    test: Tensor
    source: str
    split_by: str
    fingerprint: str
    test_fingerprint: str

    def for_methods(self) -> TextSplits:
        """Return the splits without the test windows: what is not there cannot leak."""
        return replace(self, test=self.test[:0])

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts for a manifest or report."""
        counts = {name: list(getattr(self, name).shape) for name in ("calibration", "selection", "recovery", "test")}
        facts = {"source": self.source, "split_by": self.split_by, "windows": counts}
        return {**facts, "fingerprint": self.fingerprint, "test_fingerprint": self.test_fingerprint}


def check_ids(largest: int, vocabulary: int) -> None:
    """Refuse tokens that a model does not have.

    Args:
        largest: The largest token id of a text.
        vocabulary: Number of token embeddings of the model.

    Raises:
        DataError: When the id lies outside the vocabulary: the tokenizer belongs to another model.
    """
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer does not fit the model: it gives id {largest}, the model has ids 0 to {vocabulary - 1}; "
            "use the tokenizer that came with the model."
        )


class Encoder:
    """A tokenizer as plain functions: ids without special tokens, and what belongs before a text.

    Args:
        tokenizer: A transformers tokenizer.
        vocabulary: Number of token embeddings of the model, to check ids against; None does not check.

    Raises:
        DataError: When there is no tokenizer, or its beginning-of-text token is none of the model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int | None = None) -> None:
        if tokenizer is None:
            raise DataError("the model has no tokenizer; give a folder that holds one, or windows of token ids.")
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        bare, full = self._ids("a", special=False), self._ids("a", special=True)
        starts = (k for k in range(len(full) - len(bare) + 1) if full[k : k + len(bare)] == bare)
        self.prefix: list[int] = full[: next(starts, 0)]
        if vocabulary is not None:
            check_ids(max(self.prefix, default=0), vocabulary)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # `verbose=False`: the stream is longer than the model's context on purpose.
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens.

        Raises:
            DataError: When an id lies outside the model's vocabulary: the tokenizer belongs to another model.
        """
        ids = self._ids(text, special=False)
        if self._vocabulary is not None:
            check_ids(max(ids, default=0), self._vocabulary)
        return ids

    def windows(self, ids: Sequence[int], length: int, begin: Begin) -> Tensor:
        """Cut a stream into windows LongTensor[n, L]; the tail is dropped, the prefix goes where `begin` says."""
        each = begin == "window" or (begin == "auto" and bool(self.prefix))
        prefix = torch.tensor(self.prefix, dtype=torch.long)
        stream = torch.tensor(ids, dtype=torch.long)
        if not each:
            stream = torch.cat([prefix, stream])
            return stream[: len(stream) // length * length].view(-1, length)
        body = length - len(prefix)
        rows = stream[: len(stream) // body * body].view(-1, body)
        return torch.cat([prefix.expand(len(rows), -1), rows], dim=1)


def text_splits(
    model: Model, source: Corpus | str | Path | None = None, plan: WindowPlan | None = None, *, seed: int = 0
) -> TextSplits:
    """Read text and cut it for a model; see `make_splits`."""
    corpus = source if isinstance(source, Corpus) else read_corpus(source, tokenizer=model.tokenizer)
    return make_splits(corpus, Encoder(model.tokenizer, model.anatomy.vocabulary), plan or WindowPlan(), seed=seed)


def make_splits(corpus: Corpus, encoder: Encoder, plan: WindowPlan, *, seed: int = 0) -> TextSplits:
    """Cut a corpus into disjoint splits of windows.

    A corpus that says what belongs where (the shipped text) is taken at its word. Otherwise whole documents are
    dealt out, shuffled by `plan.split_seed`; when there are too few for that, the text is cut into three contiguous
    regions: calibration first, test last.

    Args:
        corpus: The text.
        encoder: The tokenizer.
        plan: How many windows of what length.
        seed: Chooses the calibration windows, and nothing else.

    Raises:
        DataError: When the text is too short; says how many tokens there are and how many are needed.
    """
    streams, split_by = _streams(corpus, encoder, plan)
    found = {name: encoder.windows(stream, plan.length, plan.begin) for name, stream in streams.items()}
    pool = found["calibration"]
    if any(len(found[name]) * plan.length < tokens for name, tokens in plan.needed.items()):
        raise DataError(_too_short(corpus, streams, plan))
    chosen = sorted(Random(seed).sample(range(len(pool)), plan.calibration))
    parts = {
        "calibration": pool[chosen],
        "selection": spread(found["selection"], plan.selection),
        "recovery": pool[: plan.recovery],
        "test": spread(found["test"], plan.test),
    }
    facts = json.dumps([corpus.sha256, asdict(plan), split_by, seed])
    fingerprint = hashlib.sha256(facts.encode() + b"".join(map(_bytes, parts.values()))).hexdigest()
    return TextSplits(
        **parts,
        source=corpus.name,
        split_by=split_by,
        fingerprint=fingerprint,
        test_fingerprint=windows_sha256(parts["test"]),
    )


def all_windows(
    corpus: Corpus, encoder: Encoder, *, length: int = 512, begin: Begin = "auto", limit: int | None = None
) -> Tensor:
    """Return a whole corpus, in order, as windows LongTensor[n, L]; at most `limit`, evenly spaced.

    Raises:
        DataError: When there is not one whole window; says how many tokens there are.
    """
    stream = _join(encoder, [encoder.encode(document.text) for document in corpus.documents])
    windows = encoder.windows(stream, length, begin)
    if not len(windows):
        raise DataError(f"{corpus.name} has {len(stream)} tokens; one window of {length} is needed: give more text.")
    return windows if limit is None else spread(windows, limit)


def spread(windows: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced windows (all of them when there are no more), in order."""
    if count >= len(windows):
        return windows
    return windows[[index * len(windows) // count for index in range(count)]]


def windows_sha256(windows: Tensor) -> str:
    """Return the hash of windows of token ids, hexadecimal."""
    return hashlib.sha256(_bytes(windows)).hexdigest()


def _bytes(windows: Tensor) -> bytes:
    return repr(tuple(windows.shape)).encode() + windows.contiguous().numpy().tobytes()


def _join(encoder: Encoder, documents: Sequence[list[int]]) -> list[int]:
    joint = encoder.encode(_SEPARATOR)
    stream: list[int] = []
    for index, ids in enumerate(documents):
        stream += (joint if index else []) + ids
    return stream


def _streams(corpus: Corpus, encoder: Encoder, plan: WindowPlan) -> tuple[dict[str, list[int]], str]:
    """Return the token stream of each split, and how they were kept apart."""
    if all(document.split for document in corpus.documents):
        by_split: dict[str, list[list[int]]] = {"calibration": [], "selection": [], "test": []}
        for document in corpus.documents:
            by_split[str(document.split)].append(encoder.encode(document.text))
        return {name: _join(encoder, documents) for name, documents in by_split.items()}, "source"
    dealt = _deal(corpus.documents, encoder, plan)
    if dealt is not None:
        return dealt, "documents"
    return _regions(_join(encoder, list(_encoded(corpus.documents, encoder, plan))), plan), "regions"


def _encoded(documents: Sequence[Document], encoder: Encoder, plan: WindowPlan) -> Iterator[list[int]]:
    """Encode documents until every split can be filled twice over; more of a huge corpus would not be used."""
    enough = 2 * (sum(plan.needed.values()) + plan.recovery * plan.length)
    for document in documents:
        ids = encoder.encode(document.text)
        yield ids
        enough -= len(ids)
        if enough <= 0:
            return


def _deal(documents: Sequence[Document], encoder: Encoder, plan: WindowPlan) -> dict[str, list[int]] | None:
    """Deal out whole documents: test and selection get what they need, calibration the rest; None when it fails."""
    order = list(documents)
    Random(plan.split_seed).shuffle(order)
    encoded = _encoded(order, encoder, plan)
    streams: dict[str, list[int]] = {}
    for name in ("test", "selection"):
        taken: list[list[int]] = []
        while sum(map(len, taken)) < plan.needed[name] and (ids := next(encoded, None)) is not None:
            taken.append(ids)
        streams[name] = _join(encoder, taken)
    streams["calibration"] = _join(encoder, list(encoded))
    return streams if all(len(streams[name]) >= tokens for name, tokens in plan.needed.items()) else None


def _regions(stream: list[int], plan: WindowPlan) -> dict[str, list[int]]:
    """Cut one stream: test at its end, selection before it, calibration (and recovery) from its start.

    A window's worth of tokens between regions is given up where there is room, so that no sentence spans two.
    """
    need = plan.needed
    gap = plan.length if len(stream) >= sum(need.values()) + 3 * plan.length else 0
    last = max(0, len(stream) - need["test"])
    middle = max(0, last - gap - need["selection"])
    return {
        "calibration": stream[: max(0, middle - gap)],
        "selection": stream[middle : max(0, last - gap)],
        "test": stream[last:],
    }


def _too_short(corpus: Corpus, streams: dict[str, list[int]], plan: WindowPlan) -> str:
    need = ", ".join(f"{name} {tokens:,}" for name, tokens in plan.needed.items())
    total = sum(map(len, streams.values()))
    return (
        f"{corpus.name} is too short: {total:,} tokens found, {sum(plan.needed.values()):,} needed ({need}); "
        "give more text, or fewer or shorter windows."
    )
