"""The same arms with a small convolutional network that learns CIFAR-10 from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks._federated import recipe, run
from benchmarks._tasks import photographs
from benchmarks.raffm.arms import ARMS as ALL
from benchmarks.raffm.arms import FLEET, fleet_of
from lissome.core.seeds import derive
from lissome.data.images import read_images
from lissome.engine.images import examples
from lissome.engine.norms import reestimate
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.model import Model
from lissome.pipeline.federation import FederationJob

ROUNDS, SEEN = 24, 512
ARMS = ("raffm", "heterofl", "full", "big-only")
STEP: dict[str, Any] = {"lr": 3e-3, "epochs": 2.0, "batch": 32, "elastic": ["width"]}
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


def arm(name: str, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one arm and return what its cell stores."""
    step = {**STEP, **ALL[name]}
    if step["method"] == "fedavg":
        del step["elastic"]
    data = {"source": str(photographs()), "most": FACTS["most"]}
    fleet = ({},) if name == "full" else FLEET

    def job_of(**loop: Any) -> FederationJob:
        model = str(network(seed, folder))
        return FederationJob(recipe(step, seed=seed, rounds=rounds, devices=fleet, model=model, data=data, **loop))

    job = job_of()
    big = [one for one in job.silos.names if not job.kinds[one].budget] if name == "big-only" else []
    _, cell = run(job_of(clients=len(big)) if big else job, folder, big)
    return {**cell, **fleet_of(job)}
