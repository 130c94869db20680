"""The training loop: any module, any per-example loss, and hooks where methods differ.

Everything random and the order of the examples follow from (seed, step) alone, so that a continued run needs no
generator or iterator state: killed and continued equals never interrupted, bit for bit on one device type with the
same number of threads. Goes through `accelerate`, so the same loop runs on several GPUs or hosts when started with
``accelerate launch``. Only trainable parameters get optimizer state, and only they are written to checkpoints.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import default_collate

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError, DataError, NumericsError
from lissome.core.events import EventStream
from lissome.core.seeds import derive
from lissome.engine.checkpoint import Checkpoint, Saved, restore_rng, rng_state
from lissome.engine.hooks import Batch, Hooks, Task
from lissome.engine.order import Order
from lissome.engine.sharded import full, like
from lissome.models.precision import depthwise_in_float32, fast_dtype, frozen_in


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MethodConfig):
    """Settings of the loop; what the model learns from is the `Task`."""

    steps: int = option(100, "optimizer steps", low=1)
    lr: float = option(1e-3, "peak learning rate", low=0.0)
    batch: int = option(8, "examples per forward pass and process", low=1)
    accumulation: int = option(1, "forward passes per optimizer step", low=1)
    warmup: int = option(0, "steps in which the rate rises linearly from 0", low=0)
    schedule: Literal["constant", "linear", "cosine"] = option("cosine", "how the rate falls after the warm-up")
    floor: float = option(0.0, "share of `lr` that is left at the last step", low=0.0, high=1.0)
    optimizer: Literal["adamw", "sgd"] = option("adamw", "adamw (betas below), or sgd with momentum beta1")
    beta1: float = option(0.9, "decay of the mean gradient", low=0.0, high=0.9999)
    beta2: float = option(
        0.99, "decay of the mean squared gradient; 0.99 settles within short runs", low=0.0, high=0.99999
    )
    weight_decay: float = option(0.0, "decoupled decay, on parameters with two or more dimensions only", low=0.0)
    clip: float | None = option(1.0, "largest norm of the whole gradient; none: no clipping", low=0.0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "of the forward pass; auto: bf16 where this device is faster in it"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, 4/3 time")
    max_seconds: float | None = option(None, "shorten `steps` to what fits, measured once before step 1", low=0.0)
    checkpoint_steps: int | None = option(None, "steps between checkpoints; none: by time alone", low=1)
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints", low=0.0)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[self.schedule]
        return self.lr * (self.floor + (1 - self.floor) * fall)


@dataclass(frozen=True)
class TrainResult:
    """What happened.

    Attributes:
        steps: Optimizer steps done, those of earlier, killed runs included.
        losses: Mean loss of each step.
        seconds: Wall time spent, earlier runs included as far as their last checkpoint.
    """

    steps: int
    losses: tuple[float, ...]
    seconds: float


def train(
    task: Task,
    config: TrainConfig,
    *,
    seed: int,
    hooks: Hooks | None = None,
    checkpoint: Checkpoint | None = None,
    events: EventStream | None = None,
) -> TrainResult:
    """Train `task.module` in place; continues from `checkpoint` when it holds a former state of this job.

    The module's mode, device and the global random generators are afterwards as they were.

    Raises:
        ConfigError: When nothing is trainable, or a setting does not suit the module.
        DataError: When there are no examples.
        NumericsError: When a loss or gradient is NaN or infinite; names the step. The last checkpoint stays.
        ArtifactError: When a checkpoint belongs to another job or cannot be written.
    """
    if not len(task.data) or (task.second is not None and not len(task.second)):
        raise DataError("there are no examples to train on; give more text or shorter windows.")
    with _as_before(task.module, config):
        loop = _Loop(task, config, seed, hooks or Hooks(), checkpoint)
        with contextlib.ExitStack() as fast:
            if loop.bf16 and not loop.sharded:
                fast.enter_context(frozen_in(task.module, torch.bfloat16))
            if loop.bf16 and loop.accelerator.device.type == "cpu":
                fast.enter_context(depthwise_in_float32(task.module))
            return loop.run(events or EventStream())


@contextlib.contextmanager
def _as_before(module: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Switch to training, and put modes, gradients, device and global generators back afterwards."""
    modes = {part: part.training for part in module.modules()}
    device = next(module.parameters()).device
    rng = rng_state()
    if config.gradient_checkpointing:
        if not hasattr(module, "activation_checkpointing_enable"):
            raise ConfigError(f"gradient_checkpointing: {type(module).__name__} does not support it; turn it off.")
        cast(Any, module).activation_checkpointing_enable({"use_reentrant": False})
    module.train()
    try:
        yield
    finally:
        if config.gradient_checkpointing:
            cast(Any, module).activation_checkpointing_disable()
        for part, mode in modes.items():
            part.training = mode
        module.zero_grad(set_to_none=True)
        module.to(device)
        restore_rng(rng)


class _Objective(nn.Module):
    """The module and its loss as one forward pass, so that DDP and FSDP see every parameter they wrap in use."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._loss = task.loss
        self._no_split_modules = getattr(task.module, "_no_split_modules", None)  # read by accelerate's FSDP

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.module, batch)


class _Loop:
    """One run of `train`."""

    def __init__(self, task: Task, config: TrainConfig, seed: int, hooks: Hooks, checkpoint: Checkpoint | None) -> None:
        self.task, self.config, self.seed, self.hooks, self.checkpoint = task, config, seed, hooks, checkpoint
        several = type(hooks).path is not Hooks.path or type(hooks).passes is not Hooks.passes
        unused = DistributedDataParallelKwargs(find_unused_parameters=several)
        self.accelerator = Accelerator(kwargs_handlers=[unused])
        objective = _Objective(task)
        optimizer = self._optimizer()
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        # Read again: FSDP has replaced the parameters by their shards.
        self.trainable = {name: value for name, value in task.module.named_parameters() if value.requires_grad}
        self.orders = [
            Order(data, config.batch, seed, name)
            for data, name in ((task.data, "data"), (task.second, "second"))
            if data is not None
        ]
        self.steps, self.step, self.losses, self.seconds = config.steps, 0, list[float](), 0.0
        fastest = fast_dtype(self.accelerator.device) == torch.bfloat16
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and fastest)
        self.sharded = any(isinstance(value, DTensor) for value in task.module.parameters())

    def run(self, events: EventStream) -> TrainResult:
        saved = self.checkpoint.load(events) if self.checkpoint else None
        if saved:
            self._restore(saved)
        elif self.config.max_seconds is not None:
            self.steps = min(self.steps, self._steps_within(self.config.max_seconds))
            self._save()
        start = last_save = time.monotonic()
        begun, before = self.step, self.seconds
        with events.stage("train", self.steps, done=self.step) as stage:
            while self.step < self.steps:
                loss, now = self._agree(self._gradient(), time.monotonic() - start)
                rate = self._update(loss)
                self.losses.append(loss)
                self.step += 1
                self.seconds = before + now
                self.hooks.snapshot(self.step, self.task.module)
                left = now / (self.step - begun) * (self.steps - self.step)
                stage.advance(loss=loss, rate=rate, seconds_left=left)
                if self._due(start + now - last_save):
                    self._save()
                    last_save = time.monotonic()
        return TrainResult(self.step, tuple(self.losses), self.seconds)

    def _gradient(self) -> float:
        """Accumulate the gradient of one step; return the mean loss of this process's examples."""
        config, total = self.config, 0.0
        for part in range(config.accumulation):
            self._seed_generators(part, 0)
            batch = self._batch(part)
            paths = self.hooks.passes(self.step, random.Random(derive(self.seed, "path", self.step, part)))
            for turn, path in enumerate(paths):
                if turn:
                    self._seed_generators(part, turn)
                last = part == config.accumulation - 1 and turn == len(paths) - 1
                sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective)
                with sync, path:
                    total += self._pass(batch, config.accumulation * len(paths))
        return total

    def _pass(self, batch: Batch, passes: int) -> float:
        """Go forward and backward once; return what this pass adds to the mean loss of the step's `passes`."""
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.objective(batch)
        if losses.shape != batch.indices.shape:
            raise ConfigError(f"the loss must be one number per example, got shape {tuple(losses.shape)}.")
        weights = self.hooks.weigh(batch)
        loss = (losses if weights is None else losses * weights).float().mean() / passes
        self.accelerator.backward(loss)
        return float(loss.detach())

    def _update(self, loss: float) -> float:
        """Mask, clip and noise the gradient, and step; return the learning rate."""
        rate = self.config.rate(self.step, self.steps)
        if not math.isfinite(loss):
            raise NumericsError(self._nonfinite("loss", loss, rate))
        for name, parameter in self.trainable.items():
            mask = self.hooks.mask(self.step, name, parameter) if parameter.grad is not None else None
            if mask is not None and parameter.grad is not None:
                parameter.grad.mul_(mask)
        if self.config.clip is not None:
            norm = float(self.accelerator.clip_grad_norm_(list(self.trainable.values()), self.config.clip))
            if not math.isfinite(norm):
                raise NumericsError(self._nonfinite("gradient norm", norm, rate))
        generator = torch.Generator(self.accelerator.device).manual_seed(derive(self.seed, "noise", self.step))
        for name, parameter in self.trainable.items():
            deviation = self.hooks.noise(self.step, name, parameter) if parameter.grad is not None else 0.0
            if deviation and parameter.grad is not None:
                noise = torch.randn(parameter.shape, generator=generator, device=self.accelerator.device)
                parameter.grad.add_(like(noise, parameter.grad), alpha=deviation)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _nonfinite(self, what: str, value: float, rate: float) -> str:
        return (
            f"the {what} is {value} at step {self.step + 1} of {self.steps} (learning rate {rate:.2g}); "
            f"lower lr, lengthen warmup, or check the model and data for NaN."
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        config, groups = self.config, dict[tuple[float, bool], list[nn.Parameter]]()
        for name, parameter in self.task.module.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((self.task.rates.get(name, 1.0), parameter.ndim >= 2), []).append(parameter)
        if not groups:
            raise ConfigError("no parameter requires a gradient, so there is nothing to train; add adapters first.")
        settings = [
            {"params": members, "factor": factor, "weight_decay": config.weight_decay * decays}
            for (factor, decays), members in groups.items()
        ]
        if config.optimizer == "sgd":
            return torch.optim.SGD(settings, lr=config.lr, momentum=config.beta1, fused=True)
        # Fused passes over memory once: a quarter of the time on a CPU, where an embedding is most of a small encoder.
        return torch.optim.AdamW(settings, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)

    def _batch(self, part: int) -> Batch:
        config, world = self.config, self.accelerator.num_processes
        start = (self.step * config.accumulation + part) * world + self.accelerator.process_index
        picks = [order.positions(start * config.batch, config.batch) for order in self.orders]
        sets = [self.task.data] + ([self.task.second] if self.task.second is not None else [])
        stacked = [default_collate([data[int(at)] for at in pick]) for data, pick in zip(sets, picks, strict=True)]
        device = self.accelerator.device
        examples, *second = (send_to_device(one, device) for one in stacked)
        return Batch(examples, picks[0].to(device), second[0] if second else None, self.step)

    def _seed_generators(self, part: int, turn: int) -> None:
        """Dropout and anything else that draws from a global generator follows from (seed, step) too."""
        turns = (turn,) if turn else ()
        value = derive(self.seed, "global", self.step, part, *turns, self.accelerator.process_index)
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)

    def _agree(self, loss: float, seconds: float) -> tuple[float, float]:
        """Mean over the processes, so that all stop, fail and save at the same step."""
        if self.accelerator.num_processes == 1:
            return loss, seconds
        both = torch.tensor([loss, seconds], dtype=torch.float32, device=self.accelerator.device)
        loss, seconds = self.accelerator.reduce(both, "mean").tolist()
        return loss, seconds

    def _steps_within(self, seconds: float) -> int:
        """Time three steps without an update (the first one warms up), and say how many fit."""
        times = []
        buffers = {name: value.clone() for name, value in self.task.module.named_buffers()}
        for _ in range(3):
            start = time.monotonic()
            self._gradient()
            times.append(self._agree(0.0, time.monotonic() - start)[1])
            self.task.module.zero_grad(set_to_none=True)
        for name, value in self.task.module.named_buffers():  # running means have seen these passes
            value.copy_(buffers[name])
        return max(1, int(seconds / min(times[1:])))

    def _due(self, since: float) -> bool:
        if self.checkpoint is None:
            return False
        every = self.config.checkpoint_steps
        by_step = every is not None and self.step % every == 0
        return by_step or self.step == self.steps or since >= self.config.checkpoint_seconds

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {f"weight/{name}": full(value) for name, value in self._weights().items()}
        for name, parameter in self.trainable.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer/{name}/{key}"] = full(value)
        tensors |= {f"hooks/{name}": value for name, value in self.hooks.state().items()}
        state = {"steps": self.steps, "losses": self.losses, "seconds": self.seconds}
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.step, tensors, state)
        self.accelerator.wait_for_everyone()

    def _restore(self, saved: Saved) -> None:
        weights = self._weights()
        moments: dict[str, dict[str, Tensor]] = {}
        hooks: dict[str, Tensor] = {}
        for name, value in saved.tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "weight":
                with torch.no_grad():
                    weights[rest].copy_(like(value, weights[rest]))
            elif kind == "optimizer":
                owner, _, key = rest.rpartition("/")
                moments.setdefault(owner, {})[key] = value
            else:
                hooks[rest] = value
        for owner, values in moments.items():
            parameter = self.trainable[owner]
            state = {
                key: like(value, parameter) if value.ndim else value.to(parameter.device)
                for key, value in values.items()
            }
            self.optimizer.state[parameter].update(state)
        if hooks:
            self.hooks.restore(hooks)
        self.step = saved.step
        if self.config.max_seconds is not None:
            self.steps = saved.state["steps"]
        self.losses, self.seconds = list(saved.state["losses"]), saved.state["seconds"]

    def _weights(self) -> dict[str, Tensor]:
        """What training changes: trainable parameters, and buffers such as running means."""
        kept = self.task.module.state_dict(keep_vars=True)
        return {name: value for name, value in kept.items() if not isinstance(value, nn.Parameter)} | dict(
            self.trainable
        )
