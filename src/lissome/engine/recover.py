"""Heals a cut model: low-rank adapters are trained on text, or on the original's opinion of it, and merged.

What a removal damages is mostly how the remaining parts fit together, which few parameters and little text repair.
Where no adapter can sit (convolutions, decays and norms of a Mamba mixer, projections whose weight is read directly),
small tensors can be trained themselves. The result has the shapes and the speed of the cut model.
"""

# B windows, T tokens, D residual width

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError, DataError
from lissome.core.method import Context
from lissome.core.seeds import derive
from lissome.cost.peak import give_back
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.elastic import Heard
from lissome.engine.forward import last_states
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import adaptable, add_lora, merge_lora, remove_lora
from lissome.models.model import Model
from lissome.models.precision import fast_dtype, in_dtype
from lissome.ops.distil import Teacher, learning_loss

_LENGTH = 256  # tokens of a forward: memory grows with them, and steps on shorter windows heal more per minute
_SHORTEST = 64  # below this a window teaches little of how tokens far apart relate
_WARMUP = 0.05


@dataclass(frozen=True, kw_only=True)
class RecoverConfig(MethodConfig):
    """Settings of `recover`."""

    steps: int = option(120, "optimizer steps", low=1)
    lr: float = option(2e-3, "peak learning rate; cosine to 0 after a warm-up of 5 %", low=0.0)
    batch: int = option(4, "windows of up to 256 tokens per step; longer ones are cut", low=1)
    rank: int = option(16, "rank of the adapters", low=1)
    alpha: int = option(32, "adapters are scaled by alpha / rank", low=1)
    small: int = option(
        0, "tensors of the blocks that no adapter reaches are trained themselves up to so many numbers; 0: none", low=0
    )
    small_rate: float = option(
        0.1, "their learning rate, as a share of lr: a weight moves as it is, an adapter by a product", low=0.0
    )
    distil: float = option(0.0, "share of KL(original‖model) in the loss; the rest is the text", low=0.0, high=1.0)
    max_seconds: float | None = option(None, "shorten `steps` to what fits, measured before step 1", low=0.0)

    def training(self, length: int) -> TrainConfig:
        """Settings of the training loop for windows of `length` tokens."""
        most = max(1, _LENGTH // length)
        forward = max(size for size in range(1, self.batch + 1) if self.batch % size == 0 and size <= most)
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            batch=forward,
            accumulation=self.batch // forward,
            warmup=round(_WARMUP * self.steps),
            max_seconds=self.max_seconds,
        )


def recover(
    model: Model,
    windows: Sequence[Any] | Tensor,
    *,
    config: RecoverConfig,
    context: Context,
    teacher: Model | None = None,
) -> Model:
    """Train adapters on a cut model and merge them, in place; continues from `context.folder` after a kill.

    Args:
        model: The cut model; on an error it is left as it was.
        windows: Token ids, LongTensor[N, T], no padding.
        config: Settings.
        context: Gives seed, events, folder and the fingerprint of the data.
        teacher: The original, for ``distil > 0``; it needs one more forward pass of itself per window.

    Returns:
        The same model.

    Raises:
        DataError: When there are no windows.
        ConfigError: When `distil` is asked for without a teacher.
        NumericsError: When the loss is NaN or infinite; names the step.
        ArtifactError: When a checkpoint belongs to another job or cannot be written.
    """
    if not len(windows):
        raise DataError("there are no windows to recover on; give more text or shorter windows.")
    if config.distil and teacher is None:
        raise ConfigError("distil needs the original as teacher; set distil=0 or keep the original.")
    ids = windows if isinstance(windows, Tensor) else torch.stack([torch.as_tensor(window) for window in windows])
    ids = shorter(ids)
    facts = {"config": config.to_mapping(), "seed": context.seed, "data": context.data.fingerprint}
    checkpoint = Checkpoint(context.folder / "recover", {**facts, "model": fingerprint(model.module)})
    device = next(model.module.parameters()).device
    loss = token_loss(
        model, in_dtype(teacher, fast_dtype(device)) if teacher and config.distil else None, config.distil
    )
    small = small_tensors(model, config.small)
    add_lora(model, rank=config.rank, alpha=config.alpha, seed=derive(context.seed, "adapters"))
    try:
        with _thawed(model.module, small):
            train(
                Task(module=model.module, loss=loss, data=ids, rates=dict.fromkeys(small, config.small_rate)),
                config.training(ids.shape[1]), seed=context.seed, checkpoint=checkpoint, events=context.events,
            )  # fmt: skip
            give_back()  # activations, gradients and fast copies, before the merge touches every weight
            merge_lora(model)
    finally:
        remove_lora(model)
    return model


def small_tensors(model: Model, most: int) -> tuple[str, ...]:
    """Return the names of parameters of branches that no adapter reaches and that have at most `most` numbers."""
    adapted = {f"{name}.{part}" for name in adaptable(model) for part in ("weight", "bias")}
    names = (name for branch in model.anatomy.branches for name in branch.parameters if name not in adapted)
    return tuple(name for name in names if model.module.get_parameter(name).numel() <= most)


@contextlib.contextmanager
def _thawed(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let frozen parameters train inside the block, in float32; after an error they are as they were."""
    parameters = [module.get_parameter(name) for name in names]
    before = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)
    try:
        yield
    except BaseException:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data = value
        raise
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data = parameter.data.to(value.dtype)


def shorter(windows: Tensor) -> Tensor:
    """Cut windows LongTensor[N, T] into equal pieces of at most 256 tokens, where T has such a divisor.

    A token that begins every window (Gemma's beginning of text) begins every piece, in the place of its first token.
    """
    length = windows.shape[1]
    piece = max(size for size in range(1, _LENGTH + 1) if length % size == 0)
    if length <= _LENGTH or piece < _SHORTEST:
        return windows
    pieces = windows.reshape(-1, piece).clone()
    if bool((windows[:, 0] == windows[0, 0]).all()):
        pieces[:, 0] = windows[0, 0]
    return pieces


def token_loss(model: Model, teacher: Model | Heard | None = None, share: float = 0.0) -> Loss:
    """Return the loss of windows LongTensor[B, T]: mean over their next tokens; the head itself is not trained.

    Args:
        model: What is trained (everything but its head may be).
        teacher: A model of the same vocabulary; or the largest Subnet of `model`, which learns from the text alone.
        share: Weight of KL(teacher‖model) against the text.
    """
    head = model.anatomy.head

    def loss(_module: nn.Module, batch: Batch) -> Tensor:
        ids = batch.examples
        targets = ids[:, 1:].flatten()
        hidden = last_states(model, ids)[:, :-1].flatten(0, 1)
        opinion = None
        if isinstance(teacher, Heard):
            told = teacher(batch, hidden)
            opinion = None if told is None else Teacher(told, head, share)
        elif teacher is not None:
            teacher.module.to(ids.device)
            with torch.no_grad():
                states = last_states(teacher, ids)[:, :-1].flatten(0, 1)
            opinion = Teacher(states, teacher.anatomy.head, share)
        return learning_loss(hidden, targets, head, teacher=opinion).view(len(ids), -1).mean(1)

    return loss


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 of a module's weights, names and shapes."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
