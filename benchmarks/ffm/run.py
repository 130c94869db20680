"""Claim: adapters trained across silos come near to pooled training, far above local training, at a few of the bytes.

MiniLM learns twelve languages from runs of four words; ten clients, Dirichlet 0.3. Fine-tuning whole, by head, by
virtual tokens and by adapters merged in four ways, at equal rounds; centralised, local and zero-shot arms of the same
recipe; slices of time with and without protection; search over clients' texts against one index. A byte-level model
is pre-trained across eight languages, SmolLM2 tuned across man pages in four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from statistics import mean
from typing import Any

from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES
from benchmarks._frame import Inequality, Store

SEEDS = (0, 1, 2)
ABOVE, SHARE, WITHIN = 0.03, 0.05, 1.1
QUICK_ROUNDS, QUICK_ARMS = 2, ("full", "lora", "prompt")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.ffm import arms, language

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    facts = {"rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "model": "minilm"}
    trained = {name: arms.FINETUNED[name] for name in (QUICK_ARMS if quick else arms.FINETUNED)} | arms.OTHERS
    jobs: dict[str, tuple[Any, dict[str, Any]]] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        for name, step in trained.items():
            jobs[f"{name}-{seed}"] = (partial(arms.finetuned, name, seed, rounds), {**step, "seed": seed})
        for name, step in arms.PROTECTED.items():
            jobs[f"{name}-{seed}"] = (partial(arms.continual, name, seed, rounds), {**step, "seed": seed})
        for arm in language.ARMS:
            name, many = f"pretrain-{arm}-{seed}", QUICK_ROUNDS if quick else language.PRETRAIN_ROUNDS
            step = {**language.PRETRAIN, "arm": arm, "rounds": many, "seed": seed}
            jobs[name] = (partial(language.pretrained, arm, seed, many), step)
        for arm in () if quick else ("federated", "zero-shot"):
            step = {**language.TUNE, "arm": arm, "rounds": language.TUNE_ROUNDS, "seed": seed}
            jobs[f"smollm2-{arm}-{seed}"] = (partial(language.tuned, arm, seed, language.TUNE_ROUNDS), step)
        jobs[f"retrieval-{seed}"] = (partial(arms.retrieval, seed), {"results": arms.RESULTS, "seed": seed})
    cells: dict[str, dict[str, Any]] = {}
    for name, (compute, step) in jobs.items():
        settings = {**facts, "step": step, "name": name}
        if store.wants(name):
            cells[name] = store.cell(name, settings, partial(compute, store.scratch(name, settings)))
    if store.pattern is not None:
        return []
    inequalities = judge(cells, rounds)
    store.publish("minilm", {"facts": facts, "cells": cells, "inequalities": [vars(one) for one in inequalities]})
    return inequalities


def judge(cells: Mapping[str, dict[str, Any]], rounds: int) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    from benchmarks.ffm import arms

    of = by_arm(cells)
    final = {arm: mean(cell["accuracy"][-1] for cell in found) for arm, found in of.items() if _judged(found)}
    sent = {arm: mean(cell["training"] for cell in found) for arm, found in of.items() if "training" in found[0]}
    local = mean(one["test"] for cell in of["local"] for one in cell["own"].values())
    gaps = {arm: mean(gap(cell) for cell in of[arm]) for arm in ("local", "lora")}
    seeds = f"{len(of['lora'])} seeds"
    # The head of 12 classes travels beside the virtual tokens: a pooler and a linear layer.
    head = 384 * 384 + 384 + 384 * len(LANGUAGES) + len(LANGUAGES)
    prompt = (arms.TOKENS * arms.WIDTH + head) * 4 * 2 * CLIENTS * rounds
    lost = {name: mean(cell["forgetting"] for cell in found) for name, found in of.items() if "forgetting" in found[0]}
    return [
        *written(of, seeds),
        Inequality.of("centralised ≥ federated adapters", final["centralised"], ">=", final["lora"], seeds),
        Inequality.of("federated adapters ≥ local + 3 points", final["lora"], ">=", local + ABOVE, seeds),
        Inequality.of("federated adapters > zero-shot", final["lora"], ">", final["zero-shot"], seeds),
        Inequality.of("bytes of adapters ÷ of the whole model", sent["lora"] / sent["full"], "<", SHARE, seeds),
        Inequality.of("bytes of virtual tokens and head", sent["prompt"], "==", prompt, seeds),
        Inequality.of("gap of train to test, local > federated", gaps["local"], ">", gaps["lora"], seeds),
        Inequality.of("forgetting with replay < none", lost["continual-replay"], "<", lost["continual-none"], seeds),
        Inequality.of(
            "recall across clients = of one index", mean(cell["recall"] for cell in of["retrieval"]), "==",
            mean(cell["central"] for cell in of["retrieval"]), seeds,
        ),
    ]  # fmt: skip


def written(of: Mapping[str, list[dict[str, Any]]], seeds: str) -> list[Inequality]:
    """Judge the arms that write text, as far as they were measured."""
    found = []
    if "pretrain-federated" in of:
        loss = {arm: mean(cell["loss"] for cell in of[f"pretrain-{arm}"]) for arm in ("federated", "centralised")}
        local = min(one["test"] for cell in of["pretrain-local"] for one in cell["own"].values())
        ratio = math.exp(loss["federated"] - loss["centralised"])
        found += [
            Inequality.of("pre-training: loss < the best local one", loss["federated"], "<", local, seeds),
            Inequality.of("pre-training: perplexity ÷ centralised", ratio, "<=", WITHIN, seeds),
        ]
    if "smollm2-federated" in of:
        change = [
            after - before["losses"][name]
            for one, before in zip(of["smollm2-federated"], of["smollm2-zero-shot"], strict=True)
            for name, after in one["losses"].items()
        ]
        found.append(Inequality.of("SmolLM2: largest change of a client's loss", max(change), "<", 0.0, seeds))
    return found


def _judged(cells: list[dict[str, Any]]) -> bool:
    """Whether cells have an accuracy; those that write text have a loss instead."""
    return bool(cells[0].get("accuracy")) and cells[0]["accuracy"][-1] is not None


def gap(cell: Mapping[str, Any]) -> float:
    """Return by how much models do better on what they learned from than on the server's texts."""
    return mean(one["train"] - one["test"] for one in cell["own"].values())


def by_arm(cells: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of each arm, over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        found.setdefault(name.rpartition("-")[0], []).append(cell)
    return found
