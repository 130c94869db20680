"""`eval` of networks of images: on the source's own test images, with classes by name, beside a baseline, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lissome import pipeline
from lissome.core.errors import ConfigError, DataError
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.testing.examples import striped_images

STAGES = [{"kind": "residual", "channels": 8, "blocks": 1, "stride": 1}]


def network(folder: Path, *names: str) -> Path:
    """A small network with weights as they are drawn, and classes of these names."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    config = ConvNetConfig(image_size=16, stem=(8, 1), stages=STAGES, **labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_model(ConvNetForImageClassification(config).eval()).save(folder)


def test_accuracy_is_of_the_sources_own_test_images_and_paired(tmp_path: Path) -> None:
    data = striped_images(tmp_path / "x.npz", count=80)
    with np.load(data) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(data, **arrays, is_train=np.arange(80) < 60)
    place = network(tmp_path / "net", "0", "1", "2", "3")
    alone = pipeline.evaluate(place, data=data)
    accuracy = alone.rows[0].figures["accuracy"].metric
    assert accuracy.n == 20 and accuracy.low <= accuracy.value <= accuracy.high
    assert alone.notes == ("figures on 20 images",)
    both = pipeline.evaluate(place, place, data=data)
    assert [row.figures["accuracy"].metric.value for row in both.rows] == [accuracy.value] * 2


def test_classes_are_compared_by_name(tmp_path: Path) -> None:
    data = striped_images(tmp_path / "x.npz", count=40)
    plain = pipeline.evaluate(network(tmp_path / "net", "0", "1", "2", "3"), data=data)
    turned = pipeline.evaluate(network(tmp_path / "other", "3", "2", "1", "0"), data=data)
    # the same weights answer 3 where they answered 0: what was right is so now only where both names agree
    assert plain.rows[0].figures["loss"].metric.value != turned.rows[0].figures["loss"].metric.value
    more = pipeline.evaluate(network(tmp_path / "more", "x", "0", "1", "2", "3"), data=data)
    assert more.rows[0].figures["accuracy"].metric.n == 40


def test_other_classes_and_no_images_are_refused(tmp_path: Path) -> None:
    data = striped_images(tmp_path / "x.npz", count=40)
    with pytest.raises(DataError, match=r"those of .*cats.* are cat, dog, fox, owl; call the folders"):
        pipeline.evaluate(network(tmp_path / "cats", "cat", "dog", "fox", "owl"), data=data)
    with pytest.raises(DataError, match="are 3 without names"):
        pipeline.evaluate(network(tmp_path / "three", "LABEL_0", "LABEL_1", "LABEL_2"), data=data)
    with pytest.raises(ConfigError, match="give them with --data"):
        pipeline.evaluate(network(tmp_path / "net", "0", "1", "2", "3"))
