"""The arms of the claim."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks._federated import global_scores, job_of, own_scores, recipe, run
from benchmarks._trials import RATE
from lissome.engine.federate.continual import summary
from lissome.engine.federate.retrieval import CLASSES, SCORES, embed, judged, ranked
from lissome.pipeline.federation import FederationRecipe

ROUNDS, SLICES, RESULTS, TOKENS, WIDTH = 6, 4, 5, 16, 384
PROXIMAL, OUTER = 0.01, 0.001
LORA: dict[str, Any] = {"method": "ffm", "epochs": 1.0, "rank": 8, "alpha": 16.0}
CONTINUAL: dict[str, Any] = {"method": "ffm", "recipe": "continual", "slices": SLICES, "rank": 8}
UNLIKE: tuple[dict[str, Any], ...] = (
    {"name": "big", "share": 1.0},
    {"name": "middle", "share": 1.0, "budget": "uplink<=70%"},
    {"name": "small", "share": 1.0, "budget": "uplink<=50%"},
)
"""Devices that send less have adapters of smaller ranks."""

FINETUNED: dict[str, dict[str, Any]] = {
    "full": {"method": "fedavg"},
    "head": {"method": "fedavg", "trains": "head"},
    "prompt": {"method": "ffm", "recipe": "prompt", "tokens": TOKENS},
    "prompt-alone": {
        "method": "ffm", "recipe": "prompt", "tokens": TOKENS, "private": ["classifier*", "*pooler*"],
    },
    "lora": LORA,
    "lora-product": {**LORA, "lora": "product"},
    "lora-freeze-a": {**LORA, "lora": "freeze-a"},
    "lora-stack": {**LORA, "lora": "stack"},
    "lora-proximal": {**LORA, "proximal": PROXIMAL},
    "lora-adam": {**LORA, "outer": "adam", "outer_lr": OUTER},
    "lora-unlike": {**LORA, "fleet": "unlike"},
    "lora-unlike-product": {**LORA, "lora": "product", "fleet": "unlike"},
}  # fmt: skip
"""Trained federated, at equal rounds and epochs; of `prompt-alone` clients keep the head: tokens travel alone. With
unlike ranks each number of a factor is averaged over those who have it (HetLoRA, with a mean in place of zeros), or
products are averaged and factored again (FlexLoRA)."""

OTHERS: dict[str, dict[str, Any]] = {
    "centralised": {**LORA, "moments": True, "arm": "centralised"},
    "local": {**LORA, "moments": True, "arm": "local"},
    "zero-shot": {**LORA, "arm": "zero-shot"},
}
"""Who trains alone has no reason to begin its optimizer anew in every round."""

MEMORY = 16
"""Examples that replay keeps: a client has some sixty, a quarter of them in each slice."""
PROTECTED: dict[str, dict[str, Any]] = {
    **{f"continual-{name}": {**CONTINUAL, "protect": name} for name in ("none", "ewc", "distil")},
    "continual-replay": {**CONTINUAL, "protect": "replay", "memory": MEMORY},
    "continual-joint": {**CONTINUAL, "protect": "replay", "memory": 10**6},
}
"""A client's rows stand by language, so every slice brings other languages; `joint` trains on all slices so far."""


def finetuned(name: str, seed: int, rounds: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run a federated arm, or one that it is compared with."""
    arm = OTHERS.get(name, {}).get("arm", "federated")
    looks = {"judge_every": 1} if name == "full" else {}  # a round of it takes more bytes than all of some arms
    job = job_of(recipe_of(name, {RATE: rate}, seed=seed, rounds=rounds, **looks))
    federation, cell = run(job, folder)
    if arm == "local":
        cell["own"] = own_scores(job, folder)
    elif name == "lora":
        cell["own"] = global_scores(job, federation)
    return cell


def recipe_of(name: str, changes: Mapping[str, Any], **loop: Any) -> FederationRecipe:
    """Return the recipe of an arm with some settings changed; other arguments are those of `recipe`."""
    step = {**FINETUNED, **OTHERS, **PROTECTED}[name]
    arm, fleet = step.get("arm", "federated"), UNLIKE if "fleet" in step else ({},)
    own = {key: value for key, value in {**step, **changes}.items() if key not in {"arm", "fleet"}}
    return recipe(own, arm=arm, devices=fleet, **loop)


def continual(
    name: str, seed: int, rounds: int, changes: Mapping[str, Any], folder: Path, *, tuning: bool = False
) -> dict[str, Any]:
    """Run a continual arm with some settings changed; return what became of each slice."""
    period = max(1, rounds // SLICES)
    loop = {"seed": seed, "rounds": period * SLICES, "evaluate_every": period}
    federation, cell = run(job_of(recipe_of(name, {**changes, "period": period}, **loop), tuning=tuning), folder)
    ends = [one for one in federation.rounds if one.number and one.number % period == 0]
    matrix = [[one.metrics[f"evaluate/slice-{at + 1}/accuracy"] for at in range(SLICES)] for one in ends]
    return {**cell, "matrix": matrix, **summary(matrix)}


def retrieval(seed: int, folder: Path) -> dict[str, float]:
    """Search across clients, across all but the one with most documents, and in one index that has all documents."""
    step = {"method": "ffm", "recipe": "retrieve", "results": RESULTS}
    job = job_of(recipe(step, seed=seed, rounds=1))
    federation, cell = run(job, folder)
    left = sorted(job.silos.names, key=lambda name: len(job.silos.partition.parts[name]))[:-1]
    fewer, _ = run(job_of(recipe(step, seed=seed, rounds=1, clients=len(left))), folder / "fewer", left)
    asked: Any = job.silos.server(job.model)
    texts = [job.silos.client(name, job.model) for name in job.silos.names]
    index = torch.cat([embed(job.model, one.data) for one in texts])  # type: ignore[attr-defined]
    labels = torch.cat([one.data.labels for one in texts])  # type: ignore[attr-defined]
    central = ranked(embed(job.model, asked.held_out), index, labels, RESULTS)
    found = federation.program.tensors
    return {
        "recall": judged(found[CLASSES], asked.held_out.labels)["recall"],
        "fewer": judged(fewer.program.tensors[CLASSES], asked.held_out.labels)["recall"],
        "central": judged(central[CLASSES], asked.held_out.labels)["recall"],
        "apart": float((found[SCORES] - central[SCORES]).abs().max()), "payload": cell["payload"],
    }  # fmt: skip
