"""Super-networks of networks that their users wrote: what they may be like, and what is refused in one line."""

# B images, C channels

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lissome import pipeline
from lissome.core.errors import ArtifactError, UnsupportedModelError
from lissome.models.load import load_model
from lissome.testing.examples import striped_images

pytestmark = pytest.mark.long

SMALL = ("min_width=2", "multiple=1", "examples=16", "batch=8", "steps=1", "tune_steps=0")
IMAGE = (3, 8, 8)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four classes."""
    place = tmp_path_factory.mktemp("own") / "stripes.npz"
    striped_images(place)
    return place


class _Own(nn.Module):
    """A network with as many classes as there are, or others."""

    def __init__(self, classes: int = 4, config: Any = None) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)), nn.Linear(8, classes)
        if config is not None:
            self.config = config

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return made


class _OwnConfig(PreTrainedConfig):
    model_type = "own-of-a-user"


class _OfTransformers(PreTrainedModel):  # type: ignore[misc,unused-ignore]
    """Says nothing of what it reads, so that transformers says tokens."""

    config_class = _OwnConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or _OwnConfig())
        self.inner = _Own(classes=7)

    def forward(self, images: Tensor) -> Any:
        return self.inner(images)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Own(classes=7),
        lambda: _Own(config={"classes": 4}),
        lambda: _Own(config=SimpleNamespace(image_size=(8, 8, 3), num_channels="three", image_mean=0.5)),
        _OfTransformers,
    ],
    ids=["other classes", "a configuration of words", "a configuration of its own", "a class of transformers"],
)
def test_a_network_as_its_user_wrote_it_goes_all_the_way(make: Any, stripes: Path, tmp_path: Path) -> None:
    pipeline.supernet(pipeline.load(make(), example=IMAGE), data=stripes, settings=SMALL, out=tmp_path / "S")
    pipeline.search(tmp_path / "S", into=make(), out=tmp_path / "S" / "search", trials=3)
    pipeline.extract_for(tmp_path / "S", into=make(), budget="macs<=90%", out=tmp_path / "A")
    small = pipeline.load(tmp_path / "A", into=load_model(make()))  # type: ignore[arg-type]
    assert small.module(torch.rand(2, *IMAGE)).shape == (2, 4)


@pytest.mark.parametrize(
    ("into", "words"),
    [(_Own, r"such as _Own\(\), not its class"), ("net.pt", "the whole module, such as a torch module")],
)
def test_what_is_no_module_is_refused(into: Any, words: str, tmp_path: Path) -> None:
    load_model(_Own(), example=IMAGE).save(tmp_path / "own")
    with pytest.raises(ArtifactError, match=words):
        pipeline.load(tmp_path / "own", into=into)


class _Single(_Own):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(x).mean((2, 3)).view(1, 8))
        return made


class _Pair(_Own):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class _Normed(_Own):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.norm(self.body(x).mean((2, 3))))
        return made


class _Untrainable(_Own):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("not for training")
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (_Single, (), r"fails on two images of float32 numbers \(.*\); give a network whose forward reads any number"),
        (lambda: _Own().half(), (), r"fails on two images of float32 numbers .*weights are float32 too"),
        (_Pair, (), "reads x, y; give a network that reads one image"),
        (_Normed, ("batch=1",), "in training on a batch of 1 .*; set batch and examples to 2 or more"),
        (_Normed, ("examples=1",), "in training on a batch of 1 .*; set batch and examples to 2 or more"),
        (_Untrainable, (), r"fails in training on a batch of 2 \(not for training\); mend its forward"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_step(
    make: Any, settings: tuple[str, ...], words: str, stripes: Path, tmp_path: Path
) -> None:
    own = pipeline.load(make(), example={"x": IMAGE, "y": IMAGE} if make is _Pair else IMAGE)
    asked = {each.partition("=")[0]: each for each in (*SMALL, *settings)}
    with pytest.raises(UnsupportedModelError, match=words) as error:
        pipeline.supernet(own, data=stripes, settings=tuple(asked.values()), out=tmp_path / "S")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "S").exists()


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ReLU has no weights"):
        load_model(nn.ReLU(), example=IMAGE)


class _Endless(_Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("inf")


def test_outputs_that_are_no_numbers_are_the_reason() -> None:
    rigid = load_model(_Endless(), example=IMAGE).anatomy.rigid
    assert rigid["body.0.width"] == "the outputs are NaN or infinite when it is cut"
