"""The arms of the claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks._federated import global_scores, job_of, own_scores, recipe, run
from lissome.engine.federate.continual import summary
from lissome.engine.federate.retrieval import CLASSES, SCORES, embed, judged, ranked

ROUNDS, SLICES, RESULTS, TOKENS, WIDTH = 8, 4, 5, 16, 384
LORA: dict[str, Any] = {"method": "ffm", "lr": 1e-3, "epochs": 1.0, "rank": 8}
CONTINUAL: dict[str, Any] = {"method": "ffm", "recipe": "continual", "slices": SLICES, "lr": 1e-3, "rank": 8}

FINETUNED: dict[str, dict[str, Any]] = {
    "full": {"method": "fedavg", "lr": 3e-4},
    "head": {"method": "fedavg", "trains": "head", "lr": 3e-3},
    "prompt": {"method": "ffm", "recipe": "prompt", "tokens": TOKENS, "lr": 1e-2},
    "prompt-alone": {
        "method": "ffm", "recipe": "prompt", "tokens": TOKENS, "lr": 1e-2, "private": ["classifier*", "*pooler*"],
    },
    "lora": LORA,
    "lora-product": {**LORA, "lora": "product"},
    "lora-freeze-a": {**LORA, "lora": "freeze-a"},
    "lora-stack": {**LORA, "lora": "stack"},
    "lora-proximal": {**LORA, "proximal": 0.01},
    "lora-adam": {**LORA, "outer": "adam", "outer_lr": 0.001},
}  # fmt: skip
"""Trained federated, at equal rounds and epochs; of `prompt-alone` clients keep the head: tokens travel alone."""

OTHERS: dict[str, dict[str, Any]] = {
    "centralised": {**LORA, "moments": True, "arm": "centralised"},
    "local": {**LORA, "moments": True, "arm": "local"},
    "zero-shot": {**LORA, "arm": "zero-shot"},
}
"""Who trains alone has no reason to begin its optimizer anew in every round."""

PROTECTED: dict[str, dict[str, Any]] = {
    f"continual-{name}": {**CONTINUAL, "protect": name} for name in ("none", "replay", "ewc", "distil")
}
"""A client's rows stand by language, so every slice brings other languages."""


def finetuned(name: str, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run a federated arm, or one that it is compared with."""
    step = dict({**FINETUNED, **OTHERS}[name])
    arm = step.pop("arm", "federated")
    job = job_of(recipe(step, seed=seed, rounds=rounds, arm=arm))
    federation, cell = run(job, folder)
    if arm == "local":
        cell["own"] = own_scores(job, folder)
    elif name == "lora":
        cell["own"] = global_scores(job, federation)
    return cell


def continual(name: str, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run a continual arm; return what became of each slice."""
    period = max(1, rounds // SLICES)
    step = {**PROTECTED[name], "period": period}
    job = job_of(recipe(step, seed=seed, rounds=period * SLICES, evaluate_every=period))
    federation, cell = run(job, folder)
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
