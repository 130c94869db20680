"""Heals a cut model: low-rank adapters are trained on text, or on the original's opinion of it, and merged.

What a removal damages is mostly how the remaining parts fit together, which few parameters and little text repair.
The result has the shapes and the speed of the cut model.
"""

# B windows, T tokens, D residual width

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError, DataError
from lissome.core.method import Context
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.forward import last_states
from lissome.engine.hooks import Batch, Loss, Task
from lissome.engine.train import TrainConfig, derive, train
from lissome.models.adapters import add_lora, merge_lora, remove_lora
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
    add_lora(model, rank=config.rank, alpha=config.alpha, seed=derive(context.seed, "adapters"))
    try:
        task = Task(module=model.module, loss=loss, data=ids)
        train(task, config.training(ids.shape[1]), seed=context.seed, checkpoint=checkpoint, events=context.events)
        merge_lora(model)
    finally:
        remove_lora(model)
    return model


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


def token_loss(model: Model, teacher: Model | None = None, share: float = 0.0) -> Loss:
    """Return the loss of windows LongTensor[B, T]: mean over their next tokens; the head itself is not trained.

    Args:
        model: What is trained (everything but its head may be).
        teacher: A model of the same vocabulary.
        share: Weight of KL(teacher‖model) against the text.
    """
    head = model.anatomy.head

    def loss(_module: nn.Module, batch: Batch) -> Tensor:
        ids = batch.examples
        targets = ids[:, 1:].flatten()
        hidden = last_states(model, ids)[:, :-1].flatten(0, 1)
        opinion = None
        if teacher is not None:
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
