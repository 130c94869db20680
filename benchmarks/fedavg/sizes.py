"""What one round sends, by what is exchanged: counted before any training, and held to what is sent by a test."""

from __future__ import annotations

from typing import Any

from benchmarks._federated import CLIENTS, job_of, recipe
from lissome.pipeline.federating import planned

HALF: tuple[dict[str, Any], ...] = ({"budget": "block_params<=50%"},)
EXCHANGES: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "whole model": ({"method": "fedavg"}, ({},)),
    "whole model, int8 down, delta and int8 up": ({"method": "fedavg", "down": "int8", "up": "delta+int8"}, ({},)),
    "half of the blocks' parameters": ({"method": "raffm", "assign": "largest"}, HALF),
    "a knowledge network of a quarter": ({"method": "rafl", "allocate": "largest"}, HALF),
    "adapters of rank 8 and the head": ({"method": "ffm"}, ({},)),
    "16 virtual tokens and the head": ({"method": "ffm", "recipe": "prompt"}, ({},)),
    "the head": ({"method": "fedavg", "trains": "head"}, ({},)),
}


def counted() -> dict[str, dict[str, float]]:
    """Return bytes per client and round, both ways, by exchange: of tensors, and of messages."""
    found = {}
    for name, (step, devices) in EXCHANGES.items():
        plan = planned(job_of(recipe(step, seed=0, rounds=1, devices=devices)))
        found[name] = {"payload": plan.payload / CLIENTS, "message": plan.message / CLIENTS}
    return found
