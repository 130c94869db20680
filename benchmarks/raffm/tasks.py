"""The same arms on two more tasks: MiniLM and mail that is spam or not, and a small ConvNeXt and CIFAR-10.

The network learns CIFAR-10 first, from images that are nobody's; the cameras of clients are turned by a quarter, which
it does not know. It has layer norms: statistics of batch norms would be those of the whole, and wrong for a slice. Both
tasks are dealt by lissome; settings are chosen with a seed that deals other examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _elastic
from benchmarks._arms import Cell
from benchmarks._federated import ALPHA, CLIENTS, Job, recipe, run
from benchmarks._tasks import mails, other_photographs, turned_photographs
from benchmarks._trials import RATE, Trials
from benchmarks.raffm.arms import ARMS as ALL
from benchmarks.raffm.arms import FLEET, SIZES, SLICES, fleet_of, sizes
from lissome.core.files import cache_dir
from lissome.engine.federate.rounds import Federation
from lissome.engine.objective import objective_of
from lissome.models.model import Model
from lissome.pipeline.federation import FederationJob
from lissome.pipeline.job import data_for

RATE_OF = {
    **dict.fromkeys(("raffm", "undamped", "unordered"), "raffm"),
    **dict.fromkeys(("heterofl", "fjord", "fedrolex"), "heterofl"),
    "full": "full", "big-only": "big-only",
}  # fmt: skip
"""Whose learning rate an arm has; as many were tried for each."""
_ARMS = ("raffm", "undamped", "unordered", "heterofl", "fjord", "fedrolex", "full", "big-only")
_TRIAL_SEED = 100
"""A seed whose examples are others than those of the claim, but for the few that it draws again."""
_PRIVATE = 6000
_LEARNT = {
    "private": _PRIVATE,
    "steps": 6000,
    "batch": 96,
    "rate": 2e-3,
    "sizes": (48, 96, 192),
    "depths": (2, 2, 2),
    "patch": 2,
}
"""Of pre-training, with all other images of CIFAR-10's training part."""


@dataclass(frozen=True, eq=False)
class Task:
    """A data set, a model, and the arms that are compared on them.

    Attributes:
        name: Beginning of the names of its cells.
        words: How tables name it.
        arms: Which are measured.
        source: Writes or finds the data.
        model: Name of the model, or what writes it.
        rounds: Of an arm.
        trial_rounds: Of a run that a setting is chosen by.
        step: Settings of all arms.
        data: Settings of the data.
        rates: Learning rates that are tried for each arm.
    """

    name: str
    words: str
    arms: tuple[str, ...]
    source: Callable[[], Path]
    model: str | Callable[[], Path]
    rounds: int
    trial_rounds: int
    step: Mapping[str, Any]
    data: Mapping[str, Any]
    rates: tuple[float, ...]

    @property
    def prefix(self) -> str:
        """What the names of its arms begin with."""
        return f"{self.name}-"

    @property
    def facts(self) -> dict[str, Any]:
        """What cells depend on besides the arm, its rate, the rounds and the seed."""
        model = self.model if isinstance(self.model, str) else self.model.__name__
        return {
            "task": self.name, "model": model, "data": dict(self.data), "step": dict(self.step), "fleet": list(FLEET),
            "clients": CLIENTS, "alpha": ALPHA, **({} if isinstance(self.model, str) else _LEARNT),
        }  # fmt: skip

    @cached_property
    def sweep(self) -> Trials:
        """Learning rates that are tried."""
        return Trials(
            rates=dict.fromkeys((RATE_OF[one] for one in self.arms), self.rates),
            score=self.trial,
            facts={**self.facts, "rounds": self.trial_rounds, "seed": _TRIAL_SEED},
            prefix=self.prefix,
        )

    def jobs(self, seed: int, rounds: int, rates: Mapping[str, float]) -> dict[str, Job]:
        """Return what is measured with one seed, at the rates that were chosen."""
        found: dict[str, Job] = {}
        for arm in self.arms:
            rate = rates[RATE_OF[arm]]
            known = {**self.facts, "rounds": rounds, "arm": {**ALL[arm], "lr": rate}, "name": arm, "seed": seed}
            found[f"{self.prefix}{arm}-{seed}"] = (known, partial(self.arm, arm, seed, rounds, rate))
        return found

    def arm(self, name: str, seed: int, rounds: int, rate: float, folder: Path) -> Cell:
        """Run one arm and return what its cell stores; of RaFFM, how well sizes cut from its model do, too."""
        job, federation, cell = self._ran(name, {RATE: rate}, seed, rounds, folder)
        if name == "raffm":
            cell["sizes"] = sizes(job, federation, seed, SIZES)
        return {**cell, **fleet_of(job)}

    def trial(self, name: str, changes: Mapping[str, Any], folder: Path) -> float:
        """Return the accuracy of a short run on examples that another seed deals."""
        _, _, cell = self._ran(name, changes, _TRIAL_SEED, self.trial_rounds, folder)
        return float(cell["accuracy"][-1])

    def _ran(
        self, name: str, changes: Mapping[str, Any], seed: int, rounds: int, folder: Path
    ) -> tuple[FederationJob, Federation, dict[str, Any]]:
        step = {**self.step, **ALL[name], **changes}
        if step["method"] == "fedavg":
            step = {key: value for key, value in step.items() if key not in SLICES}
        model = self.model if isinstance(self.model, str) else str(self.model())
        data = {"source": str(self.source()), **self.data}
        fleet: Sequence[Mapping[str, Any]] = ({},) if name == "full" else FLEET

        def job_of(**loop: Any) -> FederationJob:
            return FederationJob(recipe(step, seed=seed, rounds=rounds, devices=fleet, model=model, data=data, **loop))

        job = job_of()
        big = [one for one in job.silos.names if not job.kinds[one].budget] if name == "big-only" else []
        return job, *run(job_of(clients=len(big)) if big else job, folder, big)


def network() -> Path:
    """Write a network that knows CIFAR-10, from images that no client and no test has; made once, for all seeds."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    settings = hashlib.sha256(repr(_LEARNT).encode()).hexdigest()[:10]
    place = cache_dir() / "benchmarks" / f"convnext-{settings}"
    if not place.exists():
        torch.manual_seed(0)
        config = ConvNextConfig(
            image_size=32, patch_size=_LEARNT["patch"], num_stages=len(_LEARNT["sizes"]),
            hidden_sizes=list(_LEARNT["sizes"]), depths=list(_LEARNT["depths"]), num_labels=10,
            layer_scale_init_value=0.0,
        )  # fmt: skip
        model = Model(ConvNextForImageClassification(config).eval())
        ready, splits = data_for(model, other_photographs(_PRIVATE), seed=0)
        judge: Any = objective_of(splits)
        _elastic.tuned(ready, judge, steps=_LEARNT["steps"], seed=0, lr=_LEARNT["rate"], batch=_LEARNT["batch"]).save(
            place
        )
    return place


PICTURES = Task(
    name="cifar10", words="CIFAR-10", arms=_ARMS,
    source=partial(turned_photographs, _PRIVATE), model=network, rounds=12, trial_rounds=3,
    step={"epochs": 1.0, "batch": 32, "elastic": ["width"]}, data={"most": 4000}, rates=(3e-4, 1e-3, 3e-3),
)  # fmt: skip

MAIL = Task(
    name="mail", words="mail", arms=_ARMS,
    source=mails, model="minilm", rounds=8, trial_rounds=3, step={"epochs": 1.0, "batch": 16, **SLICES},
    data={"most": 3000, "length": 48, "test": 0.25}, rates=(1e-4, 3e-4, 1e-3),
)  # fmt: skip
TASKS = (MAIL, PICTURES)
