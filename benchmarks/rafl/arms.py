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
from benchmarks._trials import RATE, Trials
from lissome.core.budget import Budget
from lissome.core.seeds import derive
from lissome.cost.counted import Counter
from lissome.engine.federate.bound import cut_model
from lissome.engine.federate.mutual import bound_of, knowledge
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.train import train
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.pipeline.federation import FederationJob

ROUNDS, CLIENTS = 10, 12  # of twelve, three in each tier, a quarter is three; of ten it would be two
TIERS = ("block_params<=80%", "block_params<=60%", "block_params<=45%", "block_params<=30%")
FLEET = tuple({"name": f"tier-{number}", "budget": budget} for number, budget in enumerate(TIERS))
STEP: dict[str, Any] = {"epochs": 1.0, "batch": 16}
RAFL: dict[str, Any] = {"method": "rafl", "moments": True}
"""Own models stay with their clients, so that their optimizers go on; that of the knowledge network begins anew."""
ARMS: dict[str, dict[str, Any]] = {
    "knowledge": RAFL,
    "both": {**RAFL, "share": "both"},
    "overlap": {**RAFL, "share": "overlap"},
    "local": {**RAFL, "share": "none"},
    "random": {**RAFL, "allocate": "random"},
    "alike": {**RAFL, "allocate": "largest"},
    "distil": {**RAFL, "fuse": "distil"},
    "heterofl": {"method": "raffm", "order": "none", "assign": "largest"},
    "weakest": {"method": "fedavg"},
    "tuned": {"method": "fedavg"},
    "middle": {"method": "fedavg"},
}
"""`distil` lets all knowledge networks teach one on texts of other articles; `heterofl` averages slices of one model,
each of its tier's size; `weakest` trains on all clients what the weakest can hold, and averages it; `tuned` does so for
fewer rounds, after which every client tunes what came to its own data, with as many passes over them as the other
rounds would take; `middle` trains what the second tier can hold, on the two upper tiers alone; `local` shares
nothing."""

COMMON = {"weakest": TIERS[-1], "tuned": TIERS[-1], "middle": TIERS[1]}
SERVED = ("tier-0", "tier-1")
"""Who holds the model of `middle`."""

EVERY = 2
"""Rounds between two looks at the clients' models where a round takes more bytes than the knowledge network's."""

PARTICIPATION = {"all": 1.0, "sporadic": 0.25}
SPORADIC = ("knowledge", "both", "overlap", "local", "random", "weakest", "tuned")
"""What is shared, and what the claim compares; other ablations are made where all take part."""

OWN_SHARE = 0.4
"""Of the rounds of `tuned`, those whose steps clients take alone."""

_TRIED = (1e-4, 3e-4, 1e-3)
RATE_OF = {
    **dict.fromkeys(("knowledge", "both", "overlap", "random", "alike", "distil"), "knowledge"), "local": "local",
    **dict.fromkeys(("weakest", "middle", "heterofl"), "weakest"), "tuned": "tuned",
}  # fmt: skip
"""Whose learning rate an arm has; as many were tried for each."""
TRIAL_ROUNDS = 3


def arm(name: str, sample: float, seed: int, rounds: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run one arm and return what its cell stores; `own` judges every client's model by the server's texts too."""
    keeps, later = ARMS[name]["method"] == "rafl", alone(name, rounds)
    dear = not keeps or ARMS[name].get("share") in {"both", "overlap"}
    looks: dict[str, Any] = {"evaluate_every": EVERY} if dear else {}
    made: dict[str, Any] = {"seed": seed, "rounds": rounds - later, "sample": sample, **looks}
    job, kinds = _made(name, {RATE: rate}, folder, **made)
    served = served_by(name, kinds)
    federation, cell = run(job, folder, served)
    cell["kinds"] = kinds
    assert isinstance(federation.program, SubnetProgram)
    if later:
        cell = tuned(job, federation.program, later * sample, cell)
    cell["mean_client"] = _mean(cell["clients"])
    cell["effort"] = effort(job, federation, later * sample)
    if later:
        cell["tiers"] = tiers(job, federation.program, (COMMON[name],))
    elif not keeps:
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


def trial(name: str, changes: Mapping[str, Any], folder: Path) -> float:
    """Return the mean accuracy of clients after a short run, by texts of their own that judge nothing else."""
    later = alone(name, TRIAL_ROUNDS)
    job, kinds = _made(name, changes, folder, tuning=True, seed=0, rounds=TRIAL_ROUNDS - later)
    federation, cell = run(job, folder, served_by(name, kinds))
    assert isinstance(federation.program, SubnetProgram)
    return _mean(tuned(job, federation.program, later, cell)["clients"] if later else cell["clients"])


SWEEP = Trials(
    rates=dict.fromkeys(RATE_OF.values(), _TRIED),
    score=trial,
    facts={"rounds": TRIAL_ROUNDS, "step": STEP, "fleet": list(FLEET), "share": OWN_SHARE, "model": "minilm"},
    knobs={
        "knowledge": {
            "peer": (1.0, 0.3, 3.0), "knowledge": ("block_params<=25%", "block_params<=15%", "block_params<=35%"),
            "trials": (60, 20, 180), "epochs": (STEP["epochs"], 0.5, 2.0), "moments": (True, False),
        },
        "distil": {"temperature": (1.0, 3.0, 20.0)},
    },
    rate_of=RATE_OF,
)  # fmt: skip


def alone(name: str, rounds: int) -> int:
    """Return how many rounds' steps clients take alone, of so many rounds."""
    return max(1, round(OWN_SHARE * rounds)) if name == "tuned" else 0


def served_by(name: str, kinds: Mapping[str, str]) -> list[str]:
    """Return the clients that take part in an arm, given the device of each."""
    return [one for one, kind in kinds.items() if kind in SERVED or name != "middle"]


def _made(
    name: str, changes: Mapping[str, Any], folder: Path, *, tuning: bool = False, **loop: Any
) -> tuple[FederationJob, dict[str, str]]:
    """Return an arm, and the device of each client."""
    step = {**STEP, **ARMS[name], **changes}
    if step.get("fuse") == "distil":
        step["public"] = str(public_texts(folder / "public.jsonl", tuning=tuning))
    fleet = ({"name": name, "budget": COMMON[name]},) if name in COMMON else FLEET
    kinds = {one: kind.name for one, kind in _job(step, tuning, devices=FLEET, **loop).kinds.items()}
    return _job(step, tuning, devices=fleet, clients=len(served_by(name, kinds)), **loop), kinds


def _job(step: Mapping[str, Any], tuning: bool, **given: Any) -> FederationJob:
    made = recipe(step, **given)
    return job_of(replace(made, partition=replace(made.partition, clients=CLIENTS)), tuning=tuning)


def _mean(scores: Mapping[str, float | None]) -> float:
    return mean(value for value in scores.values() if value is not None)


def tuned(job: FederationJob, program: SubnetProgram, epochs: float, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Let every client tune what it holds of the global model alone; return the cell with what came of that.

    Nothing is sent meanwhile, and the optimizer of a client begins once.

    Args:
        job: The arm.
        program: Its server's side, after the last round.
        epochs: Passes of each client over its own examples.
        cell: What was stored of the rounds.
    """
    clients, own, judge = dict[str, Any](), dict[str, Any](), job.silos.server(job.model)
    config: Any = replace(job.method.config, epochs=epochs)
    for name in job.silos.names:
        lesson, subnet = job.silos.client(name, job.model), program.largest(job.profile(name))
        bound = bound_of(job.model, subnet, lesson)
        bound.load(program.layout_of(subnet).cut(program.tensors))
        seed = derive(job.recipe.seed, "tuned", name)
        train(lesson.task(bound.module), config.training(len(lesson)), seed=seed)
        bound.module.eval()
        clients[name] = lesson.score(bound.module)[1].get("accuracy")
        own[name] = {"test": judge.score(bound.module)[1]["accuracy"]}
    ends = {"reached": [*cell["reached"], _mean(clients)], "spent": [*cell["spent"], cell["spent"][-1]]}
    return {**cell, **ends, "clients": clients, "own": own}


def effort(job: FederationJob, federation: Federation, epochs: float = 0.0) -> dict[str, float]:
    """Count the steps of all clients, and the multiply-accumulates of them: a backward pass is two forward ones.

    A client that trains a knowledge network beside its own model does so in the same step.

    Args:
        job: The arm.
        federation: After its last round.
        epochs: Passes that each client made after it, alone.
    """
    program, config, known = federation.program, job.method.config, dict[Subnet | None, float]()
    assert isinstance(program, SubnetProgram)
    small = getattr(program, "small", None) if getattr(config, "teaches", False) else None
    examples = {name: len(job.silos.client(name, job.model)) for name in job.silos.names}

    def macs(subnet: Subnet | None) -> float:
        if subnet not in known:
            known[subnet] = Counter(cut_model(job.model, subnet), tokens=LENGTH).count().macs
        return known[subnet]

    steps, total = 0, 0.0
    orders: list[tuple[str, Mapping[str, int] | None, Any]]
    orders = [(name, one.subnets.get(name), config) for one in federation.rounds for name in one.clients]
    if epochs:
        later = replace(config, epochs=epochs)
        orders += [(name, program.largest(job.profile(name)), later) for name in job.silos.names]
    for name, subnet, settings in orders:
        found = settings.training(examples[name])
        steps += found.steps
        each = macs(Subnet(subnet) if subnet is not None else None) + (macs(small) if small is not None else 0.0)
        total += 3 * found.steps * found.batch * each
    return {"steps": steps, "macs": total}


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
