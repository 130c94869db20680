"""Zero-shot choice accuracy through lm-evaluation-harness (lm_eval 0.4.13), offline and without writing a file.

The harness decides prompts, token borders and metrics; this file gives it questions from memory and a model that
projects onto the vocabulary only where an option is scored. That saves most of the time for a model whose embedding
is most of it, and all of the [batch, length, vocabulary] memory.
"""

# B requests of a batch, T tokens, D residual width, N scored tokens of a batch

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import DataError, NumericsError
from lissome.core.events import EventStream, Stage
from lissome.core.optional import optional_import
from lissome.data.choice import Question
from lissome.data.text import check_ids
from lissome.engine.forward import last_states
from lissome.models.model import Model
from lissome.ops.losses import rows_scores

_BATCH_TOKENS = 1024  # as in `engine.walk`: full matrix speed on a CPU, little padding after sorting by length
_CONTEXT = 2048  # tokens when a configuration names no limit

Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), context ids, continuation ids), as the harness makes them."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How a model did on the questions of one task, question by question.

    Attributes:
        indices: Line of each question in its file.
        acc: Whether the likeliest option is right, 0 or 1 per question.
        acc_norm: The same for log-likelihood divided by the characters of the option.
    """

    indices: tuple[int, ...]
    acc: tuple[int, ...]
    acc_norm: tuple[int, ...]

    def of(self, score: str) -> tuple[int, ...]:
        """Return the answers by name of the score, ``acc`` or ``acc_norm``."""
        scores: tuple[int, ...] = getattr(self, score)
        return scores


def answer(model: Model, name: str, questions: Sequence[Question], *, events: EventStream | None = None) -> Answers:
    """Let a model answer multiple-choice questions.

    Args:
        model: The model, with its tokenizer.
        name: What the task is called in events.
        questions: What to ask; all of one kind (options in the contexts, or after them).
        events: Where progress goes: a stage ``task NAME`` counted in scored options.

    Raises:
        DataError: When there are no questions, or the model has no tokenizer, or one of another model.
        NumericsError: When a log-likelihood is NaN.
        MissingExtraError: When lm-eval is not installed.
    """
    if not questions:
        raise DataError(f"the task {name} has no questions.")
    if model.tokenizer is None:
        raise DataError("choice tasks need the model's tokenizer; give a folder that holds one.")
    harness = _harness()
    task = _task(name, questions)
    with (events or EventStream()).stage(f"task {name}", sum(len(q.options) for q in questions)) as stage:
        lm = _language_model()(model, stage)
        result = harness.evaluate(lm, {"tasks": {name: task}, "groups": {}}, bootstrap_iters=0, log_samples=True)
    samples = sorted(result["samples"][name], key=lambda sample: int(sample["doc_id"]))
    return Answers(
        indices=tuple(question.index for question in questions),
        acc=tuple(int(sample["acc"]) for sample in samples),
        acc_norm=tuple(int(sample["acc_norm"]) for sample in samples),
    )


@cache
def _harness() -> Any:
    """Import lm-eval's evaluator, offline: its libraries read these variables when they are first imported."""
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return optional_import("lm_eval.evaluator", extra="eval")


def _task(name: str, questions: Sequence[Question]) -> Any:
    """Build the harness's task around questions in memory."""
    tasks = optional_import("lm_eval.api.task", extra="eval")
    datasets = optional_import("datasets", extra="eval")
    if len({question.partial for question in questions}) > 1:
        raise DataError(f"the task {name} mixes questions whose options stand before and after the blank.")
    rows = [
        {
            "context": question.contexts[0],
            "contexts": list(question.contexts),
            "option": question.options[0],
            "options": list(question.options),
            "gold": question.gold,
        }
        for question in questions
    ]

    class InMemory(tasks.ConfigurableTask):  # type: ignore[misc,name-defined]
        def download(self, *_arguments: Any, **_options: Any) -> None:
            self.dataset = {"test": datasets.Dataset.from_list(rows)}

        def build_all_requests(self, **options: Any) -> None:
            with contextlib.redirect_stderr(io.StringIO()):  # the harness draws a bar of its own here
                super().build_all_requests(**options)

    # Partial evaluation: the text is the index of the right context, the target is the common continuation.
    partial = questions[0].partial
    form = {
        "doc_to_text": "gold" if partial else "{{context}}",
        "doc_to_choice": "contexts" if partial else "options",
        "doc_to_target": "option" if partial else "gold",
    }
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    config = {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1.0},
        **form,
    }
    return InMemory(config=config)


@cache
def _language_model() -> Any:
    """Return the class of models that the harness can ask, made when lm-eval is first needed."""
    base = optional_import("lm_eval.api.model", extra="eval").TemplateLM

    class ModuleLM(base):  # type: ignore[misc,valid-type]
        """A `Model` as the harness sees it."""

        backend = "causal"

        def __init__(self, model: Model, stage: Stage) -> None:
            super().__init__()
            self.tokenizer: Any = model.tokenizer
            self._model, self._stage = model, stage
            self.max_length = int(getattr(model.module.config, "max_position_embeddings", _CONTEXT))

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            begin = self.tokenizer.bos_token_id
            return self.eot_token_id if begin is None else int(begin)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_options: Any) -> list[int]:
            """Encode; special tokens go where the tokenizer itself puts them, unless told."""
            options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            ids = list(self.tokenizer(string, verbose=False, **options)["input_ids"])
            check_ids(max(ids, default=0), self._model.anatomy.vocabulary)
            return ids

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return scores

        def _loglikelihood_tokens(self, requests: list[Request], **_options: Any) -> list[tuple[float, bool]]:
            return loglikelihoods(self._model, [r[1:] for r in requests], self.max_length, self._stage)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("choice tasks score options only")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError("choice tasks score options only")

    return ModuleLM


@torch.no_grad()
def loglikelihoods(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], max_length: int, stage: Stage | None = None
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each continuation after its context, and whether greedy decoding would give it.

    Args:
        model: The model.
        pairs: Token ids (context, continuation), neither empty; cut on the left to `max_length` inputs.
        max_length: Most input tokens of the model.
        stage: Where progress goes, one step per pair.

    Raises:
        DataError: When a continuation is longer than `max_length`.
        NumericsError: When a log-likelihood is NaN.
    """
    longest = max((len(continuation) for _, continuation in pairs), default=0)
    if longest > max_length:
        raise DataError(
            f"an answer has {longest} tokens, but {model.name} reads {max_length} at most; "
            "choose another task or model."
        )
    inputs = [((*context, *continuation)[:-1][-max_length:], len(continuation)) for context, continuation in pairs]
    # Options of one token share their input with the other options of the question: it is run once.
    shared: dict[tuple[int, ...], list[int]] = {}
    for index, (ids, _) in enumerate(inputs):
        shared.setdefault(ids, []).append(index)
    results: list[tuple[float, bool]] = [(math.nan, False)] * len(pairs)
    for batch in _batches(sorted(shared, key=lambda ids: (-len(ids), ids))):
        hidden = last_states(model, _padded(batch))
        wanted = [(row, index) for row, ids in enumerate(batch) for index in shared[ids]]
        spans = [hidden[row, len(batch[row]) - inputs[i][1] : len(batch[row])] for row, i in wanted]
        targets = torch.tensor([token for _, i in wanted for token in pairs[i][1]], device=hidden.device)
        losses, firsts = rows_scores(torch.cat(spans), targets, model.anatomy.head)
        if not torch.isfinite(losses).all():
            raise NumericsError("a log-likelihood is NaN or infinite; check the weights, or use float32.")
        counts = [len(span) for span in spans]
        for (_, i), loss, first in zip(
            wanted, torch.split(losses.double(), counts), torch.split(firsts, counts), strict=True
        ):
            results[i] = (-float(loss.sum()), bool(first.all()))
        if stage is not None:
            stage.advance(len(wanted))
    return results


def _batches(inputs: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Group inputs, longest first, so that a padded batch holds at most `_BATCH_TOKENS` (or one input)."""
    start = 0
    while start < len(inputs):
        size = max(1, _BATCH_TOKENS // len(inputs[start]))
        yield list(inputs[start : start + size])
        start += size


def _padded(batch: Sequence[tuple[int, ...]]) -> Tensor:
    """Pad on the right with id 0: a causal model does not see it, so no mask is needed."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, values in enumerate(batch):
        ids[row, : len(values)] = torch.tensor(values)
    return ids
