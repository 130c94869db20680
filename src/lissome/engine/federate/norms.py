"""Statistics of batch norms in a federation.

Clients train with the statistics of their own batches, and weights are merged; what the merged weights give is measured
anew before anybody judges them: clients look at a few of their examples, and the means over clients of the moments E[x]
and E[x²] are those of all their examples (static batch norm; HeteroFL, Diao et al. 2021, arXiv 2010.01264, section 3).
Every size has its own, because those of the whole are wrong for a slice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lissome.core.errors import NumericsError
from lissome.engine.norms import batch_norms, reestimate, statistics, take_statistics
from lissome.models.model import Model

if TYPE_CHECKING:
    from lissome.engine.federate.training import Lesson

STATISTICS = "statistics/"
"""Beginning of the global names of moments; then comes the size that they are of."""

WHOLE = f"{STATISTICS}whole/"
"""Beginning of the names of those of the whole model."""

OWN = "own|"
"""Beginning of the names under which a client keeps its own model, and the statistics of it."""

_NORMS = "norms/"  # after the size: whose running statistics
_MEAN, _VARIANCE = "running_mean", "running_var"
_BATCH, _BATCHES = 32, 8


def prefix_of(subnet: Mapping[str, int] | None) -> str:
    """Return what the names of the moments of a Subnet begin with; None: the whole model."""
    if subnet is None:
        return WHOLE
    text = json.dumps(dict(subnet), sort_keys=True)
    return f"{STATISTICS}{hashlib.sha256(text.encode()).hexdigest()[:16]}/"


def is_moment(name: str) -> bool:
    """Whether a name, with what it begins with or without, is one of moments."""
    return f"/{_NORMS}" in f"/{name}"


def moments_of(model: Model, prefix: str) -> dict[str, Tensor]:
    """Return the statistics of a model's batch norms as moments, E[x] and E[x²], of which means over clients are right.

    Args:
        model: The model, whole or cut.
        prefix: What their names begin with.
    """
    found = statistics(model.module)
    for name in [name for name in found if name.endswith(_VARIANCE)]:
        found[name] = found[name] + found[name.removesuffix(_VARIANCE) + _MEAN].square()
    return {f"{prefix}{_NORMS}{name}": value for name, value in found.items()}


def statistics_in(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the running statistics that moments among some tensors mean, by the names that they have in a module."""
    start = prefix + _NORMS
    found = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    for name in [name for name in found if name.endswith(_VARIANCE)]:
        found[name] = (found[name] - found[name.removesuffix(_VARIANCE) + _MEAN].square()).clamp(min=0.0)
    return found


def take_moments(model: Model, tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Put moments in the place of a model's statistics; whether there were some that fit it."""
    found, own = statistics_in(tensors, prefix), statistics(model.module)
    if any(name not in found or found[name].shape != value.shape for name, value in own.items()):
        return False
    take_statistics(model.module, found)
    return True


def settle(module: nn.Module, lesson: Lesson) -> None:
    """Let batch norms have the statistics of a client's own examples, a few hundred from all over its data.

    Args:
        module: Built by the lesson around a model; it learns nothing.
        lesson: What it learns from is looked at, without the classes; without examples nothing changes.

    Raises:
        NumericsError: When they are not finite.
    """
    if not batch_norms(module) or not len(lesson):
        return
    data: Any = lesson.task(module).data
    count = min(len(data), _BATCH * _BATCHES)
    rows = [at * len(data) // count for at in range(count)]
    batches = (
        torch.utils.data.default_collate([data[at] for at in rows[start : start + _BATCH]])
        for start in range(0, count, _BATCH)
    )
    reestimate(module, batches, forward=lesson.outputs)
    if not all(bool(torch.isfinite(value).all()) for value in statistics(module).values()):
        raise NumericsError("batch norms see numbers that are not finite; lower the learning rate.")


def let_follow(module: nn.Module, follows: bool) -> None:
    """Let batch norms normalise by each batch in training; otherwise lessons train them by the statistics they have.

    The first is right where statistics are measured after the merge, the second where they stay as they came.
    """
    for part in batch_norms(module):
        part.follows = follows


def follows(norm: nn.Module) -> bool:
    """Whether a batch norm normalises by each batch in training."""
    return getattr(norm, "follows", False)


def moved(model: Model, names: Iterable[str]) -> bool:
    """Whether training such parameters changes what batch norms of a model see, and their own weights.

    Norms that stay as they came, below adapters or a new head, keep their statistics too: those are part of the model.
    """
    trained = set(names)
    return any(
        f"{path}.{name}" in trained
        for path, part in model.module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
        for name, _ in part.named_parameters()
    )
