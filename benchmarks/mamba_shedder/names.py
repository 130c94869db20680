"""What the models, targets and arms of the claim are called; the tables need nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass

PURE = ("zoo-mamba", "zoo-mamba2")
HYBRID = "zoo-hybrid"
MODELS = (*PURE, HYBRID)

TARGETS = {"blocks": "blocks", "ssm": "scans"}
"""What is removed: the method's name for it, and how tables call it."""

BLOCKS = 12
"""Blocks of each model."""
COUNTS = (2, 4)
"""Numbers of removals at which arms are compared."""
VARIANTS = {"blocks-2": ("blocks", 2), "blocks-4": ("blocks", 4), "ssm-4": ("ssm", 4), "ssm-8": ("ssm", 8)}
"""What is timed, probed and cut out, by name: target and number of removals."""
SCANLESS = f"ssm-{BLOCKS}"
"""The variant without any scan."""
VARIANTS[SCANLESS] = ("ssm", BLOCKS)

ARMS = {
    "greedy": "**Mamba-Shedder**",
    "one-shot": "ranked once by the loss after each removal alone",
    "influence": "Block Influence: least change of the block's output",
    "first": "the first ones",
    "last": "the last ones",
    "random": "random, median",
}
"""Ways to choose what goes, and how tables call them."""

SEEDLESS = frozenset({"first", "last"})
"""Arms that have no seed."""
UNCALIBRATED = SEEDLESS | {"random"}
"""Arms that look at no calibration text."""

RECOVERY_RATES = (2e-3, 5e-3, 1e-2)
"""Learning rates of the recovery that are tried; the one with the least loss on text for choosing is used."""

OTHERWISE = {
    "quarter": "a quarter of the calibration windows",
    "half": "half of the calibration windows",
    "read": "windows of the documents of the training alone",
    "held-out": "windows of the 17 documents that were held out for choosing alone",
    "divergence": "the divergence from the original in place of the loss (`damage=kl`)",
}
"""What else the method can go by, and how tables call it; with calibration seed 0."""

CONTEXTS = (4, 8, 16, 32, 64, 128, 240)
"""Bytes of context of the long-range probe."""


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller.

    Attributes:
        seeds: Of calibration.
        draws: Seeds of random choices.
        shorter: Models of which one with fewer blocks is trained; Mamba-2 would take more than an hour.
    """

    seeds: tuple[int, ...]
    draws: tuple[int, ...]
    shorter: tuple[str, ...]


def seeds(arm: str, scale: Scale) -> tuple[int, ...]:
    """Seeds that an arm is run with."""
    return (0,) if arm in SEEDLESS else scale.draws if arm == "random" else scale.seeds
