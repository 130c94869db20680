"""The verb `eval` where nested weights take part: every precision is scored by the engine, on the same windows."""

# n windows, T tokens of a window, V vocabulary

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lissome.core.errors import DataError, NumericsError
from lissome.core.events import EventStream
from lissome.core.metrics import Better, Metric
from lissome.data.sources import SHIPPED, read_corpus
from lissome.data.text import Encoder, WindowPlan, all_windows, make_splits
from lissome.engine.decode import Decoder, DecoderSettings
from lissome.engine.decode.decoder import Floats
from lissome.engine.decode.judge import log_softmax
from lissome.engine.evaluate import MOST_WINDOWS, versions
from lissome.engine.forward import last_states
from lissome.engine.scoring import bounded_exp
from lissome.models.model import Model
from lissome.models.nested.folder import NestedFolder, nested_folder
from lissome.models.nested.text import TextCodec
from lissome.ops.stats import Interval, paired_bootstrap
from lissome.pipeline.loading import load
from lissome.pipeline.reports import Figure, Row, TableReport

_PIECE = 128  # tokens whose logits are held at a time

Tokens = NDArray[np.int64]


class _Entrant(Protocol):
    """What is scored: its name, and logits [T', V] of a window, piece by piece."""

    name: str

    def pieces(self, window: Tokens) -> Iterator[Floats]: ...


@dataclass
class _Scores:
    """Means of every window so far."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)


def evaluate_nested(
    target: Any, against: Any, *, text: str | Path | None, seed: int, events: EventStream
) -> TableReport:
    """Score nested weights at every precision, the highest first, and what they are compared with.

    The first row is the original, or else the highest precision: all others are compared with it, token by token.

    Args:
        target: Anything `load` reads, or nested weights.
        against: The original to compare with; likewise.
        text: As in `lissome.pipeline.evaluate`.
        seed: Of the bootstrap.
        events: Where progress goes: a stage ``evaluate`` counted in windows.

    Raises:
        DataError: When the text is too short, or the tokenizers differ.
        NumericsError: When a loss is NaN or infinite.
        ConfigError: When there are no compiled kernels.
        LissomeError: When a model cannot be read.
    """
    start, codec = time.monotonic(), _codec(target if nested_folder(target) is not None else against)
    entrants = [one for given in (against, target) if given is not None for one in _entrants(given, codec, events)]
    windows = _windows(codec, entrants[0].tokens, text)
    scores = [_Scores() for _ in entrants]
    with events.stage("evaluate", len(windows)) as stage:
        for at, window in enumerate(windows):
            _score(entrants, scores, window, at)
            stage.advance(1, ppl=bounded_exp(float(np.mean(scores[-1].nll))))
    first = scores[0]
    return TableReport(
        rows=tuple(
            Row(name=one.name, figures=_figures(found, None if found is first else first, seed))
            for one, found in zip(entrants, scores, strict=True)
        ),
        notes=("text is read here, not written: what bits a schedule gives new tokens does not show",),
        versions=versions(),
        seconds=time.monotonic() - start,
    )


class _Own:
    """Nested weights at one precision."""

    def __init__(self, decoder: Decoder, sequence: int, bits: int, name: str) -> None:
        self._decoder, self._sequence, self._bits, self.name = decoder, sequence, bits, name
        self.tokens = decoder.spec.vocabulary

    def pieces(self, window: Tokens) -> Iterator[Floats]:
        self._decoder.seq_rm(self._sequence)
        for first in range(0, len(window), _PIECE):
            piece = window[first : first + _PIECE]
            at = range(first, first + len(piece))
            yield self._decoder.forward(
                piece.astype(np.int32), at, self._sequence, self._bits, wanted=range(len(piece))
            )


class _Other:
    """A model in torch."""

    def __init__(self, model: Model) -> None:
        self._model, self.name, self.tokens = model, model.name, model.anatomy.vocabulary

    @torch.no_grad()
    def pieces(self, window: Tokens) -> Iterator[Floats]:
        hidden = last_states(self._model, torch.from_numpy(window)[None])[0]
        for piece in hidden.split(_PIECE):
            logits: Floats = self._model.anatomy.head(piece).float().numpy()
            yield logits


def _entrants(given: Any, codec: TextCodec, events: EventStream) -> Iterator[_Own | _Other]:
    place = nested_folder(given)
    if place is None:
        model = load(given, events=events)
        model.anatomy.require("causal-lm", "scoring text")
        if model.tokenizer is not None and model.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise DataError(
                f"{model.name} has another tokenizer than the nested weights; perplexity per token compares models of "
                "one tokenizer only. Evaluate them apart."
            )
        yield _Other(model)
        return
    folder = NestedFolder.open(place)
    if folder.text.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
        raise DataError("the two have different tokenizers; evaluate them apart.")
    precisions = folder.file.layout.precisions[::-1]
    cells = len(precisions) * WindowPlan().length
    decoder = Decoder(folder.file, DecoderSettings(cells=cells, threads=torch.get_num_threads()))
    for sequence, bits in enumerate(precisions):
        yield _Own(decoder, sequence, bits, f"{given} at {bits} bits")


def _codec(given: Any) -> TextCodec:
    place = nested_folder(given)
    assert place is not None
    return NestedFolder.open(place).text


class _Tokenizer:
    """A codec as the callable that `Encoder` takes."""

    def __init__(self, codec: TextCodec) -> None:
        self._inner = codec.tokenizer

    def __call__(self, text: str, *, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)}


def _windows(codec: TextCodec, vocabulary: int, text: str | Path | None) -> Sequence[Tokens]:
    """The windows that `lissome.engine.evaluate` takes of the same text."""
    encoder = Encoder(_Tokenizer(codec), vocabulary)  # type: ignore[arg-type]
    if text is None or text == SHIPPED:
        found = make_splits(read_corpus(None), encoder, WindowPlan()).test
    else:
        found = all_windows(read_corpus(text), encoder, limit=MOST_WINDOWS)
    return [row.numpy() for row in found]


def _score(entrants: Sequence[_Own | _Other], scores: Sequence[_Scores], window: Tokens, number: int) -> None:
    """Add one window's means; the first entrant's logits are held for the others."""
    nll, kl, same = (np.zeros(len(entrants)) for _ in range(3))
    steps = len(window) - 1
    for at, pieces in enumerate(zip(*(one.pieces(window) for one in entrants), strict=True)):
        targets = window[at * _PIECE + 1 : at * _PIECE + 1 + len(pieces[0])]
        base = log_softmax(pieces[0][: len(targets)])
        for index, logits in enumerate(pieces):
            own = base if index == 0 else log_softmax(logits[: len(targets)])
            nll[index] -= own[np.arange(len(targets)), targets].sum(dtype=np.float64)
            if index:
                kl[index] += float((np.exp(base) * (base - own)).sum(dtype=np.float64))
                same[index] += float((base.argmax(-1) == own.argmax(-1)).sum())
    for index, one in enumerate(scores):
        if not np.isfinite(nll[index]):
            raise NumericsError(
                f"the loss of {entrants[index].name} on window {number} is no number; check its weights."
            )
        one.nll.append(nll[index] / steps)
        one.kl.append(kl[index] / steps)
        one.agreement.append(same[index] / steps)


def _figures(own: _Scores, base: _Scores | None, seed: int) -> dict[str, Figure]:
    ppl = _metric("ppl", _exp(paired_bootstrap(own.nll, seed=seed)))
    if base is None:
        return {"ppl": Figure(metric=ppl)}
    ratio = _exp(paired_bootstrap(np.subtract(own.nll, base.nll), seed=seed))
    kl = _metric("kl", paired_bootstrap(own.kl, seed=seed), unit="nats")
    same = _metric("agreement", paired_bootstrap(own.agreement, seed=seed), better="higher")
    return {
        "ppl": Figure(metric=ppl, ratio=ratio.value, ratio_low=ratio.low, ratio_high=ratio.high),
        "kl": Figure(metric=kl),
        "agreement": Figure(metric=same),
    }


def _exp(found: Interval) -> Interval:
    value, low, high = (bounded_exp(one) for one in (found.value, found.low, found.high))
    return Interval(value=value, se=value * found.se, low=low, high=high, n=found.n)


def _metric(name: str, found: Interval, *, unit: str = "", better: Better = "lower") -> Metric:
    return Metric(name=name, value=found.value, unit=unit, better=better, low=found.low, high=found.high, n=found.n)
