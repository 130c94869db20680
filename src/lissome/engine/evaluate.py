"""Scores a model on held-out text and choice tasks, beside a baseline on the same windows and questions.

Perplexity follows SparseGPT, Wanda and GPTQ (Frantar & Alistarh 2023, arXiv 2301.00774): windows that do not overlap,
no sliding, mean over all predicted tokens. Compression changes a model little while windows differ a lot, so
differences are taken window by window and question by question. Distance to the baseline (KL divergence per token,
share of tokens with the same first choice) is the most sensitive measure of what compression did.
"""

# n windows, B windows of a batch, T tokens of a window, D residual width

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lissome.core.errors import DataError
from lissome.core.events import EventStream
from lissome.core.metrics import Metric
from lissome.core.typed import as_json
from lissome.data.choice import Question, find_task, prompts_sha256
from lissome.data.sources import SHIPPED, Corpus, read_corpus
from lissome.data.text import Encoder, TextSplits, all_windows, text_splits, windows_sha256
from lissome.engine.classify import Encoded, OwnHead, answers
from lissome.engine.scoring import TextScores, bounded_exp, perplexity, score_text
from lissome.engine.search.goal import QUALITIES
from lissome.engine.tasks import Answers, answer
from lissome.models.labels import labels_of
from lissome.models.model import Model
from lissome.ops.stats import Interval, mcnemar_exact, mean_se, paired_bootstrap

Text = TextSplits | Corpus | Tensor | str | Path | None
"""What to measure perplexity on; see `evaluate`."""

MOST_WINDOWS = 64
"""Windows taken from a text that names no number: 32,768 tokens, an s.e. of about 2 % of the perplexity."""

_PACKAGES = ("lissome", "torch", "transformers", "lm-eval")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found.

    Attributes:
        name: What the model is called.
        metrics: The model's figures: ``ppl``, and per task ``piqa.acc`` and ``piqa.acc_norm``.
        baseline_name: What the baseline is called, when there is one.
        baseline: The baseline's figures, with the same names.
        differences: Paired with the baseline: ``log_ppl`` (nats per token, model minus baseline), ``ppl_ratio``,
            ``kl`` (KL(baseline‖model) in nats per token), ``agreement`` (share of tokens), ``piqa.acc`` …
        window_nll: Mean next-token NLL of every window, by ``model`` and ``baseline``.
        answers: Per task: the questions' lines in the file, and which were answered correctly, by whom.
        provenance: Versions, hashes of what was read, seed, and what the text was.
    """

    name: str
    metrics: tuple[Metric, ...]
    baseline_name: str | None = None
    baseline: tuple[Metric, ...] = ()
    differences: tuple[Metric, ...] = ()
    window_nll: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, name: str, of: Literal["metrics", "baseline", "differences"] = "metrics") -> Metric:
        """Return a figure by name.

        Raises:
            KeyError: When there is none of that name.
        """
        found: tuple[Metric, ...] = getattr(self, of)
        return {metric.name: metric for metric in found}[name]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields


def evaluate(  # noqa: PLR0913  all by name, all with a default
    model: Model,
    *,
    baseline: Model | None = None,
    text: Text = SHIPPED,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    events: EventStream | None = None,
    release: Callable[[Model], None] | None = None,
) -> Report:
    """Score a model, and a baseline on the same windows and questions.

    Args:
        model: The model.
        baseline: What to compare it with, usually the original; of the same tokenizer.
        text: ``"shipped"`` for the test windows of the shipped text; `TextSplits` for theirs; a file, a `datasets`
            id or a Corpus for at most 64 evenly spaced windows of all of it; windows LongTensor[n, T]; None for none.
        tasks: Names of choice tasks, e.g. ``("piqa", "boolq")``.
        limit: Questions per task, drawn with `seed`; all without one.
        seed: Seed of the draw and of the bootstrap.
        events: Where progress goes.
        release: Called with a model whose blocks are not needed for now (`lissome.models.paging.park`, say): the two
            run one after the other.

    Raises:
        DataError: When the text is too short, or the tokenizers differ.
        NumericsError: When a loss is NaN or infinite.
        AssetError: When the data of a task is not on this machine.
        UnknownNameError: When there is no task of a name.
        UnsupportedModelError: When the model is not a causal language model.
    """
    model.anatomy.require("causal-lm", "scoring text")
    chosen = [find_task(name) for name in tasks]  # a typo is found before the work
    questions = {task.name: task.questions(limit=limit, seed=seed) for task in chosen}
    if baseline is not None:
        _same_tokens(model, baseline)
    stream = events or EventStream()
    parts = _Parts()
    if text is not None:
        windows, facts = _windows(model, text)
        parts.provenance["text"] = facts | {"shape": list(windows.shape), "windows_sha256": windows_sha256(windows)}
        _add_text(parts, score_text(model, windows, baseline=baseline, events=stream, release=release), seed)
    for task in chosen:
        mine = answer(model, task.name, questions[task.name], events=stream)
        theirs = None if baseline is None else answer(baseline, task.name, questions[task.name], events=stream)
        _add_task(parts, task.name, mine, theirs, seed)
        parts.provenance.setdefault("tasks", {})[task.name] = _task_facts(task.sha256, task.score, questions[task.name])
    return Report(
        name=model.name,
        metrics=tuple(parts.metrics),
        baseline_name=None if baseline is None else baseline.name,
        baseline=tuple(parts.baseline),
        differences=tuple(parts.differences),
        window_nll=parts.window_nll,
        answers=parts.answers,
        provenance=parts.provenance | {"seed": seed, "threads": torch.get_num_threads(), "versions": versions()},
    )


def evaluate_labels(
    model: Model,
    data: Encoded,
    *,
    baseline: Model | None = None,
    seed: int = 0,
    events: EventStream | None = None,
) -> Report:
    """Score how well a model puts texts into its classes, beside a baseline on the same texts.

    Args:
        model: A model with named classes.
        data: Texts, tokenised for it; their labels are places among those classes.
        baseline: Another model of the same classes and the same tokenizer.
        seed: Of the bootstrap.
        events: Where progress goes: a stage ``evaluate`` counted in texts of either model.

    Raises:
        NumericsError: When a score is NaN or infinite.
        UnsupportedModelError: When a model has no named classes.
    """

    def each(one: Model) -> dict[str, Tensor]:
        found = answers(OwnHead(one), data)
        right = (found.argmax(-1) == data.labels).double()
        return {"accuracy": right, "loss": cross_entropy(found, data.labels, reduction="none")}

    facts = {"texts": len(data), "labels": list(labels_of(model)), "most_frequent": _most_frequent(data.labels)}
    return evaluate_examples(model, each, count=len(data), facts=facts, baseline=baseline, seed=seed, events=events)


def evaluate_examples(
    model: Model,
    each: Callable[[Model], Mapping[str, Tensor]],
    *,
    count: int,
    facts: Mapping[str, Any],
    baseline: Model | None = None,
    seed: int = 0,
    events: EventStream | None = None,
) -> Report:
    """Score a model on separate examples, beside a baseline on the same ones.

    Args:
        model: The model.
        each: Gives figures of every example by name, Tensor[N].
        count: Number of examples N.
        facts: What a report says of them.
        baseline: Another model that learnt the same.
        seed: Of the bootstrap.
        events: Where progress goes: a stage ``evaluate`` counted in examples of either model.

    Raises:
        NumericsError: When a figure is NaN or infinite.
    """
    models = {"model": model} if baseline is None else {"model": model, "baseline": baseline}
    found = {}
    with (events or EventStream()).stage("evaluate", len(models) * count) as stage:
        for who, one in models.items():
            found[who] = {name: values.double().tolist() for name, values in each(one).items()}
            stage.advance(count)
    metrics = {
        who: tuple(_of_examples(name, values, seed) for name, values in figures.items())
        for who, figures in found.items()
    }
    differences = tuple(
        _of_examples(name, [a - b for a, b in zip(found["model"][name], theirs, strict=True)], seed)
        for name, theirs in found.get("baseline", {}).items()
        if name != "loss"
    )
    right = {who: figures.get("accuracy", ()) for who, figures in found.items()}
    return Report(
        name=model.name,
        metrics=metrics["model"],
        baseline_name=None if baseline is None else baseline.name,
        baseline=metrics.get("baseline", ()),
        differences=differences,
        answers={"labels": {who: [int(one) for one in values] for who, values in right.items()}},
        provenance={"data": facts, "seed": seed, "threads": torch.get_num_threads(), "versions": versions()},
    )


def _of_examples(name: str, values: Sequence[float], seed: int) -> Metric:
    unit = "nats" if name == "loss" else ""
    return _metric(name, paired_bootstrap(values, seed=seed), unit=unit, better=QUALITIES.get(name, "lower"))


def _most_frequent(labels: Tensor) -> tuple[int, float]:
    """The label that most texts have, and their share: what guessing reaches."""
    counts = labels.bincount()
    return int(counts.argmax()), float(counts.max()) / len(labels)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on; what is not installed is left out."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class _Parts:
    """A report that is being filled."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.baseline: list[Metric] = []
        self.differences: list[Metric] = []
        self.window_nll: dict[str, tuple[float, ...]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.provenance: dict[str, Any] = {}


def _windows(model: Model, text: Text) -> tuple[Tensor, dict[str, Any]]:
    """Return windows for `text`, and what they are."""
    if isinstance(text, Tensor):
        if text.dim() != 2 or text.shape[1] < 2 or not len(text):
            raise DataError(f"windows must be a LongTensor[n, T] with T ≥ 2, got shape {tuple(text.shape)}.")
        return text, {"source": "windows"}
    if text == SHIPPED:
        text = text_splits(model)
    if isinstance(text, TextSplits):
        if not len(text.test):
            raise DataError("these splits have no test windows; ask for at least one in the WindowPlan.")
        return text.test, text.describe()
    corpus = text if isinstance(text, Corpus) else read_corpus(text, tokenizer=model.tokenizer)
    encoder = Encoder(model.tokenizer, model.anatomy.vocabulary)
    return all_windows(corpus, encoder, limit=MOST_WINDOWS), {"source": corpus.name, "sha256": corpus.sha256}


def _same_tokens(model: Model, baseline: Model) -> None:
    """Refuse to compare per-token figures of models that cut text differently."""
    sizes = model.anatomy.vocabulary, baseline.anatomy.vocabulary
    same = sizes[0] == sizes[1]
    if model.tokenizer is not None and baseline.tokenizer is not None:
        same = same and model.tokenizer.get_vocab() == baseline.tokenizer.get_vocab()
    if not same:
        raise DataError(
            f"{model.name} and {baseline.name} have different tokenizers ({sizes[0]} and {sizes[1]} tokens); "
            "perplexity per token compares models of one tokenizer only. Evaluate them apart."
        )


def _add_text(parts: _Parts, scores: TextScores, seed: int) -> None:
    mine = scores.nll.double().mean(dim=1)
    parts.metrics.append(_ppl(scores.nll, seed))
    parts.window_nll["model"] = tuple(mine.tolist())
    if scores.baseline_nll is None or scores.kl is None or scores.agrees is None:
        return
    theirs = scores.baseline_nll.double().mean(dim=1)
    parts.baseline.append(_ppl(scores.baseline_nll, seed))
    parts.window_nll["baseline"] = tuple(theirs.tolist())
    change = paired_bootstrap((mine - theirs).numpy(), seed=seed)
    ratio = Interval(
        value=bounded_exp(change.value),
        se=bounded_exp(change.value) * change.se,
        low=bounded_exp(change.low),
        high=bounded_exp(change.high),
        n=change.n,
    )
    kl = paired_bootstrap(scores.kl.double().mean(dim=1).numpy(), seed=seed)
    agreement = paired_bootstrap(scores.agrees.double().mean(dim=1).numpy(), seed=seed)
    parts.differences += [
        _metric("log_ppl", change, unit="nats"),
        _metric("ppl_ratio", ratio),
        _metric("kl", kl, unit="nats"),
        _metric("agreement", agreement, better="higher"),
    ]


def _ppl(nll: Tensor, seed: int) -> Metric:
    """Perplexity with its spread over windows, from per-token losses Tensor[n, T-1]."""
    mean = paired_bootstrap(nll.double().mean(dim=1).numpy(), seed=seed)
    value = perplexity(list(nll))
    spread = Interval(value=value, se=value * mean.se, low=bounded_exp(mean.low), high=bounded_exp(mean.high), n=mean.n)
    return _metric("ppl", spread)


def _add_task(parts: _Parts, name: str, mine: Answers, theirs: Answers | None, seed: int) -> None:
    facts: dict[str, Any] = {"indices": mine.indices}
    for score in ("acc", "acc_norm"):
        key = f"{name}.{score}"
        parts.metrics.append(_accuracy(key, mine.of(score)))
        facts[f"model.{score}"] = mine.of(score)
        if theirs is None:
            continue
        parts.baseline.append(_accuracy(key, theirs.of(score)))
        pairs = list(zip(mine.of(score), theirs.of(score), strict=True))
        change = paired_bootstrap([a - b for a, b in pairs], seed=seed)
        parts.differences.append(_metric(key, change, better="higher"))
        facts[f"baseline.{score}"] = theirs.of(score)
        facts[f"mcnemar_p.{score}"] = mcnemar_exact(pairs.count((1, 0)), pairs.count((0, 1)))
    parts.answers[name] = facts


def _accuracy(name: str, correct: Sequence[int]) -> Metric:
    value, se = mean_se(correct)
    return Metric(name=name, value=value, better="higher", se=None if math.isnan(se) else se, n=len(correct))


def _metric(name: str, found: Interval, *, unit: str = "", better: Literal["lower", "higher"] = "lower") -> Metric:
    """Turn an interval into a metric; one sample alone has no spread."""
    alone = math.isnan(found.se)
    return Metric(
        name=name,
        value=found.value,
        unit=unit,
        better=better,
        se=None if alone else found.se,
        low=None if alone else found.low,
        high=None if alone else found.high,
        n=found.n,
    )


def _task_facts(sha256: str, score: str, questions: Sequence[Question]) -> dict[str, Any]:
    chance = sum(1 / len(question.options) for question in questions) / len(questions)
    return {"data_sha256": sha256, "prompts_sha256": prompts_sha256(questions), "reported": score, "chance": chance}
