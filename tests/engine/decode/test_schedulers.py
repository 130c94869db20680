"""Schedulers: numpy and torch agree, what can be told apart is learnt, controls decide as said, damage is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissome.core.errors import ArtifactError, ConfigError
from lissome.engine.decode import Decoder
from lissome.engine.decode.schedulers import (
    FILE,
    Activation,
    Chance,
    Confidence,
    Learnt,
    Scheduler,
    read_scheduler,
    switches,
)
from lissome.engine.decode.teach import Classifier, teach
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from tests.export.toys import model_of


def prompts(count: int = 24) -> tuple[list[tuple[Any, Any]], list[int]]:
    """Keys and values of which one number tells the class."""
    rng, found, labels = np.random.default_rng(0), [], []
    for at in range(count):
        keys, values = (rng.normal(size=(5 + at % 4, 8)).astype(np.float32) for _ in range(2))
        values[:, at % 3] += 4
        found.append((keys, values))
        labels.append((0, 1, 3)[at % 3])
    return found, labels


def learnt(weights: Any, kind: type[Learnt] = Learnt) -> Learnt:
    return kind(4, 4, 3, 9, weights=weights)


@pytest.mark.parametrize(("heads", "kind"), [(2, Learnt), (None, Activation)])
def test_numpy_is_torch(heads: int | None, kind: type[Learnt], tmp_path: Path) -> None:
    model = Classifier(heads, 8, torch.Generator().manual_seed(0))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    learnt(state, kind).save(tmp_path / FILE)
    again = read_scheduler(tmp_path / FILE)
    assert type(again) is kind
    for keys, values in prompts(6)[0]:
        wanted = model(torch.from_numpy(keys), torch.from_numpy(values)).detach().numpy()
        assert np.allclose(again.classify(keys, values), wanted, atol=1e-5)
    assert (again.prefill, again.high, again.low, again.tokens) == (4, 4, 3, 9)


@pytest.mark.parametrize(("heads", "kind"), [(2, Learnt), (None, Activation)])
def test_what_can_be_told_apart_is_learnt(heads: int | None, kind: type[Learnt]) -> None:
    examples, labels = prompts()
    weights = teach(examples[:18], labels[:18], heads=heads, seed=1, epochs=100)
    found = [int(learnt(weights, kind).classify(*one).argmax()) for one in examples]
    assert found == labels
    again = teach(examples[:18], labels[:18], heads=heads, seed=1, epochs=100)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_classes() -> None:
    assert switches(96) == (0, 32, 64, 96)
    one = learnt({})
    assert [str(one.phases(label)) for label in range(4)] == ["4/3", "4:3,3", "4:6,3", "4"]
    with pytest.raises(ConfigError, match="reads 3 bits"):
        one.require((4, 6), None)


class _Text:
    """What a scheduler may ask of a session, here its tokens alone."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


def test_chance_follows_its_shares() -> None:
    """The same text gets the same class, and over many texts classes come as often as their shares say."""
    one = Chance(4, 4, 3, 9, weights={"prior": np.array([0.5, 0.25, 0.25, 0.0], np.float32)})
    drawn = [str(one.decide(_Text([7, at]))) for at in range(800)]  # type: ignore[arg-type]
    assert drawn == [str(one.decide(_Text([7, at]))) for at in range(800)]  # type: ignore[arg-type]
    assert abs(drawn.count("4/3") - 400) < 60
    assert abs(drawn.count("4:3,3") - 200) < 50
    assert "4" not in drawn


def test_confidence_falls_once() -> None:
    """By the rule written out: the mean of the first ten and one standard deviation."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, 16)).astype(np.float32) * rng.uniform(0.5, 3, (40, 1)).astype(np.float32)
    steps, found = Confidence(4, 4, 3, 9).decide(_Text([1])), []  # type: ignore[arg-type]
    for row in logits:
        found.append(steps.bits(len(found)))
        steps.see(row)
    sure = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    later = sure[10:] > sure[:10].mean() + sure[:10].std()
    assert later.any()
    switch = 10 + int(later.argmax()) + 1
    assert found == [4] * switch + [3] * (40 - switch)


@pytest.mark.parametrize(
    "made",
    [Confidence(6, 4, 3, 9), Chance(4, 4, 3, 9, weights={"prior": np.full(4, 0.25, np.float32)})],
    ids=["confidence", "random"],
)
def test_controls_are_read_again(made: Scheduler, tmp_path: Path) -> None:
    made.save(tmp_path / FILE)
    again = read_scheduler(tmp_path / FILE)
    assert type(again) is type(made)
    assert (again.prefill, again.high, again.low, again.tokens) == (made.prefill, 4, 3, 9)
    assert str(again) in {"confidence", "random"}


def test_damage(tmp_path: Path) -> None:
    path, weights = tmp_path / FILE, teach(*prompts(4), heads=2, seed=0, epochs=1)
    with pytest.raises(ArtifactError, match="no scheduler"):
        read_scheduler(path)
    learnt(weights).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(ArtifactError):
        read_scheduler(path)
    wrong = [{"outer.bias": np.zeros(5)}, {"queries": np.zeros((2, 8))}, {"inner.bias": np.full(16, np.nan)}]
    for change in wrong:
        learnt({**weights, **change}).save(path)
        with pytest.raises(ArtifactError, match="do not fit"):
            read_scheduler(path)
    for prior in (np.zeros(4), np.full(4, -1.0), np.ones(3), np.full(4, np.nan)):
        Chance(4, 4, 3, 9, weights={"prior": prior}).save(path)
        with pytest.raises(ArtifactError, match="do not fit"):
            read_scheduler(path)


@pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_cache_of_the_last_layer(family: str, tmp_path: Path) -> None:
    """Means over heads; the same in every format up to its rounding, positions in order, sequences apart."""
    path = make(model_of(family), tmp_path / "toy.safetensors")
    ids, found = list(range(5, 17)), {}
    for kv in ("f32", "f16", "int8"):
        decoder = Decoder.open(path, kv=kv, cells=64, layers=(0, 1))  # whose keys and values depend on no others
        decoder.forward([9, 9], [0, 1], 1)
        decoder.forward(ids, range(12))
        found[kv] = decoder.mean_cache()
        assert decoder.mean_cache(1)[0].shape[0] == 2
        assert decoder.mean_cache(2)[0].shape[0] == 0
    keys, values = found["f32"]
    assert keys.shape == values.shape == (12, decoder.spec.layers[0].attention.size)  # type: ignore[union-attr]
    for kv, tolerance in (("f16", 1e-3), ("int8", 1e-2)):
        assert np.allclose(found[kv][0], keys, atol=tolerance * np.abs(keys).max())
        assert np.allclose(found[kv][1], values, atol=tolerance * np.abs(values).max())
    whole = Decoder.open(path, kv="f32", cells=64)
    whole.forward(ids, range(12))
    last = whole.mean_cache()
    whole.seq_rm(0)
    for at, token in enumerate(ids):
        whole.forward([token], [at])
    assert all(np.array_equal(one, other) for one, other in zip(whole.mean_cache(), last, strict=True))
    assert not np.allclose(last[1], values, atol=0.01)


@pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")
def test_means_are_over_heads(tmp_path: Path) -> None:
    """Values of the first layer against a few lines of numpy."""
    decoder = Decoder.open(make(model_of("llama"), tmp_path / "toy.safetensors"), kv="f32", activations="f32",
                           layers=(0, 1))  # fmt: skip
    file, part, ids = decoder.file, decoder.spec.layers[0].attention, [5, 7, 300]
    assert part is not None
    decoder.forward(ids, range(3))
    hidden = file.weight("embedding", 4)[ids]
    normal = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + decoder.spec.eps)
    qkv = (normal * file.vector("layers.0.attention.norm")) @ file.weight("layers.0.attention.qkv", 4).T
    values = qkv[:, -part.kv_heads * part.size :].reshape(3, part.kv_heads, part.size).mean(1)
    assert np.allclose(decoder.mean_cache()[1], values, atol=1e-5)


@pytest.mark.parametrize(("heads", "kind"), [(2, Learnt), (None, Activation)])
def test_a_scheduler_of_another_model_is_refused(heads: int | None, kind: type[Learnt]) -> None:
    state = Classifier(heads, 8, torch.Generator().manual_seed(0)).state_dict()
    made = learnt({name: value.numpy() for name, value in state.items()}, kind)
    assert made.require((3, 4), 8) is made
    for precisions, size, message in (
        ((3, 4), 16, "heads of 8 numbers"),
        ((3, 4), None, "none"),
        ((2, 3), 8, "4 bits"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.require(precisions, size)
    assert Confidence(4, 4, 3, 9).require((3, 4), None)
