"""How good models are on examples of what they learnt: classes, masks, answers."""

from __future__ import annotations

from pathlib import Path

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.data.images import read_images
from lissome.data.labelled import read_labelled
from lissome.data.masks import read_masks
from lissome.data.questions import read_questions
from lissome.engine.evaluate import Report, evaluate_examples, evaluate_labels
from lissome.engine.exampled import OfExamples
from lissome.engine.objective import tokens_of
from lissome.engine.pictures import image_judge
from lissome.engine.segments import segment_judge
from lissome.engine.spans import span_judge
from lissome.models.labels import answers_by_spans, labels_of
from lissome.models.model import Model


def score_examples(
    model: Model, base: Model | None, data: str | Path | None, *, seed: int, events: EventStream
) -> Report:
    """Score a model, beside a baseline, on examples of what it learnt: labelled texts or images, masks, or questions.

    Args:
        model: The model.
        base: What to compare it with.
        data: The examples.
        seed: Of the bootstrap.
        events: Where progress is reported.

    Raises:
        ConfigError: When there are none, or the models have different classes.
        DataError: When they cannot be used.
    """
    if model.anatomy.task != "image" and not answers_by_spans(model):
        return _score_labels(model, base, data, seed=seed, events=events)
    if data is None:
        raise ConfigError(f"{model.name} is judged by examples of what it learnt; give them with --data.")

    def judge(one: Model) -> OfExamples:
        if answers_by_spans(one):
            return span_judge(one, read_questions(data))
        if "input_points" in one.anatomy.inputs:
            return segment_judge(one, read_masks(data))
        return image_judge(one, read_images(data))

    mine = judge(model)
    count = len(mine.data.test)
    return evaluate_examples(
        model, lambda one: (mine if one is model else judge(one)).each(one, "test"), count=count,
        facts={"count": count, "of": mine.data.noun}, baseline=base, seed=seed, events=events,
    )  # fmt: skip


def _score_labels(
    model: Model, base: Model | None, data: str | Path | None, *, seed: int, events: EventStream
) -> Report:
    known = labels_of(model)
    if not known:
        raise ConfigError(f"{model.name} has no named classes to compare labels with; fit it on labelled texts first.")
    if data is None:
        raise ConfigError(f"{model.name} puts texts into classes; give labelled texts with --data.")
    if base is not None and labels_of(base) != known:
        theirs = ", ".join(labels_of(base)) or "none"
        raise ConfigError(f"{base.name} has other classes ({theirs}) than {model.name} ({', '.join(known)}).")
    texts = tokens_of(model, read_labelled(data, classes=known))
    return evaluate_labels(model, texts, baseline=base, seed=seed, events=events)
