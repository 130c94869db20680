"""The training loop: what it computes, that it continues, and that its hooks act."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lissome
from lissome.core.errors import ArtifactError, ConfigError, DataError, NumericsError
from lissome.core.events import Event, EventStream
from lissome.core.seeds import derive
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Batch, Hooks, Task
from lissome.engine.order import Order
from lissome.engine.train import TrainConfig, train

pytestmark = pytest.mark.long


def toy(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3))


def squared(module: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch.examples
    return (module(inputs) - targets).square().mean(-1)


def examples(count: int = 13) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, generator=generator), torch.randn(3, generator=generator)) for _ in range(count)]


def task(module: nn.Module, **changes: Any) -> Task:
    return Task(**{"module": module, "loss": squared, "data": examples(), **changes})


def run(config: TrainConfig, *, seed: int = 0, hooks: Hooks | None = None, **changes: Any) -> nn.Sequential:
    module = toy()
    exact = dataclasses.replace(config, precision="fp32")
    train(task(module, **changes), exact, seed=seed, hooks=hooks)
    return module


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_loss_falls_and_the_caller_is_left_alone() -> None:
    module = toy(dropout=0.2).eval()
    module[0].bias.requires_grad_(False)
    frozen = module[0].bias.detach().clone()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    result = train(task(module), TrainConfig(steps=60, lr=0.03), seed=0)
    assert torch.equal(torch.rand(1), expected)
    assert not module.training
    assert torch.equal(module[0].bias, frozen)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert result.steps == 60
    assert len(result.losses) == 60
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])


def test_first_step_is_that_of_torch() -> None:
    """One step over the whole data set equals one step of stock AdamW."""
    module = run(TrainConfig(steps=1, lr=0.01, batch=13, clip=None, weight_decay=0.1, schedule="constant"))
    reference, data = toy(), examples()
    decayed = [value for value in reference.parameters() if value.ndim == 2]
    others = [value for value in reference.parameters() if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
    inputs, targets = (torch.stack(column) for column in zip(*data, strict=True))
    (reference(inputs) - targets).square().mean().backward()
    optimizer.step()
    assert distance(module, reference) < 1e-6


def test_accumulation_changes_nothing() -> None:
    whole = run(TrainConfig(steps=3, lr=0.1, batch=12, optimizer="sgd"))
    parts = run(TrainConfig(steps=3, lr=0.1, batch=3, accumulation=4, optimizer="sgd"))
    assert distance(whole, toy()) > 1e-3
    assert distance(whole, parts) < 1e-6


def test_every_epoch_sees_every_example_once() -> None:
    seen: list[int] = []

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        seen.extend(batch.indices.tolist())
        return squared(module, batch)

    run(TrainConfig(steps=13, batch=2, accumulation=2), loss=loss)  # 52 = 4 epochs of 13, cut across steps
    epochs = [seen[start : start + 13] for start in range(0, 52, 13)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@dataclass(frozen=True)
class Uneven:
    """Examples that know their lengths."""

    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        return self.lengths[index].float().expand(4)


@given(count=st.integers(1, 150), batch=st.integers(1, 7), seed=st.integers(0, 99))
def test_examples_of_one_length_meet_and_none_is_lost(count: int, batch: int, seed: int) -> None:
    lengths = torch.randint(1, 30, (count,), generator=torch.Generator().manual_seed(seed))
    order = Order(Uneven(lengths), batch, seed, "data")
    steps = 3 * count  # epochs end within batches
    seen = torch.cat([order.positions(step * batch, batch) for step in range(steps)])
    epochs = seen.view(-1, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    again = Order(Uneven(lengths), batch, seed, "data")
    late = 2 * steps // 3
    assert torch.equal(again.positions(late * batch, batch), seen[late * batch : (late + 1) * batch])
    plain = Order(range(count), batch, seed, "data")
    random = torch.cat([plain.positions(step * batch, batch) for step in range(steps)])
    padded, before = (int(lengths[one].view(-1, batch).amax(1).sum()) for one in (seen, random))
    if batch > 1 and count >= 100:
        assert padded < before
    elif count < 8 * batch:
        assert torch.equal(seen, random), "too few to be sorted without always meeting the same ones"


def test_seed_decides() -> None:
    config = TrainConfig(steps=3, batch=2)
    assert distance(run(config, seed=1), run(config, seed=1)) == 0
    assert distance(run(config, seed=1), run(config, seed=2)) > 0
    assert derive(0, "a", 1) != derive(0, "a", 11) != derive(1, "a", 1)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rate_rises_then_falls(schedule: str) -> None:
    config = TrainConfig.from_mapping({"lr": 1.0, "warmup": 4, "schedule": schedule, "floor": 0.1})
    rates = [config.rate(step, 20) for step in range(21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_nonfinite_loss_names_the_step() -> None:
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return squared(module, batch) * (float("nan") if batch.step == 2 else 1.0)

    module = toy()
    with pytest.raises(NumericsError, match="loss is nan at step 3 of 5"):
        train(task(module, loss=loss), TrainConfig(steps=5), seed=0)
    assert all(bool(value.isfinite().all()) for value in module.parameters())


def test_refusals() -> None:
    with pytest.raises(DataError, match="no examples"):
        train(task(toy(), data=[]), TrainConfig(), seed=0)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(task(toy().requires_grad_(False)), TrainConfig(), seed=0)
    with pytest.raises(ConfigError, match="one number per example"):
        train(task(toy(), loss=lambda module, batch: squared(module, batch).mean()), TrainConfig(), seed=0)
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        train(task(toy()), TrainConfig(gradient_checkpointing=True), seed=0)


def test_events_tell_loss_and_time_left() -> None:
    events: list[Event] = []
    train(task(toy()), TrainConfig(steps=3), seed=0, events=EventStream(events.append))
    advances = [event for event in events if event.kind == "advance"]
    assert [event.step for event in advances] == [1, 2, 3]
    assert advances[0].total == 3
    assert advances[-1].metrics["seconds_left"] == 0
    assert advances[0].metrics["loss"] > 0


def test_time_limit_becomes_steps() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    result = train(task(module), TrainConfig(steps=10**9, max_seconds=0.02), seed=0)
    assert 1 <= result.steps < 10**6
    assert module[1].num_batches_tracked == result.steps


class Acting(Hooks):
    """Uses every hook, in a way whose effect can be computed."""

    def __init__(self) -> None:
        self.paths: list[float] = []
        self.seen: list[int] = []
        self.counter = torch.zeros(1)

    @contextlib.contextmanager
    def _path(self, rng: random.Random) -> Iterator[None]:
        self.paths.append(rng.random())
        yield

    def path(self, step: int, rng: random.Random) -> contextlib.AbstractContextManager[None]:
        return self._path(rng)

    def weigh(self, batch: Batch) -> Tensor:
        return (batch.indices % 2).float() * 2

    def mask(self, step: int, name: str, parameter: nn.Parameter) -> Tensor | None:
        return torch.tensor([[1.0], [0.0], [1.0]]) if name == "3.weight" else None

    def noise(self, step: int, name: str, parameter: nn.Parameter) -> float:
        return 0.5 if name == "3.bias" else 0.0

    def snapshot(self, step: int, module: nn.Module) -> None:
        self.seen.append(step)
        self.counter += 1

    def state(self) -> Mapping[str, Tensor]:
        return {"counter": self.counter}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.counter = tensors["counter"]


def test_hooks_act() -> None:
    hooks, start = Acting(), toy()
    config = TrainConfig(steps=2, lr=0.1, batch=4, accumulation=2, optimizer="sgd", clip=None)
    slow = {"rates": {"0.weight": 0.0}}
    trained = run(config, hooks=hooks, **slow)
    assert len(set(hooks.paths)) == 4
    assert hooks.seen == [1, 2]
    assert torch.equal(trained[0].weight, start[0].weight)
    assert not torch.equal(trained[0].bias, start[0].bias)
    assert torch.equal(trained[3].weight[1], start[3].weight[1])
    assert not torch.equal(trained[3].weight[0], start[3].weight[0])
    assert distance(run(config, hooks=Acting(), **slow), trained) == 0

    class Weighing(Hooks):
        def weigh(self, batch: Batch) -> Tensor:
            return (batch.indices % 2).float() * 2

    def doubled_odd(module: nn.Module, batch: Batch) -> Tensor:
        return squared(module, batch) * (batch.indices % 2) * 2

    assert distance(run(config, hooks=Weighing()), run(config, loss=doubled_odd)) < 1e-7


def test_noise_has_the_stated_deviation() -> None:
    class Noisy(Hooks):
        def noise(self, step: int, name: str, parameter: nn.Parameter) -> float:
            return 0.5

    module = nn.Linear(100, 100, bias=False)
    start = module.weight.detach().clone()
    data = [torch.zeros(100)] * 4
    config = TrainConfig(steps=1, lr=1.0, beta1=0.0, optimizer="sgd", schedule="constant")
    train(
        Task(module=module, loss=lambda model, batch: model(batch.examples).sum(-1), data=data),
        config,
        seed=0,
        hooks=Noisy(),
    )
    assert float((module.weight.detach() - start).std()) == pytest.approx(0.5, rel=0.05)


def test_second_data_set_is_drawn_in_step() -> None:
    pairs: list[tuple[int, int]] = []

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        pairs.append((len(batch.indices), len(batch.second)))
        return squared(module, batch) + batch.second.mean() * 0

    run(TrainConfig(steps=2, batch=3), loss=loss, second=[torch.ones(2), torch.zeros(2)])
    assert pairs == [(3, 3), (3, 3)]


class StopError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_continued_equals_undisturbed(tmp_path: Path, optimizer: str) -> None:
    config = TrainConfig.from_mapping(
        {"steps": 9, "batch": 2, "accumulation": 2, "optimizer": optimizer, "checkpoint_steps": 2, "warmup": 2}
    )

    def network() -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    class Crashing(Acting):
        def snapshot(self, step: int, module: nn.Module) -> None:
            super().snapshot(step, module)
            if step == 5:
                raise StopError

    whole, parts = network(), network()
    first, last = Acting(), Acting()
    train(task(whole), config, seed=0, hooks=first)
    checkpoint = Checkpoint(tmp_path, {})
    with pytest.raises(StopError):
        train(task(parts), config, seed=0, hooks=Crashing(), checkpoint=checkpoint)
    fresh = network()
    result = train(task(fresh), config, seed=0, hooks=last, checkpoint=checkpoint)
    assert result.steps == 9
    assert len(result.losses) == 9
    assert last.seen == [5, 6, 7, 8, 9]
    assert torch.equal(first.counter, last.counter)
    states = whole.state_dict(), fresh.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    again = train(task(network()), config, seed=0, checkpoint=checkpoint)  # done: nothing is computed again
    assert again.losses == result.losses


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lissome.__file__).parents[1])}
JOB = """
import hashlib, sys
from pathlib import Path
import torch
from torch import nn
from lissome.core.errors import ArtifactError
from lissome.core.events import EventStream
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Task
from lissome.engine.train import TrainConfig, train
torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(64, 128), nn.Dropout(0.1), nn.GELU(), nn.Linear(128, 64))
data = list(torch.randn(50, 64))
loss = lambda model, batch: (model(batch.examples) - batch.examples).square().mean(-1)
events = EventStream(lambda event: print(event.step, flush=True) if event.kind == "advance" else None)
config = TrainConfig(steps=200, batch=4, checkpoint_steps=3)
place = Checkpoint(Path(sys.argv[1]), {"job": 1})
if len(sys.argv) > 2:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    train(Task(module=module, loss=loss, data=data), config, seed=3, checkpoint=place, events=events)
except ArtifactError as error:
    sys.exit(f"error: {error}")
digest = hashlib.sha256()
for value in module.state_dict().values():
    digest.update(value.numpy().tobytes())
print("hash", digest.hexdigest())
"""


def _job(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_killed_at_random_steps_gives_the_same_hash(tmp_path: Path) -> None:
    undisturbed, _ = _job(str(tmp_path / "a")).communicate()
    rng = random.Random(0)
    for _ in range(2):
        process = _job(str(tmp_path / "b"))
        assert process.stdout is not None
        for _ in range(rng.randrange(2, 60)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    continued, _ = _job(str(tmp_path / "b")).communicate()
    assert continued.splitlines()[-1].startswith("hash ")
    assert continued.splitlines()[-1] == undisturbed.splitlines()[-1]
    assert 1 < len(continued.splitlines()) < len(undisturbed.splitlines())  # it did continue


def test_full_disk_is_one_line_and_can_be_continued(tmp_path: Path) -> None:
    process = _job(str(tmp_path / "a"), "10000")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert "hash" not in output
    lines = [line for line in errors.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: cannot write a checkpoint of step 3")
    final, _ = _job(str(tmp_path / "a")).communicate()
    assert "hash" in final


def test_another_job_is_refused(tmp_path: Path) -> None:
    train(task(toy()), TrainConfig(steps=1), seed=0, checkpoint=Checkpoint(tmp_path, {"seed": 0}))
    with pytest.raises(ArtifactError, match="another job"):
        train(task(toy()), TrainConfig(steps=1), seed=1, checkpoint=Checkpoint(tmp_path, {"seed": 1}))
