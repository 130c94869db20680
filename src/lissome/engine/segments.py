"""Masks of what a point is on, as an objective: the task of Segment Anything and of its smaller relatives."""

# B images, M masks that a segmenter offers, h × w and H × W pixels

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lissome.core.errors import ConfigError, NumericsError
from lissome.data.masks import Prompted
from lissome.engine.elastic import Elastic
from lissome.engine.exampled import ExampleSplits, OfExamples
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.search.found import Split
from lissome.engine.stream import Inputs
from lissome.models.model import Model

_SHARES = {"recovery": 0.6, "search": 0.1, "selection": 0.1, "test": 0.2}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what SAM's own processor takes


class PromptedExamples:
    """Examples for `lissome.engine.train`: pixels [C, S, S], a point [1, 1, 2] in the sized image, and the mask [H, W].

    Args:
        data: Images, points and masks.
        places: Which of them.
        shape: C, S and S that the model reads.
    """

    def __init__(self, data: Prompted, places: Sequence[int], shape: Sequence[int]) -> None:
        self.data, self.places, self._shape = data, list(places), tuple(shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one example."""
        place, (channels, height, width) = self.places[index], self._shape
        pixels = torch.from_numpy(self.data.images[place].copy()).permute(2, 0, 1).float() / 255
        if pixels.shape[0] != channels:
            pixels = pixels.mean(0, keepdim=True).expand(channels, -1, -1)
        old_height, old_width = pixels.shape[1:]
        if (old_height, old_width) != (height, width):
            pixels = interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(each[:channels]).view(-1, 1, 1) for each in (_MEAN, _STD))
        scale = torch.tensor([width / old_width, height / old_height])
        point = torch.from_numpy(self.data.points[place].copy()) * scale
        mask = torch.from_numpy(self.data.masks[place].copy()).float()
        return {"pixel_values": (pixels - mean) / std, "input_points": point.view(1, 1, 2), "mask": mask}

    def some(self, indices: Sequence[int]) -> PromptedExamples:
        """Return the examples at some positions."""
        return PromptedExamples(self.data, [self.places[at] for at in indices], self._shape)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return some examples together."""
        rows = [self[at] for at in indices]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentSplits(ExampleSplits[PromptedExamples]):
    """Images with masks for every purpose."""

    noun: ClassVar[str] = "masks"


def segment_splits(model: Model, data: Prompted) -> SegmentSplits:
    """Deal images with masks out; the split does not depend on a job's seed.

    Raises:
        DataError: When there are too few for every part.
    """
    shape = model.anatomy.inputs["pixel_values"]
    places = data.parts(_SHARES)
    marks = [data.sha256, list(shape), {name: len(part) for name, part in places.items()}]
    digest = hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()
    made = {name: PromptedExamples(data, part, shape) for name, part in places.items()}
    return SegmentSplits(source=data.name, fingerprint=digest, classes=(), **made)


def segment_judge(model: Model, data: Prompted) -> Segments:
    """Return an objective that judges a model on masks: the source's own for tests, or all of them."""
    places = [at for at in range(len(data)) if data.tests[at]] or list(range(len(data)))
    held = PromptedExamples(data, places, model.anatomy.inputs["pixel_values"])
    return Segments(SegmentSplits.judging(held, source=data.name))


@dataclass(frozen=True)
class Segments(OfExamples):
    """Images with masks: the dice loss of the best mask that is offered, and the squared error of its expected IoU.

    Figures are the mean IoU of the mask that the model itself expects to be best (``miou``), of the best one in truth
    (``best_miou``), and the loss. The second needs the answer to choose: it is what the literature often reports, and
    never below the first.
    """

    data: SegmentSplits
    size: ClassVar[int] = 8
    names: ClassVar[tuple[str, ...]] = ("miou", "best_miou", "loss")

    def batches(self, count: int) -> Sequence[Inputs]:
        """Inputs of `count` examples for calibration."""
        return [
            {name: value for name, value in batch.items() if name != "mask"} for batch in _batches(self.spread(count))
        ]

    def task(self, model: Model) -> Task:
        """Return the task of the training loop."""
        return Task(module=model.module, loss=_loss, data=self.data.recovery)

    def lesson(self, model: Model, teacher: Model | Elastic, *, share: float, temperature: float) -> Loss:
        """Refuse: masks have no classes that a teacher could be sure or unsure of.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a segmenter learns from masks alone, not from a teacher; set distil=0.")

    @torch.no_grad()
    def each(self, model: Model, split: Split) -> dict[str, Tensor]:
        """Return the figures of every example."""
        device = next(model.module.parameters()).device
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for batch in _batches(getattr(self.data, split)):
            given = {name: value.to(device) for name, value in batch.items()}
            masks, scores = offered(model.module, given)
            ious = iou(masks, given["mask"])
            found["miou"].append(ious.gather(1, scores.argmax(1, keepdim=True))[:, 0])
            found["best_miou"].append(ious.amax(1))
            found["loss"].append(_of(masks, scores, given["mask"]))
        each = {name: torch.cat(values).cpu() for name, values in found.items()}
        if not all(values.isfinite().all() for values in each.values()):
            raise NumericsError("a mask holds NaN or infinity; check the weights, or use float32.")
        return each


def _batches(examples: PromptedExamples) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(examples), Segments.size):
        yield examples.batch(range(start, min(start + Segments.size, len(examples))))


def dice(masks: Tensor, truth: Tensor) -> Tensor:
    """``1 - (2 · Σ p·t + 1) / (Σ p + Σ t + 1)`` of every mask offered: logits [B, M, H, W] and [B, H, W] → [B, M]."""
    chances, wanted = masks.float().sigmoid().flatten(2), truth.flatten(1).unsqueeze(1)
    return 1 - (2 * (chances * wanted).sum(2) + 1) / (chances.sum(2) + wanted.sum(2) + 1)


def iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of every mask offered: logits [B, M, H, W] and [B, H, W] → [B, M]; 1 of empty ones."""
    found, wanted = (masks > 0).flatten(2), (truth > 0.5).flatten(1).unsqueeze(1)
    both, either = (found & wanted).sum(2).float(), (found | wanted).sum(2).float()
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def offered(module: Any, examples: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Masks that a segmenter offers for the one point, logits [B, M, H, W] as large as the truth, and its scores."""
    result = module(pixel_values=examples["pixel_values"], input_points=examples["input_points"])
    found, scores = result.pred_masks[:, 0], result.iou_scores[:, 0]
    size = examples["mask"].shape[-2:]
    return interpolate(found.float(), size, mode="bilinear", align_corners=False), scores.float()


def _loss(module: Any, batch: Batch) -> Tensor:
    masks, scores = offered(module, batch.examples)
    return _of(masks, scores, batch.examples["mask"])


def _of(masks: Tensor, scores: Tensor, truth: Tensor) -> Tensor:
    with torch.no_grad():
        true = iou(masks, truth)
    return dice(masks, truth).amin(1) + (scores - true).square().mean(1)
