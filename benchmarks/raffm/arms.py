"""The arms of the claim, their fleet, and what becomes of the model when it is cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks._federated import cut_score, in_turns, job_of, recipe, run
from benchmarks._trials import RATE, Trials
from lissome.core.budget import Budget
from lissome.core.seeds import derive
from lissome.engine.federate.bound import cut_model
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.subnets import SubnetProgram, share_space
from lissome.engine.federate.training import Lesson
from lissome.methods.federate.raffm import RaFFM, unit_orders
from lissome.models.binding import reorder
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.pipeline.federation import FederationJob

ROUNDS, SIZES = 10, 24
_TRIES = 20  # random sizes to look at for each that is wanted
STEP: dict[str, Any] = {"epochs": 2.0, "batch": 16}
SLICES: dict[str, Any] = {"elastic": ["width"], "shares": [1.0, 0.8, 0.6, 0.4, 0.2]}
"""What devices may have less of, of MiniLM: channels of MLPs, as in the published spaces; all heads stay."""
FLEET = (
    {"name": "big", "share": 2.0},
    {"name": "middle", "share": 4.0, "budget": "block_params<=75%"},
    {"name": "small", "share": 4.0, "budget": "block_params<=50%"},
)
"""Of ten clients two hold the whole model; who they are is drawn by the seed, how much data they have is stored."""

ARMS: dict[str, dict[str, Any]] = {
    "raffm": {"method": "raffm", "merge": "damped"},
    "undamped": {"method": "raffm"},
    "unordered": {"method": "raffm", "merge": "damped", "order": "none"},
    "heterofl": {"method": "raffm", "order": "none", "assign": "largest"},
    "fjord": {"method": "raffm", "order": "none", "assign": "largest", "nested": True},
    "fedrolex": {"method": "raffm", "order": "none", "assign": "largest", "window": "rolling"},
    "static": {"method": "raffm", "assign": "largest"},
    "full": {"method": "fedavg"},
    "big-only": {"method": "fedavg"},
    "smallest": {"method": "raffm", "assign": "largest"},
    "adapters": {"method": "raffm", "trains": "adapters"},
}
"""`raffm` counts who lacks a unit as having left it unchanged, `undamped` leaves them out of its mean, as HeteroFL,
FjORD and FedRolex do; `static` has RaFFM's order without the sandwich, `unordered` the sandwich without the order;
`full` ignores budgets; `smallest` gives all the weakest's size, cut by the same order; `adapters` trains low-rank ones
on slices of the frozen model."""

RATE_OF = {
    **dict.fromkeys(("raffm", "undamped", "unordered"), "raffm"),
    **dict.fromkeys(("heterofl", "fjord", "fedrolex", "static"), "heterofl"),
    **{one: one for one in ("full", "big-only", "smallest", "adapters")},
}
"""Whose learning rate an arm has; as many were tried for each."""

CUT = {"raffm": SIZES, "smallest": 1}
"""Sizes that the models of some arms are cut to; that of the smallest device is the first."""


def arm(name: str, seed: int, rounds: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run one arm and return what its cell stores."""
    job, federation, cell = _ran(name, {RATE: rate}, folder, seed=seed, rounds=rounds)
    cell |= fleet_of(job)
    if name in CUT:
        cell["sizes"] = sizes(job, federation, seed, CUT[name])
    if name == "full":
        cell["halves"] = halves(job, federation, seed)
    return cell


def _ran(
    name: str, changes: Mapping[str, Any], folder: Path, *, tuning: bool = False, **loop: Any
) -> tuple[FederationJob, Federation, dict[str, Any]]:
    fleet = ({},) if name == "full" else ({"budget": FLEET[2]["budget"]},) if name == "smallest" else FLEET
    step = {**STEP, **(SLICES if ARMS[name]["method"] == "raffm" else {}), **ARMS[name], **changes}
    job = job_of(recipe(step, devices=fleet, **loop), tuning=tuning)
    big = [one for one in job.silos.names if not job.kinds[one].budget] if name == "big-only" else []
    if big:
        job = job_of(recipe(step, devices=fleet, clients=len(big), **loop), tuning=tuning)
    return job, *run(job, folder, big)


def trial(name: str, changes: Mapping[str, Any], folder: Path) -> float:
    """Return the accuracy of a short run on validation texts, of `smallest` that of the size that was trained."""
    job, federation, cell = _ran(name, changes, folder, tuning=True, seed=0, rounds=TRIAL_ROUNDS)
    return sizes(job, federation, 0, 1)[0]["accuracy"] if name == "smallest" else float(cell["accuracy"][-1])


TRIAL_ROUNDS = 2
SWEEP = Trials(
    rates=dict.fromkeys(RATE_OF.values(), (1e-4, 3e-4, 1e-3)) | {"adapters": (3e-4, 1e-3, 3e-3)},
    score=trial,
    facts={"rounds": TRIAL_ROUNDS, "step": STEP, "slices": SLICES, "fleet": list(FLEET), "model": "minilm"},
    knobs={
        "raffm": {
            "order": ("salience", "none", "random"), "norm": ("l1", "l2"),
            "merge": ("overlap", "damped"), "assign": ("sandwich", "largest", "random"),
            "elastic": (SLICES["elastic"], ["width", "groups"]),
            "shares": (SLICES["shares"], [1.0, 0.6, 0.2], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
            "epochs": (STEP["epochs"], 1.0, 4.0), "decay": (1.0, 0.9, 0.5), "weight_decay": (0.0, 0.01, 0.1),
        }
    },
)  # fmt: skip


def fleet_of(job: FederationJob) -> dict[str, Any]:
    """Return the device of each client, and the share of the data that those without a budget have."""
    own = {one: len(part) for one, part in job.silos.partition.parts.items()}
    big = sum(own[one] for one, kind in job.kinds.items() if not kind.budget)
    return {"kinds": {one: kind.name for one, kind in job.kinds.items()}, "big": big / sum(own.values())}


def sizes(job: FederationJob, federation: Federation, seed: int, count: int) -> list[dict[str, float]]:
    """Cut the trained model to that of the smallest device, the smallest size, the whole and random ones, untrained."""
    program = federation.program
    assert isinstance(program, SubnetProgram)
    assert program.planner is not None
    program.loaded()
    return [_judged(job, program, subnet) for subnet in drawn_sizes(program.planner, seed, count)]


def drawn_sizes(planner: Planner, seed: int, count: int) -> list[Subnet]:
    """Return Subnets of unlike size, as far as the Space has as many: that of the smallest device comes first."""
    rng, space = Random(derive(seed, "sizes")), planner.space
    found = [planner.largest(Budget.parse(str(FLEET[2]["budget"]))), space.smallest, space.full]
    known = {planner.figures(one)["block_params"] for one in found}
    for _ in range(_TRIES * count):
        subnet = space.sample(rng)
        size = planner.figures(subnet)["block_params"]
        if size not in known:
            known.add(size)
            found.append(subnet)
    return found[:count]


def _judged(job: FederationJob, program: SubnetProgram, subnet: Subnet) -> dict[str, float]:
    assert program.planner is not None
    return {
        "share": program.planner.figures(subnet)["block_params"] / program.planner.full["block_params"],
        "accuracy": cut_score(job, program, subnet),
    }


def halves(job: FederationJob, federation: Federation, seed: int) -> dict[str, float]:
    """Cut a trained model's MLPs to half of their channels, in three orders and without training."""
    assert isinstance(federation.program, SubnetProgram)
    federation.program.loaded()
    found = {}
    for order in ("salience", "none", "random"):
        model = job.model.derived(copy.deepcopy(job.model.module))
        if order != "none":
            drawn = torch.Generator().manual_seed(derive(seed, "halves")) if order == "random" else None
            reorder(model, unit_orders(model, drawn=drawn))
        small = cut_model(model, share_space(model, ("width",), (1.0, 0.5)).smallest)
        lesson = job.silos.server(small)
        found[order] = lesson.score(lesson.around(small).eval())[1]["accuracy"]
    return found


def steps() -> dict[str, dict[str, float]]:
    """Time a forward and backward pass of what each device holds, in turns.

    Returns:
        By device: processor ``seconds`` of a batch, and ``params`` of the slice.
    """
    job = job_of(recipe({**STEP, **SLICES, **ARMS["raffm"]}, seed=0, rounds=1, devices=FLEET))
    program, lesson = job.server(Path()), job.silos.server(job.model).swapped()
    assert isinstance(program, SubnetProgram)
    assert program.planner is not None
    budgets = {str(one["name"]): str(one.get("budget", "params<=100%")) for one in FLEET}
    held = {name: program.planner.largest(Budget.parse(budget)) for name, budget in budgets.items()}
    work = {
        name: partial(_step, lesson, lesson.around(cut_model(job.model, own)).train()) for name, own in held.items()
    }
    seconds = in_turns(work)
    return {
        name: {"seconds": seconds[name], "params": program.planner.figures(own)["params"]} for name, own in held.items()
    }


def _step(lesson: Lesson, module: torch.nn.Module) -> None:
    data: Any = lesson.task(module).data
    examples = torch.utils.data.default_collate([data[at] for at in range(STEP["batch"])])
    lesson.losses(lesson.outputs(module, examples), examples).mean().backward()
    module.zero_grad()


@torch.no_grad()
def preserved(seed: int) -> dict[str, float]:
    """Return how far the order of units moves the hidden states of MiniLM, and how large these are."""
    from lissome.pipeline import load

    model: Model = load("minilm")
    ids = torch.randint(1000, 20000, (8, 32), generator=torch.Generator().manual_seed(seed))
    before = model.module(input_ids=ids).last_hidden_state
    RaFFM(RaFFM.Config()).prepare(model, seed)
    return {
        "difference": float((model.module(input_ids=ids).last_hidden_state - before).abs().max()),
        "size": float(before.abs().max()),
    }
