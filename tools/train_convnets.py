"""Train two small networks of images on CIFAR-10, on a CPU, from JPEG images beside the checkout (`LISSOME_DATA`).

    python -m tools.train_convnets                      # both into the package; an interrupted run goes on
    python -m tools.train_convnets zoo-resnet --steps 4000
    python -m tools.train_convnets --time               # seconds per step, and what both would take

``zoo-resnet`` halves its images before the first block, which saves three quarters of the time of a usual small ResNet;
``zoo-depthwise`` is made of inverted residual blocks. They never see the images that searches look at, that choices are
made on, or that judge: those parts are dealt out here as `lissome supernet` deals them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lissome.core.events import EventStream
from lissome.data.images import read_images
from lissome.data.local import data_file
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.pictures import Pictures, image_splits
from lissome.engine.train import train
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.zoo import folder_of, zoo
from tools._asking import Ticker, ask
from tools._shipping import ship

FLOOR = 0.85
"""Accuracy on CIFAR-10's own test images that the ResNet should reach."""
BATCH = 128
_DATA = ("vision/cifar10_jpeg.npz", "f1000a02bf4d1af3c8931671a029c1851913df3dbc6c7128ce74fcc6a249ef13")


@dataclass(frozen=True)
class Recipe:
    """One network.

    Attributes:
        summary: One line.
        stem: Channels and stride of its first convolution.
        stages: As of `ConvNetConfig`.
        steps: Of training, on 128 images each; 313 go through all images.
        lr: Peak learning rate of SGD.
    """

    summary: str
    stem: tuple[int, int]
    stages: Sequence[Mapping[str, Any]]
    steps: int
    lr: float = 0.1

    def build(self) -> Model:
        """Make it with random weights, the same ones every time."""
        classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        config = ConvNetConfig(
            image_size=32, stem=self.stem, stages=self.stages, num_labels=len(classes),
            id2label=dict(enumerate(classes)), label2id={name: index for index, name in enumerate(classes)},
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return load_model(ConvNetForImageClassification(config).eval())


RECIPES = {
    "zoo-resnet": Recipe(
        "ResNet of 6 residual blocks, 32 to 128 channels, on 16 × 16 pixels and less",
        (32, 2),
        [{"kind": "residual", "channels": 32 * 2**at, "blocks": 2, "stride": 1 + (at > 0)} for at in range(3)],
        steps=8000,
    ),
    "zoo-depthwise": Recipe(
        "6 inverted residual blocks with depthwise convolutions, 24 to 96 channels, on 16 × 16 pixels and less",
        (24, 2),
        [
            {"kind": "inverted", "expand": 4, "channels": 24 * 2**at, "blocks": 2, "stride": 1 + (at > 0)}
            for at in range(3)
        ],
        steps=8000,
    ),
}


def objective(model: Model) -> Pictures:
    """CIFAR-10, dealt out as `lissome supernet` deals it.

    Raises:
        AssetError: When it is not on this machine; says where it is looked for.
    """
    return Pictures(image_splits(model, read_images(data_file(*_DATA))))


def trained(name: str, steps: int, work: Path, *, said: EventStream | None = None) -> tuple[Model, float]:
    """Train a network, going on from `work`; returns it and the seconds that it took."""
    recipe = RECIPES[name]
    model = recipe.build()
    judge = objective(model)
    settings = replace(
        judge.training(steps=steps, lr=recipe.lr, batch=BATCH, max_seconds=None), optimizer="sgd", weight_decay=5e-4
    )
    key = {"steps": steps, "lr": recipe.lr, "stages": [dict(stage) for stage in recipe.stages]}
    done = train(judge.task(model), settings, seed=0, checkpoint=Checkpoint(work / "state", key), events=said)
    return model, done.seconds


def given(name: str, work: Path, *, part: float = 1.0) -> Path:
    """Return the folder of a network that ships; of a part of its steps, or where it does not, one trained now."""
    if part == 1 and name in zoo():
        return folder_of(name)
    if not (work / "model").exists():
        model, _ = trained(name, max(4, round(RECIPES[name].steps * part)), work)
        model.save(work / "model")
    return work / "model"


def make(name: str, steps: int, out: Path, work: Path) -> Mapping[str, float]:
    """Train, store and enter one network into the index; returns its figures on CIFAR-10's own test images."""
    model, seconds = trained(name, steps, work, said=EventStream(Ticker(name)))
    summary = f"{RECIPES[name].summary}; trained here on CIFAR-10 (as JPEG images)"
    told = {"steps": steps, "batch": BATCH, "lr": RECIPES[name].lr, "seconds": seconds, "seed": 0}

    def judge(it: Model) -> Mapping[str, float]:
        return {"accuracy": objective(it).figures(it, "test")["accuracy"]}

    found = ship(name, model, out, summary=summary, judge=judge, training=told)
    print(f"{name}: accuracy {found['accuracy']:.4f} ({seconds:.0f} s)", flush=True)
    if name == "zoo-resnet" and found["accuracy"] < FLOOR:
        raise SystemExit(f"that is below {FLOOR}; train longer.")
    return found


def _show_times(names: Sequence[str], steps: int | None) -> None:
    for name in names:
        model = RECIPES[name].build()
        judge = objective(model)
        start = time.perf_counter()
        train(judge.task(model), judge.training(steps=4, lr=0.0, batch=BATCH, max_seconds=None), seed=0)
        each, count = (time.perf_counter() - start) / 4, steps or RECIPES[name].steps
        print(f"{name}: {each:.3f} s per step, {count} steps: {each * count / 60:.0f} min")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for."""
    asked = ask("tools.train_convnets", __doc__, RECIPES, arguments)
    if asked.time:
        _show_times(asked.names, asked.steps)
        return
    for name in asked.names:
        make(name, asked.steps or RECIPES[name].steps, asked.out, asked.work / name)


if __name__ == "__main__":
    main()
