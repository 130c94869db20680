"""Images as examples: size, channels, normalisation; a tiny network learns them through the shared trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lissome.core.errors import DataError
from lissome.data.images import Images, read_images
from lissome.engine.elastic import Elastic, task_loss
from lissome.engine.hooks import Batch, Task
from lissome.engine.images import ImageExamples, accuracy, examples
from lissome.engine.norms import reestimate
from lissome.engine.paths import Sandwich
from lissome.engine.pictures import image_splits
from lissome.engine.train import TrainConfig, train
from lissome.models.binding import extract
from lissome.models.convnet import ConvNetForImageClassification, resnet
from lissome.models.model import Model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Stripes that lie or stand: nothing that a network could not learn in seconds."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    stripes = np.broadcast_to((np.arange(10) % 2 * 200)[:, None], (10, 10)).astype(np.uint8)
    pixels = np.stack([(stripes if label else stripes.T) + rng.integers(0, 50, (10, 10)) for label in labels])
    path = tmp_path_factory.mktemp("images") / "stripes.npz"
    np.savez(path, image=pixels.astype(np.uint8), label=labels)
    return read_images(path)


def model() -> Model:
    torch.manual_seed(0)
    config = resnet(width=4, blocks=1, stages=2, labels=2, image_size=8)
    return Model(ConvNetForImageClassification(config).eval())


def test_images_are_sized_coloured_and_normalised(images: Images) -> None:
    data = examples(model(), images)
    example = data[3]
    assert example["pixel_values"].shape == (3, 8, 8)
    assert torch.equal(example["pixel_values"][0], example["pixel_values"][2])
    assert -1 <= float(example["pixel_values"].min()) < 0 < float(example["pixel_values"].max()) <= 1
    assert example["label"] == 1


def test_channels_that_the_model_does_not_read_are_refused(images: Images) -> None:
    clear = replace(images, pictures=(lambda: np.zeros((8, 8, 4), np.uint8),) * len(images))
    with pytest.raises(DataError, match="images of 4 channels, but the model reads 3; give images of as many"):
        examples(model(), clear)
    late = replace(images, pictures=(*images.pictures[:-1], *clear.pictures[:1]))
    with pytest.raises(DataError, match="images of 4 channels, but the model reads 3"):
        examples(model(), late).pixels(len(images) - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_stand_first_are_told_from_others(channels: int, images: Images) -> None:
    turned = replace(images, pictures=(lambda: np.zeros((channels, 16, 16), np.uint8),) * len(images))
    with pytest.raises(
        DataError, match=rf"{channels}×16×16 they seem to stand first.*transpose\(0, 2, 3, 1\)"
    ) as error:
        examples(model(), turned)
    assert "\n" not in str(error.value)


def test_few_images_are_read_once_and_many_each_time(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def counting(at: int) -> Any:
        return lambda: asked.append(at) or images.pictures[at]()  # type: ignore[func-returns-value]

    def counted() -> ImageExamples:
        made = examples(model(), replace(images, pictures=tuple(map(counting, range(len(images))))))
        assert asked.pop() == 0, "the first one is looked at, for its channels"
        return made

    few = counted()
    assert torch.equal(few.pixels(3), few.pixels(3)) and asked == [3]
    monkeypatch.setattr("lissome.engine.images._KEPT", 0)
    unsized = counted()  # sized each time, from pictures that are kept
    assert torch.equal(unsized.pixels(3), few.pixels(3)) and torch.equal(unsized.pixels(3), few.pixels(3))
    assert asked == [3, 3]
    monkeypatch.setattr("lissome.engine.images._DECODED", images.pictures[3]().nbytes)
    many = counted()
    assert all(torch.equal(many.pixels(at), few.pixels(at)) for at in (3, 4, 3, 4))
    assert asked == [3, 3, 3, 4, 4, 4]  # 3 fills the room, `few` reads 4 once, `many` each time


def test_moved_images_follow_the_global_seed(images: Images) -> None:
    data = examples(model(), images, moved=2)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(data[0]["pixel_values"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_super_network_learns_images_and_its_smallest_does_too(images: Images) -> None:
    parts = images.parts({"train": 0.6, "test": 0.4})
    net = model()
    data = examples(net, parts["train"])

    def forward(module: Any, batch: Batch) -> Tensor:
        logits: Tensor = module(batch.examples["pixel_values"]).logits
        return logits

    loss = task_loss(forward, lambda logits, batch: cross_entropy(logits, batch.examples["label"], reduction="none"))
    config = TrainConfig(steps=25, batch=12, lr=0.02, precision="fp32")
    train(Task(module=net.module, loss=loss, data=data), config, seed=0, hooks=Elastic(net, Sandwich(net.space())))
    small = extract(net, net.space().smallest)
    for each in (net, small):
        reestimate(each.module, [pixels for pixels, _ in data.batches(12)])
        assert accuracy(each, examples(each, parts["test"])) >= 0.9


@pytest.mark.parametrize(
    ("own", "kept"),
    [(("train", "val", "test"), "test"), (("train", "test"), "test"), (("train", "val"), "val"), (("val",), None)],
    ids=str,
)
def test_what_a_source_keeps_apart_is_the_reports(own: tuple[str, ...], kept: str | None, images: Images) -> None:
    size = len(images) // len(own)
    places = {name: tuple(range(at * size, (at + 1) * size)) for at, name in enumerate(own)}
    made = image_splits(model(), replace(images, splits=places))
    held = {images.pictures.index(picture) for picture in made.test.images.pictures}
    learnt = {images.pictures.index(picture) for picture in made.recovery.images.pictures}
    assert held == set(places[kept]) if kept else 0 < len(held) < len(images)
    assert not held & learnt and ("train" not in own or learnt <= set(places["train"]))


def test_splits_must_have_the_classes_that_are_learnt(images: Images) -> None:
    """A folder that is called in another way would be a class of which every image is judged wrong."""
    first = images.labels[0]
    known = tuple(at for at, label in enumerate(images.labels) if label == first)
    other = next(at for at, label in enumerate(images.labels) if label != first)
    for name in ("val", "test"):
        apart = replace(images, splits={"train": known, "test": known[:1], name: (other,)})
        with pytest.raises(
            DataError, match=f"the split {name} of .* has images of {images.classes[images.labels[other]]}"
        ):
            image_splits(model(), apart)
    small = replace(images, splits={"train": known, "val": known[:1], "test": known[:1]})
    with pytest.raises(DataError, match=r"the split val of .* has 1 images, too few for the part"):
        image_splits(model(), small)
