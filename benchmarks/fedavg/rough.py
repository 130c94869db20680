"""A federation that all clients serve in time, and the same with drop-out and stragglers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._federated import job_of, recipe, run

ROUNDS, DEADLINE, DROPOUT, SLOWER = 12, 4.0, 0.3, 10.0
STEP: dict[str, Any] = {"method": "fedavg", "trains": "adapters", "lr": 1e-3, "epochs": 1.0, "up": "delta"}
DEVICES: dict[str, tuple[dict[str, Any], ...]] = {
    "calm": ({"seconds": 1.0},),
    "rough": (
        {"name": "quick", "share": 0.8, "seconds": 1.0, "spread": 0.1, "dropout": DROPOUT},
        {"name": "straggler", "share": 0.2, "seconds": SLOWER, "spread": 0.1, "dropout": DROPOUT},
    ),
}
LOOPS: dict[str, dict[str, Any]] = {"calm": {}, "rough": {"deadline": DEADLINE, "quorum": 0.3, "late": "use"}}


def arm(name: str, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run ``calm`` or ``rough``; return what its cell stores."""
    job = job_of(recipe(STEP, seed=seed, rounds=rounds, devices=DEVICES[name], **LOOPS[name]))
    federation, cell = run(job, folder)
    seconds = [one.seconds for one in federation.rounds[1:]]
    answered = [one.answered for one in federation.rounds[1:]]
    return {**cell, "seconds": seconds, "answered": answered, "deadline": DEADLINE}
