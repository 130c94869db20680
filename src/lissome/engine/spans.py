"""Answers as spans of a text, as an objective: where they begin and end, by a head that scores every token for both."""

# N questions, B questions of a batch, T tokens

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lissome.core.errors import DataError, NumericsError
from lissome.data.questions import Question, Questions, exact, overlap
from lissome.engine.classify import trimmed
from lissome.engine.elastic import Elastic, lesson_loss
from lissome.engine.exampled import ExampleSplits, OfExamples
from lissome.engine.forward import quick_attention
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.search.found import Split
from lissome.engine.stream import Inputs
from lissome.models.labels import head_parameters
from lissome.models.model import Model

_SHARES = {"recovery": 0.6, "search": 0.1, "selection": 0.1, "test": 0.2}
_LENGTH = 256  # tokens of a question and its text; what is longer is cut, and answers that are cut off are not found
_ASKED = 2  # a question may fill so much of that, one part in two; what is longer is cut
_LONGEST = 30  # tokens of an answer, as usual


@dataclass(frozen=True, eq=False)
class Asked:
    """Tokenised questions with their texts, as examples for the training loop.

    Attributes:
        ids: LongTensor[N, T], padded on the right.
        mask: LongTensor[N, T], 0 for padding.
        kinds: LongTensor[N, T], 1 for tokens of the text.
        spans: LongTensor[N, 2]: first and last token of the first answer; both 0 where the text does not answer it, or
            the answer was cut off.
        places: LongTensor[N, T, 2]: first and one past the last character of each token of the text.
        rows: The questions.
    """

    ids: Tensor
    mask: Tensor
    kinds: Tensor
    spans: Tensor
    places: Tensor
    rows: tuple[Question, ...]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids, mask, kinds and span of one question."""
        return self.ids[index], self.mask[index], self.kinds[index], self.spans[index]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each question with its text, without padding, LongTensor[N]."""
        return self.mask.sum(1)

    def numel(self) -> int:
        """Return the number of tokens, padding among them."""
        return self.ids.numel()

    def some(self, indices: Sequence[int]) -> Asked:
        """Return the questions at some positions."""
        at = torch.tensor(list(indices), dtype=torch.long)
        parts = (self.ids[at], self.mask[at], self.kinds[at], self.spans[at], self.places[at])
        return Asked(*parts, tuple(self.rows[int(each)] for each in at))

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield ids, masks and kinds of some questions at a time, as they stand."""
        yield from zip(*(each.split(size) for each in (self.ids, self.mask, self.kinds)), strict=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpanSplits(ExampleSplits[Asked]):
    """Questions for every purpose."""

    noun: ClassVar[str] = "questions"

    @property
    def calibration(self) -> Tensor:
        """Ids that calibration may look at, LongTensor[N, T]."""
        return self.recovery.ids


def ask(model: Model, data: Questions) -> Asked:
    """Tokenise questions for a model.

    Raises:
        DataError: When the model's tokenizer cannot pad, or cannot tell where its tokens stand.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None or tokenizer.pad_token_id is None or not tokenizer.is_fast:
        raise DataError(f"{model.name} has no fast tokenizer that can pad; give a folder with a tokenizer.json.")
    most = min(_LENGTH, int(getattr(model.module.config, "max_position_embeddings", _LENGTH)))
    found = tokenizer(
        [_short(tokenizer, row.text, most // _ASKED) for row in data.rows], [row.context for row in data.rows],
        truncation="only_second", max_length=most, padding=True, padding_side="right", return_offsets_mapping=True,
        return_tensors="pt",
    )  # fmt: skip
    kinds = torch.tensor([[int(kind == 1) for kind in found.sequence_ids(at)] for at in range(len(data))])
    places = found["offset_mapping"] * kinds.unsqueeze(-1)
    spans = torch.tensor([_span(row, places[at], kinds[at]) for at, row in enumerate(data.rows)])
    return Asked(found["input_ids"], found["attention_mask"], kinds, spans, places, data.rows)


def _short(tokenizer: Any, text: str, most: int) -> str:
    """The text up to a number of tokens; a token is a byte at least, so few texts are looked at."""
    if len(text.encode()) <= most:
        return text
    places = tokenizer(text, truncation=True, max_length=most, return_offsets_mapping=True)["offset_mapping"]
    return text[: max(end for _, end in places)]


def _span(row: Question, places: Tensor, kinds: Tensor) -> tuple[int, int]:
    if not row.answers:
        return 0, 0
    start, text = row.answers[0]
    inside = (kinds == 1) & (places[:, 1] > start) & (places[:, 0] < start + len(text))
    tokens = inside.nonzero().flatten().tolist()
    whole = tokens and int(places[tokens[-1], 1]) >= start + len(text)
    return (tokens[0], tokens[-1]) if whole else (0, 0)


def span_splits(model: Model, data: Questions) -> SpanSplits:
    """Deal questions out by articles and paragraphs and tokenise them; the split does not depend on a job's seed.

    Raises:
        DataError: When there are too few for every part, or the model's tokenizer does not suit.
    """
    parts = {name: ask(model, part) for name, part in data.parts(_SHARES).items()}
    digest = hashlib.sha256(json.dumps([data.sha256, _SHARES]).encode())
    for part in parts.values():
        digest.update(part.ids.numpy().tobytes())
    return SpanSplits(source=data.name, fingerprint=digest.hexdigest(), classes=(), **parts)


def span_judge(model: Model, data: Questions) -> Spans:
    """Return an objective that judges a model on all questions.

    Raises:
        DataError: When the model's tokenizer does not suit.
    """
    return Spans(SpanSplits.judging(ask(model, data), source=data.name))


@dataclass(frozen=True)
class Spans(OfExamples):
    """Questions, and the cross entropy of where answers begin and end.

    Figures are the F1 of words and exact matches, as SQuAD counts them, the loss, and the share of questions that are
    answered at all: where texts leave some unanswered, a model that never answers has an F1 that looks like one.
    """

    data: SpanSplits
    size: ClassVar[int] = 8
    names: ClassVar[tuple[str, ...]] = ("f1", "exact", "loss", "answered")

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` questions for calibration."""
        return [_inputs(ids, mask, kinds) for ids, mask, kinds in self.spread(count).batches(self.size)]

    def task(self, model: Model) -> Task:
        """Return the task of the training loop; the head learns with the adapters."""
        for parameter in head_parameters(model):
            parameter.requires_grad_(True)

        def loss(module: Any, batch: Batch) -> Tensor:
            return _judge(_scores(module, batch), batch)

        return Task(module=model.module, loss=loss, data=self.data.recovery)

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Return the loss with a teacher's opinion of both ends, their mean."""
        asked = teacher if isinstance(teacher, Elastic) else teacher.module
        return lesson_loss(_scores, _judge, asked, share=share, temperature=temperature)

    @torch.no_grad()
    def each(self, model: Model, split: Split) -> dict[str, Tensor]:
        """F1, exact match and loss of every question, and whether it is answered with a span."""
        asked: Asked = getattr(self.data, split)
        device = next(model.module.parameters()).device
        found = []
        for ids, mask, kinds in asked.batches(self.size):
            result: Any = model.module(**_inputs(ids.to(device), mask.to(device), kinds.to(device)))
            both = torch.stack([result.start_logits, result.end_logits], 1).float().cpu()
            found.append(F.pad(both, (0, ids.shape[1] - both.shape[2]), value=torch.finfo(torch.float32).min))
        scores = torch.cat(found)
        if not torch.isfinite(scores).all():
            raise NumericsError("a token has a score that is NaN or infinite; check the weights, or use float32.")
        said = [answer(row, asked, at, scores[at]) for at, row in enumerate(asked.rows)]
        wanted = [[text for _, text in row.answers] for row in asked.rows]
        return {
            "f1": torch.tensor([overlap(one, right) for one, right in zip(said, wanted, strict=True)]),
            "exact": torch.tensor([exact(one, right) for one, right in zip(said, wanted, strict=True)]),
            "loss": _of(scores, asked.spans),
            "answered": torch.tensor([float(bool(one)) for one in said]),
        }


def answer(row: Question, asked: Asked, at: int, scores: Tensor) -> str:
    """Return the likeliest span of a text, of 30 tokens at most; empty when the first token is likelier.

    Args:
        row: The question.
        asked: What holds it.
        at: Its place there.
        scores: Of both ends, FloatTensor[2, T].
    """
    text = asked.kinds[at] == 1
    first, last = (each.masked_fill(~text, -torch.inf) for each in scores)
    pairs = (first.unsqueeze(1) + last.unsqueeze(0)).triu()
    pairs = pairs.masked_fill(torch.ones_like(pairs, dtype=torch.bool).tril(-1), -torch.inf)
    pairs = pairs.masked_fill(torch.ones_like(pairs, dtype=torch.bool).triu(_LONGEST), -torch.inf)
    start, end = divmod(int(pairs.argmax()), pairs.shape[1])
    if not text.any() or float(scores[0, 0] + scores[1, 0]) > float(pairs[start, end]):
        return ""
    return row.context[int(asked.places[at, start, 0]) : int(asked.places[at, end, 1])]


def _inputs(ids: Tensor, mask: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    inputs = trimmed(ids, mask)
    return {**inputs, "token_type_ids": kinds[:, : inputs["input_ids"].shape[1]]}


def _scores(module: Any, batch: Batch) -> Tensor:
    """Scores of both ends [B, 2, T], T being the batch's longest."""
    ids, mask, kinds, _ = batch.examples
    with quick_attention(ids.shape[1], ids.device):
        result = module(**_inputs(ids, mask, kinds))
    return torch.stack([result.start_logits, result.end_logits], 1)


def _judge(scores: Tensor, batch: Batch) -> Tensor:
    return _of(scores.float(), batch.examples[3])


def _of(scores: Tensor, spans: Tensor) -> Tensor:
    """Mean cross entropy of both ends [B]: [B, 2, T] and [B, 2]."""
    each: Tensor = F.cross_entropy(scores.flatten(0, 1), spans.flatten(), reduction="none")
    return each.view(-1, 2).mean(1)
