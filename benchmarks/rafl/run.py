"""Claim: clients with architectures of their own, within their budgets, do better than with the weakest common model.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; ten clients in four tiers of 80 to 30 %
of its blocks, Dirichlet 0.3; all clients in every round, or a quarter of them. Every client's model is judged by its
own held-out texts. Sharing nothing, knowledge, overlapping weights and both; searched, random and alike architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import mean
from typing import Any

from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES
from benchmarks._frame import Inequality, Store

SEEDS, USED = (0, 1, 2), 0.9
QUICK_ROUNDS, QUICK_ARMS = 2, ("knowledge", "local", "random", "weakest")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.rafl import arms

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    facts = {
        "rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    cells: dict[str, dict[str, Any]] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        for who, sample in arms.PARTICIPATION.items():
            for arm in QUICK_ARMS if quick else arms.ARMS:
                name = f"{arm}-{who}-{seed}"
                settings = {**facts, "arm": arms.ARMS[arm], "name": arm, "sample": sample, "seed": seed}
                if store.wants(name):
                    folder = store.scratch(name, settings)
                    cells[name] = store.cell(name, settings, partial(arms.arm, arm, sample, seed, rounds, folder))
    if store.pattern is not None:
        return []
    inequalities = judge(cells)
    store.publish("minilm", {"facts": facts, "cells": cells, "inequalities": [vars(one) for one in inequalities]})
    return inequalities


def judge(cells: Mapping[str, dict[str, Any]]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of = by_arm(cells)
    score = {arm: mean(cell["mean_client"] for cell in found) for arm, found in of.items()}
    cells_of = [cell for arm, found in of.items() if arm.startswith("knowledge") for cell in found]
    searched = [tier for cell in cells_of for tier in cell["tiers"].values()]
    shares = [tier["params"] / tier["limit"] for tier in searched]
    found = [
        Inequality.of("architectures within budgets, largest share", max(shares), "<=", 1.0),
        Inequality.of("budgets used, mean", mean(shares), ">=", USED),
    ]
    for who in ("all", "sporadic"):
        own, seeds = score[f"knowledge-{who}"], f"{who}, {len(of[f'knowledge-{who}'])} seeds"
        found += [
            Inequality.of("RaFL ≥ weakest common model", own, ">=", score[f"weakest-{who}"], seeds),
            Inequality.of("RaFL ≥ local", own, ">=", score[f"local-{who}"], seeds),
            Inequality.of("searched ≥ random architectures", own, ">=", score[f"random-{who}"], seeds),
        ]
    return found


def by_arm(cells: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of each arm and participation, over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        found.setdefault(name.rpartition("-")[0], []).append(cell)
    return found
