"""What noise for differential privacy costs: a head for classes, learned by many small clients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._federated import global_scores, job_of, recipe, run
from lissome.data.partition import PartitionConfig

ROUNDS, SILOS = 6, 32
NOISE = (0.0, 0.5, 1.0, 2.0)
"""z: noise over the longest update; 0 shortens updates, and adds none."""
QUICK_NOISE = (NOISE[0], NOISE[1], NOISE[-1])
"""None, the weakest and the strongest, which are judged."""
STEP: dict[str, Any] = {
    "method": "fedavg", "trains": "head", "freeze": ["*embeddings*", "*pooler*"], "lr": 0.1, "epochs": 1.0, "batch": 8,
    "bound": 1.0,
}  # fmt: skip
DEALT = {"scheme": "iid", "clients": SILOS}
"""Few numbers and many clients: noise grows with the root of the one, and is divided by the other."""


def arm(noise: float, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one strength of noise; return what its cell stores, with ``epsilon`` after the last round."""
    more = {"noise": noise, "noise_clients": SILOS} if noise else {}
    made = recipe({**STEP, **more}, seed=seed, rounds=rounds, evaluate_every=0)
    job = job_of(replace(made, partition=PartitionConfig.from_mapping(DEALT)))
    federation, cell = run(job, folder)
    cell["own"] = global_scores(job, federation)
    return {**cell, "epsilon": cell["evaluated"].get("train/epsilon")}
