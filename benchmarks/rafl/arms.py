"""The arms of the claim and their fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import torch

from benchmarks._federated import LENGTH, cut_score, in_turns, job_of, own_scores, public_texts, recipe, run
from lissome.core.budget import Budget
from lissome.engine.federate.mutual import knowledge
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.subnets import SubnetProgram
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.pipeline.federation import FederationJob

ROUNDS, CLIENTS = 10, 12  # of twelve, three in each tier, a quarter is three; of ten it would be two
TIERS = ("block_params<=80%", "block_params<=60%", "block_params<=45%", "block_params<=30%")
FLEET = tuple({"name": f"tier-{number}", "budget": budget} for number, budget in enumerate(TIERS))
STEP: dict[str, Any] = {"lr": 3e-4, "epochs": 1.0, "batch": 16}
ARMS: dict[str, dict[str, Any]] = {
    "knowledge": {"method": "rafl"},
    "both": {"method": "rafl", "share": "both"},
    "overlap": {"method": "rafl", "share": "overlap"},
    "local": {"method": "rafl", "share": "none"},
    "random": {"method": "rafl", "allocate": "random"},
    "alike": {"method": "rafl", "allocate": "largest"},
    "distil": {"method": "rafl", "fuse": "distil"},
    "heterofl": {"method": "raffm", "order": "none", "assign": "largest"},
    "weakest": {"method": "fedavg"},
    "middle": {"method": "fedavg"},
}
"""`distil` lets all knowledge networks teach one on texts of other articles; `heterofl` averages slices of one model,
each of its tier's size; `weakest` trains on all clients what the weakest can hold, and averages it; `middle` what the
second tier can hold, on the two upper tiers alone; `local` shares nothing."""

COMMON = {"weakest": TIERS[-1], "middle": TIERS[1]}
SERVED = ("tier-0", "tier-1")
"""Who holds the model of `middle`."""

EVERY = 2
"""Rounds between two looks at the clients' models where a round takes more bytes than the knowledge network's."""

PARTICIPATION = {"all": 1.0, "sporadic": 0.25}


def arm(name: str, sample: float, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one arm and return what its cell stores; `own` judges every client's model by the server's texts too."""
    step, keeps = {**STEP, **ARMS[name]}, ARMS[name]["method"] == "rafl"
    if step.get("fuse") == "distil":
        step["public"] = str(public_texts(folder / "public.jsonl"))
    fleet = ({"name": name, "budget": COMMON[name]},) if name in COMMON else FLEET
    made: dict[str, Any] = {"seed": seed, "rounds": rounds, "sample": sample}
    kinds = {one: kind.name for one, kind in _job(step, devices=FLEET, **made).kinds.items()}
    served = [one for one, kind in kinds.items() if kind in SERVED] if name == "middle" else list(kinds)
    dear = not keeps or ARMS[name].get("share") in {"both", "overlap"}
    looks: dict[str, Any] = {"evaluate_every": EVERY} if dear else {}
    job = _job(step, devices=fleet, clients=len(served), **looks, **made)
    federation, cell = run(job, folder, served)
    cell["kinds"] = kinds
    cell["mean_client"] = mean(value for value in cell["clients"].values() if value is not None)
    assert isinstance(federation.program, SubnetProgram)
    if not keeps:
        cell["own"] = {one: {"test": score} for one, score in slices(job, federation.program, served).items()}
        cell["tiers"] = tiers(job, federation.program, (COMMON[name],) if name in COMMON else TIERS)
    else:
        chosen = {one: federation.program.choose(job.profile(one), Random(0)) for one in job.silos.names}
        cell["own"] = own_scores(job, folder, subnets=chosen, learned=False)
        cell["tiers"] = tiers(job, federation.program)
        if name == "knowledge" and sample == 1.0:
            cell["latency"] = latency(job, federation.program)
        cell["orders"] = sum(len(one.clients) for one in federation.rounds)
        cell["knowledge"] = sum(4 * value.numel() for value in knowledge(federation.program.tensors).values())
    return cell


def _job(step: Mapping[str, Any], **given: Any) -> FederationJob:
    made = recipe(step, **given)
    return job_of(replace(made, partition=replace(made.partition, clients=CLIENTS)))


def slices(job: FederationJob, program: SubnetProgram, names: Sequence[str]) -> dict[str, float]:
    """Judge what each client holds of the global model by the server's texts."""
    held = {name: program.largest(job.profile(name)) for name in names}
    scores = {subnet: cut_score(job, program, subnet) for subnet in set(held.values()) if subnet is not None}
    return {name: scores[subnet] for name, subnet in held.items() if subnet is not None}


def tiers(job: FederationJob, program: SubnetProgram, budgets: Sequence[str] = TIERS) -> dict[str, dict[str, float]]:
    """Count every tier's architecture by the parameters of its extracted model, and what its budget allows."""
    planner, found = program.planner, {}
    assert planner is not None
    for budget in budgets:
        small = _extracted(job, program, budget)
        blocks = (small.module.get_submodule(block) for block in small.anatomy.blocks)
        limit = Budget.parse(budget).terms[0].limit(planner.full)
        found[budget] = {"limit": limit, "params": sum(one.numel() for block in blocks for one in block.parameters())}
    return found


@torch.no_grad()
def latency(job: FederationJob, program: SubnetProgram) -> dict[str, float]:
    """Time one text through every tier's extracted model, in turns; seconds by budget."""
    models = {budget: _extracted(job, program, budget).module.eval() for budget in TIERS}
    ids = torch.randint(job.model.anatomy.vocabulary, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    return in_turns({budget: partial(one, input_ids=ids) for budget, one in models.items()})


def _extracted(job: FederationJob, program: SubnetProgram, budget: str) -> Model:
    subnet = program.choose(Profile(name="x", examples=1, budget=budget), Random(0))
    assert subnet is not None
    return extract(job.model, {**job.model.anatomy.space(finest=True).full, **subnet})
