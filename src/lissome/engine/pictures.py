"""The classes of images as an objective: what is trained on, searched on, compared on and reported on."""

# B images, C channels, H × W pixels, K classes

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lissome.core.errors import DataError, NumericsError
from lissome.data.images import Images
from lissome.engine.elastic import Elastic, Forward, lesson_loss, task_loss
from lissome.engine.exampled import ExampleSplits, OfExamples
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.images import ImageExamples, channels_last, examples
from lissome.engine.search.found import Split
from lissome.engine.stream import Inputs
from lissome.models.example import example
from lissome.models.labels import class_scores, image_labels_of, outputs_of
from lissome.models.model import Model

_SHARES = {"recovery": 0.6, "search": 0.1, "selection": 0.1, "test": 0.2}
_SEEN = 2000  # most images of the splits that are looked at for every candidate


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSplits(ExampleSplits[ImageExamples]):
    """Labelled images for every purpose."""

    noun: ClassVar[str] = "images"


def image_splits(model: Model, images: Images) -> ImageSplits:
    """Deal labelled images out, as the source splits them where it does; the split does not depend on a job's seed.

    Images of colour are moved by an eighth of their size at most, and mirrored, in training; grey ones (digits, say,
    which mirrored are none) are not.

    Raises:
        DataError: When there are too few images for every part.
    """
    parts = _dealt(images)
    colour = images.pictures[0]().shape[-1] == 3
    made = {
        name: examples(model, part, moved=_moved(model) if colour and name == "recovery" else 0)
        for name, part in parts.items()
    }
    sizes = {name: len(part) for name, part in parts.items()}
    marks = [images.sha256, list(next(iter(example(model).values())).shape[1:]), sizes]
    digest = hashlib.sha256(json.dumps(marks).encode()).hexdigest()
    return ImageSplits(**made, classes=images.classes, source=images.name, fingerprint=digest)


def image_judge(model: Model, images: Images) -> Pictures:
    """Return an objective that judges a model on images: those kept for the report, or all of them.

    Raises:
        DataError: When the classes of the images are not those of the model.
    """
    kept = _kept(images)
    held = images.split(kept) if kept else images
    names = image_labels_of(model)
    if names and set(held.classes) <= set(names):
        labels = tuple(names.index(held.classes[label]) for label in held.labels)
        held = replace(held, labels=labels, classes=names)
    elif names or outputs_of(model) != len(held.classes):
        known = f"{', '.join(names[:6])}{', …' * (len(names) > 6)}" if names else f"{outputs_of(model)} without names"
        raise DataError(
            f"{images.name} has the classes {', '.join(held.classes[:6])}{', …' * (len(held.classes) > 6)}, but those "
            f"of {model.name} are {known}; call the folders as the model calls its classes."
        )
    return Pictures(ImageSplits.judging(examples(model, held), source=images.name, classes=held.classes))


def _moved(model: Model) -> int:
    (shape,) = (value.shape for value in example(model).values())
    return max(1, min(shape[-2:]) // 8)


def _dealt(images: Images) -> dict[str, Images]:
    """Images by purpose; a search and a choice look at no more than they need."""
    kept = _kept(images)
    if not kept:
        parts = images.parts(_SHARES)
    else:
        if "train" not in images.splits:
            raise DataError(f"{images.name} has a split test, but none called train; add it, or leave both out.")
        train, parts = images.split("train"), {"test": images.split(kept)}
        _check_seen(images, train)
        if "val" in images.splits and kept != "val":
            seen = images.split("val").parts({"search": 0.5, "selection": 0.5})
            parts |= {"recovery": train, **seen}
        else:
            parts |= train.parts({"recovery": 0.8, "search": 0.1, "selection": 0.1})
    for name in ("search", "selection"):
        if len(parts[name]) > _SEEN:
            parts[name] = parts[name].parts({"kept": _SEEN / len(parts[name])})["kept"]
    return parts


def _kept(images: Images) -> str:
    """Which of a source's own splits is kept for the report: beside `train` that is `val` where there is no `test`."""
    if "test" in images.splits:
        return "test"
    return "val" if {"train", "val"} <= images.splits.keys() else ""


def _check_seen(images: Images, train: Images) -> None:
    """Refuse splits to judge by with classes that nothing is learnt of: folders that are called in two ways."""
    seen = set(train.labels)
    for name in ("val", "test"):
        unseen = sorted({images.labels[at] for at in images.splits.get(name, ())} - seen)
        if unseen:
            shown = ", ".join(images.classes[label] for label in unseen[:6]) + ", …" * (len(unseen) > 6)
            raise DataError(
                f"the split {name} of {images.name} has images of {shown}, but train has none; call classes alike in "
                "all splits, or leave those out."
            )


@dataclass(frozen=True)
class Pictures(OfExamples):
    """Labelled images, and the cross entropy of their classes."""

    data: ImageSplits
    size: ClassVar[int] = 64
    names: ClassVar[tuple[str, ...]] = ("accuracy", "loss")

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` images for calibration, not moved, in batches of one size."""
        return _Batches(self.spread(count))

    def task(self, model: Model) -> Task:
        """Return the task of the training loop."""
        return Task(module=model.module, loss=task_loss(self._forward, _judge), data=self.data.recovery)

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Return the loss with a teacher's opinion of every image."""
        asked = teacher if isinstance(teacher, Elastic) else teacher.module
        return lesson_loss(self._forward, _judge, asked, share=share, temperature=temperature)

    def each(self, model: Model, split: Split) -> dict[str, Tensor]:
        """Whether the likeliest class of every image is right, and its cross entropy."""
        found, labels = self._answers(model, getattr(self.data, split))
        return {
            "accuracy": (found.argmax(-1) == labels).double(),
            "loss": F.cross_entropy(found, labels, reduction="none"),
        }

    @property
    def _forward(self) -> Forward:
        name = self.data.recovery.name

        def forward(module: Any, batch: Batch) -> Tensor:
            return class_scores(module(**{name: channels_last(batch.examples["pixel_values"])}))

        return forward

    @torch.no_grad()
    def _answers(self, model: Model, data: ImageExamples) -> tuple[Tensor, Tensor]:
        device = next(model.module.parameters()).device
        pairs = [
            (class_scores(model.module(**{data.name: channels_last(pixels.to(device))})).float().cpu(), labels)
            for pixels, labels in data.batches(self.size)
        ]
        found = torch.cat([logits for logits, _ in pairs])
        if not torch.isfinite(found).all():
            raise NumericsError("a class has a score that is NaN or infinite; check the weights, or use float32.")
        return found, torch.cat([labels for _, labels in pairs])


class _Batches(Sequence[Inputs]):
    """Images in batches of one size, read when they are asked for: all at once they would take gigabytes."""

    def __init__(self, images: ImageExamples) -> None:
        self._images, self._count = images, max(1, len(images) // Pictures.size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        places = range(len(self._images))[index :: self._count]
        return {self._images.name: torch.stack([self._images.pixels(place) for place in places])}


def _judge(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch.examples["label"], reduction="none")
