"""The same arms with a small convolutional network that learns CIFAR-10 from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks._federated import recipe, run
from benchmarks._tasks import photographs
from benchmarks._trials import RATE, Trials
from benchmarks.raffm.arms import ARMS as ALL
from benchmarks.raffm.arms import FLEET, SIZES, fleet_of, sizes
from lissome.core.seeds import derive
from lissome.data.images import read_images
from lissome.engine.federate.rounds import Federation
from lissome.engine.images import examples
from lissome.engine.norms import reestimate
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.model import Model
from lissome.pipeline.federation import FederationJob

ROUNDS, SEEN = 24, 512
ARMS = ("raffm", "heterofl", "fjord", "full", "big-only")
"""FedRolex is not among them: statistics of batch norms stay where they are, while its window moves the channels."""
RATE_OF = {"raffm": "raffm", **dict.fromkeys(ARMS[1:3], "heterofl"), "full": "full", "big-only": "big-only"}
"""Whose learning rate an arm has; as many were tried for each."""
STEP: dict[str, Any] = {"epochs": 2.0, "batch": 32, "elastic": ["width"]}
TRIAL_ROUNDS, TRIAL_SEED = 4, 100
"""A seed whose images are others than those of the claim, but for the few that it draws again."""
FACTS: dict[str, Any] = {"most": 3000, "model": "residual 16-32-64", "step": STEP, "fleet": list(FLEET)}
_STAGES = [{"kind": "residual", "channels": width, "blocks": 1, "stride": 2} for width in (16, 32, 64)]


def network(seed: int, folder: Path) -> Path:
    """Write a network with new weights, whose batch norms have the statistics of some images; no label is looked at."""
    place = folder / "model"
    if not place.exists():
        torch.manual_seed(derive(seed, "network"))
        model = Model(ConvNetForImageClassification(ConvNetConfig(stem=(16, 1), stages=_STAGES, num_labels=10)))
        images = read_images(photographs()).split("test").some(range(SEEN))
        reestimate(model.module, [pixels for pixels, _ in examples(model, images).batches(64)])
        model.save(place)
    return place


def arm(name: str, seed: int, rounds: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run one arm and return what its cell stores; of RaFFM, how well sizes cut from its model do, too."""
    job, federation, cell = _ran(name, {RATE: rate}, seed, rounds, folder)
    if name == "raffm":
        cell["sizes"] = sizes(job, federation, seed, SIZES)
    return {**cell, **fleet_of(job)}


def trial(name: str, changes: Mapping[str, Any], folder: Path) -> float:
    """Return the accuracy of a short run on images that another seed draws."""
    _, _, cell = _ran(name, changes, TRIAL_SEED, TRIAL_ROUNDS, folder)
    return float(cell["accuracy"][-1])


def _ran(
    name: str, changes: Mapping[str, Any], seed: int, rounds: int, folder: Path
) -> tuple[FederationJob, Federation, dict[str, Any]]:
    step = {**STEP, **ALL[name], **changes}
    if step["method"] == "fedavg":
        del step["elastic"]
    data = {"source": str(photographs()), "most": FACTS["most"]}
    fleet = ({},) if name == "full" else FLEET

    def job_of(**loop: Any) -> FederationJob:
        model = str(network(seed, folder))
        return FederationJob(recipe(step, seed=seed, rounds=rounds, devices=fleet, model=model, data=data, **loop))

    job = job_of()
    big = [one for one in job.silos.names if not job.kinds[one].budget] if name == "big-only" else []
    return job, *run(job_of(clients=len(big)) if big else job, folder, big)


SWEEP = Trials(
    rates=dict.fromkeys(("raffm", "heterofl", "full", "big-only"), (1e-3, 3e-3, 1e-2)),
    score=trial,
    facts={**FACTS, "rounds": TRIAL_ROUNDS, "seed": TRIAL_SEED},
    prefix="cifar10-",
)
