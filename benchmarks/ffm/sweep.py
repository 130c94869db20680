"""Settings of the claim that are tried first, in short runs with seed 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks._federated import ALPHA, LENGTH, TEXTS, job_of, own_scores, run
from benchmarks._trials import Trials
from benchmarks.ffm import arms, language

ROUNDS, EPOCHS = 2, 0.5
"""Rounds of a short run, of slices as many as there are of them; passes over a client's rows in each of these."""
RATE_OF = {
    **dict.fromkeys((*arms.FINETUNED, *arms.PROTECTED, "zero-shot"), "lora"), "full": "full", "head": "head",
    **dict.fromkeys(("prompt", "prompt-alone"), "prompt"), "centralised": "centralised", "local": "local",
    **{language.PREFIX + arm: language.PREFIX + arm for arm in language.ARMS},
    f"{language.PREFIX}local": f"{language.PREFIX}plain",
}  # fmt: skip
"""Whose learning rate an arm has; as many were tried for each."""
_SMALL, _LARGE = (3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2)


def trial(name: str, changes: Mapping[str, Any], folder: Path) -> float:
    """Return the accuracy of a short run on validation texts: of the global model, of `local` the mean of own ones.

    Of a continual arm it is that over all slices, and of pre-training what a byte of clients' own held-out text has as
    its probability: the claim judges by other articles.
    """
    if name in RATE_OF and name.startswith(language.PREFIX):
        arm = name.removeprefix(language.PREFIX)
        return math.exp(-language.pretrained(arm, 0, ROUNDS, changes, folder)["held_out"])
    if name in arms.PROTECTED:
        short = {**changes, "epochs": EPOCHS}
        return float(arms.continual(name, 0, arms.SLICES, short, folder, tuning=True)["average"])
    job = job_of(arms.recipe_of(name, changes, seed=0, rounds=ROUNDS), tuning=True)
    _, cell = run(job, folder)
    if name == "local":
        return mean(one["test"] for one in own_scores(job, folder, learned=False).values())
    return float(cell["accuracy"][-1])


SWEEP = Trials(
    rates={
        "full": (1e-4, 3e-4, 1e-3), "head": (1e-3, 3e-3, 1e-2), "prompt": _LARGE,
        **dict.fromkeys(("lora", "local", "centralised"), _SMALL),
        **{language.PREFIX + arm: (1e-3, 3e-3, 1e-2) for arm in ("federated", "centralised", "plain")},
    },
    score=trial,
    facts={"rounds": ROUNDS, "epochs": EPOCHS, "length": LENGTH, "alpha": ALPHA, "texts": TEXTS},
    knobs={
        "lora": {"rank": (8, 4, 16), "alpha": (16.0, 8.0, 32.0), "epochs": (1.0, 0.5, 2.0)},
        "lora-proximal": {"proximal": (arms.PROXIMAL, 0.001, 0.1)},
        "lora-adam": {"outer_lr": (arms.OUTER, 3e-4, 3e-3)},
        "prompt": {"tokens": (arms.TOKENS, 8, 32)},
        "continual-replay": {"memory": (arms.MEMORY, 8, 32)},
        "continual-ewc": {"strength": (100.0, 30.0, 300.0)},
        "continual-distil": {"strength": (1.0, 0.3, 3.0)},
    },
    rate_of=RATE_OF,
)  # fmt: skip
