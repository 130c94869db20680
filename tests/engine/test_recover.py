"""Recovery: it learns, it continues after a kill, and leaves the model whole when it fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.errors import ArtifactError, ConfigError, DataError, NumericsError
from lissome.core.events import Event, EventStream
from lissome.core.method import Context
from lissome.engine.forward import last_states
from lissome.engine.hooks import Task
from lissome.engine.recover import RecoverConfig, fingerprint, recover, shorter, small_tensors, token_loss
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import add_lora, merge_lora
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.ops.losses import compare, rows_nll
from lissome.testing.toys import DECODERS, toy_model

pytestmark = pytest.mark.long


def windows(count: int = 12, length: int = 16) -> Tensor:
    """Text with a rule that is quick to learn: each token is the one before plus 3."""
    starts = torch.randint(61, (count, 1), generator=torch.Generator().manual_seed(0))
    return (starts + 3 * torch.arange(length)) % 61


def context(folder: Path, *, seed: int = 0, listeners: tuple[Any, ...] = (), fingerprint: str = "text") -> Context:
    data: Any = SimpleNamespace(fingerprint=fingerprint)
    cost: Any = None
    return Context(
        budget=Budget(),
        original={},
        seed=seed,
        events=EventStream(*listeners),
        folder=folder,
        data=data,
        cost=cost,
    )


def cut(family: str = "llama") -> Model:
    model = toy_model(family)
    subnet = {"layers.1.attention": 0, "layers.2.mlp": 0, "layers.0.mlp.width": 24}
    return extract(model, subnet)


@torch.no_grad()
def loss(model: Model, ids: Tensor) -> float:
    states = last_states(model, ids)[:, :-1].flatten(0, 1)
    return float(rows_nll(states, ids[:, 1:].flatten(), model.anatomy.head).mean())


@pytest.mark.parametrize("family", [*DECODERS, "gpt2", "opt"])
def test_learns_and_keeps_its_shape(family: str, tmp_path: Path) -> None:
    model, ids = cut(family), windows()
    shapes = {name: value.shape for name, value in model.module.named_parameters()}
    before = loss(model, ids)
    result = recover(model, ids, config=RecoverConfig(steps=20, lr=1e-2, batch=6), context=context(tmp_path))
    assert result is model
    assert loss(model, ids) < 0.9 * before
    assert {name: value.shape for name, value in model.module.named_parameters()} == shapes
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert not model.module.training


def test_distillation_brings_the_original_closer(tmp_path: Path) -> None:
    original, model = toy_model(), cut()
    ids = torch.randint(61, (12, 16), generator=torch.Generator().manual_seed(0))

    def divergence() -> float:
        states, others = (last_states(one, ids).flatten(0, 1) for one in (original, model))
        return float(compare(states, others, ids.flatten(), original.anatomy.head, model.anatomy.head).kl.mean())

    with torch.no_grad():
        before = divergence()
        weights = fingerprint(original.module)
    config = RecoverConfig(steps=20, lr=1e-2, distil=1.0)
    recover(model, ids, config=config, context=context(tmp_path), teacher=original)
    with torch.no_grad():
        assert divergence() < 0.7 * before
    assert fingerprint(original.module) == weights


def test_continued_equals_undisturbed(tmp_path: Path) -> None:
    class StopError(Exception):
        """Stands for a crash."""

    def stop(event: Event) -> None:
        if event.kind == "advance" and event.step == 7:
            raise StopError

    config = RecoverConfig(steps=10, batch=4, rank=4)
    whole, parts = cut(), cut()
    untouched = fingerprint(parts.module)
    recover(whole, windows(), config=config, context=context(tmp_path / "whole"))
    place = tmp_path / "parts"
    with pytest.raises(StopError):
        recover(parts, windows(), config=config, context=context(place, listeners=(stop,)))
    assert fingerprint(parts.module) == untouched  # no half-trained adapters stay behind
    recover(parts, windows(), config=config, context=context(place))
    assert fingerprint(parts.module) == fingerprint(whole.module) != untouched
    for changed in (context(place, seed=1), context(place, fingerprint="other")):
        with pytest.raises(ArtifactError, match="another job"):
            recover(cut(), windows(), config=config, context=changed)
    with pytest.raises(ArtifactError, match="another job"):
        recover(toy_model(), windows(), config=config, context=context(place))


def test_a_failure_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = cut()
    model.module.get_parameter("model.layers.0.mlp.up_proj.weight").data[0, 0] = float("nan")
    before = fingerprint(model.module)
    with pytest.raises(NumericsError, match="step 1"):
        recover(model, windows(), config=RecoverConfig(steps=2), context=context(tmp_path))
    assert fingerprint(model.module) == before
    with pytest.raises(DataError, match="no windows"):
        recover(model, windows()[:0], config=RecoverConfig(), context=context(tmp_path))
    with pytest.raises(ConfigError, match="teacher"):
        recover(model, windows(), config=RecoverConfig(distil=0.5), context=context(tmp_path))


def test_batches_are_cut_to_what_a_forward_may_hold() -> None:
    for batch, length in ((8, 512), (8, 100), (6, 128), (7, 256), (1, 4096)):
        training = RecoverConfig(batch=batch).training(length)
        assert training.batch * training.accumulation == batch
        assert training.batch == 1 or training.batch * length <= 256


def test_long_windows_are_cut() -> None:
    ids = torch.arange(3 * 512).view(3, 512)
    assert torch.equal(shorter(ids), ids.view(6, 256))
    assert torch.equal(shorter(ids[:, :300]), ids[:, :300].reshape(6, 150))
    assert all(shorter(ids[:, :length]).shape == (3, length) for length in (256, 100, 263))
    begun = ids.clone()
    begun[:, 0] = 7
    pieces = shorter(begun)
    assert (pieces[:, 0] == 7).all()
    assert torch.equal(pieces[:, 1:], ids.view(6, 256)[:, 1:])


def test_precision_and_recomputation_change_little(tmp_path: Path) -> None:
    """Half precision gives nearly the same losses, recomputed activations exactly the same weights."""

    def trained(**settings: Any) -> tuple[tuple[float, ...], Model]:
        model, ids = cut(), windows()
        add_lora(model, rank=4, seed=1)
        frozen = model.module.get_parameter("model.layers.0.mlp.up_proj.weight")
        config = TrainConfig.from_mapping({"steps": 4, "lr": 1e-2, **settings})
        result = train(Task(module=model.module, loss=token_loss(model), data=ids), config, seed=0)
        assert model.module.get_parameter("model.layers.0.mlp.up_proj.weight") is frozen
        assert frozen.dtype == torch.float32
        merge_lora(model)
        return result.losses, model

    plain, first = trained(precision="fp32")
    half, _ = trained(precision="bf16")
    again, second = trained(precision="fp32", gradient_checkpointing=True)
    assert plain != half
    assert half == pytest.approx(plain, rel=0.02)
    assert again == pytest.approx(plain, rel=1e-5)
    pairs = zip(first.module.parameters(), second.module.parameters(), strict=True)
    assert max(float((one - other).detach().abs().max()) for one, other in pairs) < 1e-5


@pytest.mark.parametrize("family", ["mamba", "mamba2", "bamba"])
def test_small_tensors_train_where_no_adapter_sits(family: str, tmp_path: Path) -> None:
    model = extract(toy_model(family), {"layers.2.mixer.ssm": 0})
    names = small_tensors(model, 1 << 20)
    assert {name.rpartition(".")[2] for name in names} >= {"weight", "bias", "A_log", "D"}
    assert not any("in_proj" in name or "x_proj" in name for name in names), "adapters sit there"
    most = min(model.module.get_parameter(name).numel() for name in names)
    assert set(small_tensors(model, most)) < set(names) and not small_tensors(model, 0)
    ids, before = windows(), {name: value.clone() for name, value in model.module.named_parameters()}
    start = loss(model, ids)
    recover(model, ids, config=RecoverConfig(steps=20, lr=1e-2, small=1 << 20), context=context(tmp_path))
    assert loss(model, ids) < 0.9 * start
    still = {name for name, value in model.module.named_parameters() if torch.equal(value, before[name])}
    assert still.isdisjoint(names) and any("embed" in name for name in still)


def test_after_an_error_small_tensors_are_as_they_were(tmp_path: Path) -> None:
    model = toy_model("mamba2")
    before = fingerprint(model.module)

    def fail(event: Event) -> None:
        if event.stage == "train" and event.step == 3:
            raise RuntimeError

    config = RecoverConfig(steps=6, lr=1e-2, small=1 << 20)
    with pytest.raises(RuntimeError):
        recover(model, windows(), config=config, context=context(tmp_path, listeners=(fail,)))
    assert fingerprint(model.module) == before


def test_small_tensors_keep_their_type(tmp_path: Path) -> None:
    model = toy_model("mamba2")
    model.module.to(torch.bfloat16)
    recover(model, windows(), config=RecoverConfig(steps=2, small=1 << 20), context=context(tmp_path))
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
