"""Can one tell from a model's losses what it was trained on? The simplest attack, as a check of a finished federation.

Loss threshold (Yeom et al. 2018, arXiv 1709.01604): whoever has a lower loss is taken for a member. The figure is the
share of pairs (member, other) in which the member's loss is lower, the area under the curve of that attack: ½ is
guessing. A low figure is no proof, because better attacks exist; a high one says that the model tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lissome.core.errors import DataError
from lissome.core.events import EventStream
from lissome.core.typed import as_json
from lissome.data.partition import PARTITION, Partition
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.training import Lesson
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.loading import RECIPE, load
from lissome.pipeline.outcome import CLASSIFIER, read_federated

_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well losses tell members from others.

    Attributes:
        auc: Over all clients' examples.
        se: Its standard error.
        members: Number of examples that clients learned from.
        others: Number of examples that nobody learned from.
        clients: The same figure for each client's examples alone.
    """

    auc: float
    se: float
    members: int
    others: int
    clients: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields


def membership(artifact: Path | str, *, events: EventStream | None = None) -> Membership:
    """Attack the global model of a finished federation; needs the data that its recipe names.

    Args:
        artifact: A folder that a federation left.
        events: Where progress is reported.

    Raises:
        ArtifactError: When the folder is of no federation, or of one that is not finished.
        DataError: When its data are not here any more or were changed, or clients brought their own.
    """
    folder = Path(artifact)
    _ = read_federated(folder)
    job = FederationJob(FederationRecipe.read(folder / RECIPE), events)
    if not job.silos.names:
        raise DataError("clients brought their own data, which are not here; whoever has them must check.")
    if job.silos.partition.fingerprint != Partition.load(folder / PARTITION).fingerprint:
        raise DataError(
            f"{job.recipe.data.source} is not what {folder} was trained on, so that nobody knows who is a member; "
            "restore it."
        )
    model = load(folder, events=events)
    task = load_file(folder / CLASSIFIER) if (folder / CLASSIFIER).is_file() else {}

    def losses(lesson: Lesson) -> Tensor:
        bound = Bound.of(model, model, lesson.around(model), None)
        bound.load(task)
        return each_loss(lesson, bound)

    others = losses(job.silos.server(model).swapped())
    own = {name: losses(job.silos.client(name, model)) for name in job.silos.names}
    members = torch.cat(list(own.values()))
    auc = area(members, others)
    return Membership(
        auc=auc, se=standard_error(auc, len(members), len(others)), members=len(members), others=len(others),
        clients={name: area(found, others) for name, found in own.items() if len(found)},
    )  # fmt: skip


@torch.no_grad()
def each_loss(lesson: Lesson, bound: Bound) -> Tensor:
    """Return the loss of every example that a lesson learns from, float32[N]."""
    data: Any = lesson.task(bound.module).data
    bound.module.eval()
    found = [torch.zeros(0)]
    for start in range(0, len(lesson), _BATCH):
        rows = [data[at] for at in range(start, min(start + _BATCH, len(lesson)))]
        examples = torch.utils.data.default_collate(rows)
        found.append(lesson.losses(lesson.outputs(bound.module, examples), examples).float().cpu())
    return torch.cat(found)


def area(members: Tensor | Sequence[float], others: Tensor | Sequence[float]) -> float:
    """Return the share of pairs in which the member's loss is lower; equal ones count half."""
    inside, outside = torch.as_tensor(members).double(), torch.as_tensor(others).double().sort().values
    right = len(outside) - torch.searchsorted(outside, inside, right=True)
    ties = torch.searchsorted(outside, inside, right=True) - torch.searchsorted(outside, inside)
    return float((right + 0.5 * ties).sum() / (len(inside) * len(outside)))


def standard_error(auc: float, members: int, others: int) -> float:
    """Return the standard error of an area under the curve (Hanley & McNeil 1982)."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (members - 1) * (one - auc**2) + (others - 1) * (two - auc**2)
    return math.sqrt(max(0.0, variance) / (members * others))
