"""Images as training sees them: sized, normalised, perhaps moved and mirrored; and how many are put right."""

# B images, C channels, H × W pixels

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from lissome.core.errors import DataError
from lissome.data.images import Images
from lissome.models.example import example
from lissome.models.foreign import configuration_of
from lissome.models.labels import image_head
from lissome.models.model import Model
from lissome.models.preparing import FILES, pixel_numbers

_KEPT = 64 << 20  # bytes of sized images that are kept: what a search looks at for every candidate is decoded once
_DECODED = 128 << 20  # bytes of pictures that are kept as they were decoded: small nets learn faster than JPEGs open


class ImageExamples:
    """Examples for `lissome.engine.train`: ``{"pixel_values": FloatTensor[C, H, W], "label": int}``.

    Args:
        images: The images.
        shape: C, H and W that the model reads; grey and colour are turned into each other.
        mean: What is subtracted from pixels in [0, 1], by channel.
        std: What they are divided by then.
        moved: Pixels by which an image is moved at most, and whether it is mirrored, at random: 0 changes nothing.
            Draws come from torch's global generator, which the training loop seeds for every step.
        name: Name of the argument by which the model takes images.
    """

    def __init__(
        self,
        images: Images,
        shape: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        moved: int = 0,
        name: str = "pixel_values",
    ) -> None:
        self.images, self.name, self._shape, self._moved = images, name, tuple(shape), moved
        few = 4 * prod(self._shape) * len(images) <= _KEPT
        self._kept: dict[int, Tensor] | None = {} if few else None
        self._decoded, self._room = dict[int, Tensor](), _DECODED
        self._mean, self._std = (torch.tensor(list(each), dtype=torch.float32).view(-1, 1, 1) for each in (mean, std))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one example."""
        return {"pixel_values": self._augmented(self.pixels(index)), "label": self.images.labels[index]}

    def some(self, indices: Sequence[int]) -> ImageExamples:
        """Return the images at some positions."""
        mean, std = (each.flatten().tolist() for each in (self._mean, self._std))
        chosen = self.images.some(indices)
        return ImageExamples(chosen, self._shape, mean=mean, std=std, moved=self._moved, name=self.name)

    def pixels(self, index: int) -> Tensor:
        """Return one image as the model reads it, FloatTensor[C, H, W], not moved; not to be written into.

        Raises:
            DataError: When it has other channels than the model reads, and is not grey or of colour.
        """
        if self._kept is None:
            return self._sized(index)
        if index not in self._kept:
            self._kept[index] = self._sized(index)
        return self._kept[index]

    def _sized(self, index: int) -> Tensor:
        channels, height, width = self._shape
        picture = self._picture(index)
        _check_channels(self.images.name, picture.shape, channels)
        found = picture.permute(2, 0, 1).float() / 255
        if found.shape[0] != channels:
            found = found.mean(0, keepdim=True).expand(channels, -1, -1)
        if found.shape[1:] != (height, width):
            found = interpolate(found[None], (height, width), mode="bilinear", antialias=True)[0]
        return (found - self._mean) / self._std

    def _picture(self, index: int) -> Tensor:
        """One image as it is stored, ByteTensor[H, W, C]."""
        found = self._decoded.get(index)
        if found is None:
            found = torch.from_numpy(self.images.pictures[index]().copy())
            if self._kept is None and found.nbytes <= self._room:
                self._decoded[index] = found
                self._room -= found.nbytes
        return found

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, not moved, with their labels: [B, C, H, W] and [B]."""
        labels = torch.tensor(self.images.labels)
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield torch.stack([self.pixels(index) for index in range(start, stop)]), labels[start:stop]

    def _augmented(self, pixels: Tensor) -> Tensor:
        if not self._moved:
            return pixels
        height, width = self._shape[1:]
        top, left, mirrored = (int(torch.randint(high, ())) for high in (2 * self._moved + 1, 2 * self._moved + 1, 2))
        wide = pad(pixels, [self._moved] * 4)[:, top : top + height, left : left + width]
        return wide.flip(-1) if mirrored else wide


def _check_channels(name: str, shape: Sequence[int], channels: int) -> None:
    """Refuse an image of other channels than a model reads; `shape` is H, W and C, unless channels stand first."""
    if shape[2] == channels or {shape[2], channels} == {1, 3}:
        return
    then = "give images of as many"
    if shape[0] == channels or {shape[0], channels} == {1, 3}:
        then = (
            f"in an image of {'×'.join(map(str, shape))} they seem to stand first, where they must stand last "
            "(H×W×C): write the archive again with image.transpose(0, 2, 3, 1)"
        )
    raise DataError(f"{name} has images of {shape[2]} channels, but the model reads {channels}; {then}.")


def examples(model: Model, images: Images, *, moved: int = 0) -> ImageExamples:
    """Return images as a model reads them: its size, and its mean and deviation where its folder or class says them.

    Raises:
        DataError: When there are other numbers of them than channels, or the first image has other channels than the
            model reads, and is not grey or of colour.
    """
    ((name, shape),) = ((name, value.shape[1:]) for name, value in example(model).items())
    config = configuration_of(model.module)
    mean, std = (
        pixel_numbers(model.preparing, which) or getattr(config, which, None) or [0.5] * shape[0]
        for which in ("image_mean", "image_std")
    )
    if not {len(mean), len(std)} <= {1, shape[0]}:
        raise DataError(
            f"{model.name} states {len(mean)} means and {len(std)} deviations of pixels, but reads {shape[0]} "
            f"channels; correct {' or '.join(FILES)} beside it."
        )
    if len(images):
        _check_channels(images.name, images.pictures[0]().shape, shape[0])
    return ImageExamples(images, shape, mean=mean, std=std, moved=moved, name=name)


@torch.no_grad()
def accuracy(model: Model, data: ImageExamples, *, batch: int = 64) -> float:
    """Return the share of images whose class has the highest logit."""
    right, device = 0, next(model.module.parameters()).device
    name = next(iter(example(model)))
    for pixels, labels in data.batches(batch):
        result = model.module(**{name: pixels.to(device)})
        logits = result if isinstance(result, Tensor) else result.logits
        right += int((logits.argmax(-1).cpu() == labels).sum())
    return right / len(data)


@torch.no_grad()
def features(model: Model, data: ImageExamples, *, batch: int = 64) -> Tensor:
    """Return what a model makes of images before it puts them into classes, float32[N, D].

    That is the mean of the last hidden states where it gives these, else what its last layer reads.

    Args:
        model: A network of images.
        data: The images.
        batch: Images of one forward pass.

    Raises:
        UnsupportedModelError: When it gives no hidden states, and its outputs come from no layer that reads them.
    """
    module: Any = model.module
    body = module.base_model if isinstance(getattr(module, "base_model", None), nn.Module) else module
    name, device, found = next(iter(example(model))), next(module.parameters()).device, list[Tensor]()

    def keep(states: Tensor) -> None:
        found.append(pooled(states).float().cpu())

    states = hasattr(body(**example(model)), "last_hidden_state")
    head = None if states else module.get_submodule(image_head(model))
    with contextlib.ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(lambda _, given: keep(given[0])).remove)
        for pixels, _ in data.batches(batch):
            result = body(**{name: pixels.to(device)})
            if states:
                keep(result.last_hidden_state)
    return torch.cat(found) if found else torch.zeros(0, 0)


def channels_last(pixels: Tensor) -> Tensor:
    """Return images [B, C, H, W] with their channels side by side, as convolutions on CPUs read them fastest."""
    return pixels.contiguous(memory_format=torch.channels_last)


def pooled(states: Tensor) -> Tensor:
    """Return one row for each image: the mean over positions of [B, T, D], over places of [B, D, h, w], or [B, D]."""
    return states.mean((2, 3)) if states.dim() == 4 else states.mean(1) if states.dim() == 3 else states
