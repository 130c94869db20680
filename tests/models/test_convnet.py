"""Convolutional networks by configuration, and EfficientNet-Lite0 with its real weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from lissome.core.errors import ArtifactError
from lissome.cost.counted import Counter
from lissome.data.assets import find, is_fetched
from lissome.models.binding import extract
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification, in_order, resnet
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.torch_file import read_tensors
from lissome.testing import conformance

MIXED = ConvNetConfig(
    image_size=16,
    stem=(8, 2),
    head=24,
    num_labels=5,
    activation="hardswish",
    stages=[
        {"kind": "inverted", "channels": 8, "blocks": 2, "kernel": 5, "expand": 2, "squeeze": 0.25},
        {"kind": "inverted", "channels": 12, "blocks": 2, "stride": 2, "kernel": 5, "expand": 2},
        {"kind": "residual", "channels": 16, "blocks": 2, "stride": 2},
    ],
)


def built(config: ConvNetConfig, seed: int = 0) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ConvNetForImageClassification(config)
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return Model(module.eval())


@pytest.mark.parametrize("seed", range(2))
def test_it_is_cut_saved_and_opened_like_any_model(seed: int, tmp_path: Path) -> None:
    model = built(MIXED)
    small = conformance.check_subnet(
        model, model.anatomy.space(finest=True).sample(Random(seed)), example(model, batch=2)
    )
    conformance.check_saved(small, tmp_path / "small", example(model))
    conformance.check_saved(model, tmp_path / "whole", example(model))


@pytest.mark.slow
@pytest.mark.parametrize("config", [MIXED, resnet(width=4, blocks=3)], ids=["mixed", "resnet"])
def test_a_hundred_subnets(config: ConvNetConfig) -> None:
    model = built(config)
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    conformance.check_full(model, inputs)
    for seed in range(100):
        subnet = space.sample(Random(seed))
        conformance.check_counted(model, subnet, conformance.check_subnet(model, subnet, inputs))


def test_what_is_padded_as_it_runs_has_elastic_kernels() -> None:
    found = {axis.name: axis.choices for axis in built(MIXED).space().axes}
    strided = "blocks.2.layers.1.0.kernel"  # stride 2: padded by what its kernel needs
    assert found[strided] == (3, 5)


def test_a_small_resnet_has_the_layers_that_its_name_says() -> None:
    model = built(resnet(width=4, blocks=3))
    layers = [part for part in model.module.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert len(layers) + 1 == 20
    assert sum(axis.choices == (0, 1) for axis in model.space().axes) == 7


def test_transformers_opens_it(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    import lissome.models.auto  # noqa: F401

    model = built(MIXED)
    small = extract(model, model.space().sample(Random(1)))
    for each, name in ((model, "whole"), (small, "small")):
        each.save(tmp_path / name)
        opened = AutoModelForImageClassification.from_pretrained(tmp_path / name)
        inputs = example(model)
        assert torch.equal(conformance.outputs(opened.eval(), inputs), conformance.outputs(each.module, inputs))


def state() -> OrderedDict[str, torch.Tensor]:
    wide = torch.arange(24, dtype=torch.float32)
    named = {"a.weight": wide.view(4, 6), "a.part": wide.view(4, 6)[1:, ::2], "n": torch.tensor(7)}
    return OrderedDict(named)


def test_tensors_are_read_without_unpickling(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    read = read_tensors(tmp_path / "old.pth")
    assert list(read) == list(state())
    assert all(torch.equal(read[name], value) for name, value in state().items())


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("trap", "w")


def test_nothing_in_such_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Trap()}, tmp_path / "trap.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match="no state dict"):
        read_tensors(tmp_path / "trap.pth")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(kept: float, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ArtifactError, match="no state dict"):
        read_tensors(tmp_path / "old.pth")


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not those of this network"):
        in_order(MIXED, state())
    torch.save(state(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match="does not say of which network"):
        load_model(tmp_path / "x.pth")


@pytest.mark.slow
@pytest.mark.skipif(not is_fetched(find("efficientnet-lite0")), reason="lissome assets fetch efficientnet-lite0")
def test_efficientnet_lite0(tmp_path: Path) -> None:
    model = load_model(find("efficientnet-lite0").path)
    inputs, counts = example(model), Counter(model).count()
    assert (counts.params, counts.macs) == (4_652_008, 385_187_552)
    assert abs(counts.disk / (model.save(tmp_path / "whole") / "model.safetensors").stat().st_size - 1) < 0.05
    space = model.anatomy.space(finest=True)
    for seed in range(100):
        subnet = space.sample(Random(seed))
        small = conformance.check_subnet(model, subnet, inputs)
        conformance.check_counted(model, subnet, small)
    conformance.check_full(model, inputs)
    conformance.check_saved(small, tmp_path / "small", inputs)


@pytest.mark.slow
@pytest.mark.skipif(not is_fetched(find("efficientnet-lite0")), reason="lissome assets fetch efficientnet-lite0")
def test_its_weights_know_a_palace_and_a_daisy() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    model = load_model(find("efficientnet-lite0").path)
    for name, label in (("china.jpg", 698), ("flower.jpg", 985)):
        image = torch.tensor(datasets.load_sample_image(name)).permute(2, 0, 1)[None].float()
        height, width = image.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[:, :, top : top + side, left : left + side]
        small = nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True)
        logits = conformance.outputs(model.module, {"pixel_values": (small - 127) / 128})
        assert int(logits.argmax()) == label
