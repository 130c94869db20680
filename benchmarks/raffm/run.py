"""Claim: devices too small for a model train it nearly as well as whole copies would, and any size can be cut from it.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; ten clients, Dirichlet 0.3, two of them
hold the whole model, four 65 % of its blocks, four 35 %. All arms have the same data, rounds and steps. `full` ignores
budgets, `big-only` leaves out whoever cannot hold the model, `smallest` gives all what the weakest can hold; HeteroFL,
FjORD and FedRolex are printed beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import mean
from typing import Any

from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES
from benchmarks._frame import Inequality, Store

SEEDS = (0, 1, 2)
BEHIND, PRESERVED, FEWEST = 0.02, 1e-4, 20
QUICK_ROUNDS, QUICK_ARMS = 2, ("raffm", "full", "heterofl", "big-only")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.raffm import arms

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    facts = {
        "rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    cells: dict[str, dict[str, Any]] = {}
    if store.wants("preserved"):
        cells["preserved"] = store.cell("preserved", {"seed": 0}, partial(arms.preserved, 0))
    for seed in SEEDS[:1] if quick else SEEDS:
        for arm in QUICK_ARMS if quick else arms.ARMS:
            name, settings = f"{arm}-{seed}", {**facts, "arm": arms.ARMS[arm], "name": arm, "seed": seed}
            if store.wants(name):
                folder = store.scratch(name, settings)
                cells[name] = store.cell(name, settings, partial(arms.arm, arm, seed, rounds, folder))
    if store.pattern is not None:
        return []
    inequalities = judge(cells)
    store.publish("minilm", {"facts": facts, "cells": cells, "inequalities": [vars(one) for one in inequalities]})
    return inequalities


def judge(cells: dict[str, dict[str, Any]]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of = {arm: [cell for name, cell in cells.items() if name.rpartition("-")[0] == arm] for arm in arms_of(cells)}
    final = {arm: mean(cell["accuracy"][-1] for cell in found) for arm, found in of.items()}
    sent = {arm: mean(cell["payload"] for cell in found) for arm, found in of.items()}
    seeds = f"{len(of['raffm'])} seeds"
    moved = cells["preserved"]
    sizes = min(len({round(one["share"], 4) for one in cell["sizes"]}) for cell in of["raffm"])
    cut = [
        Inequality.of("change of hidden states by the order", moved["difference"], "<=", PRESERVED * moved["size"]),
        Inequality.of("RaFFM ≥ whole models − 2 points", final["raffm"], ">=", final["full"] - BEHIND, seeds),
        Inequality.of("bytes of RaFFM < of whole models", sent["raffm"], "<", sent["full"], seeds),
        Inequality.of("RaFFM > big clients alone", final["raffm"], ">", final["big-only"], seeds),
        Inequality.of("sizes cut from one training", sizes, ">=", FEWEST, seeds),
    ]
    if "smallest" in of:
        smallest = mean(cell["sizes"][0]["accuracy"] for cell in of["raffm"])
        alone = mean(cell["sizes"][0]["accuracy"] for cell in of["smallest"])
        cut.append(Inequality.of("smallest size ≥ trained alone − 5 points", smallest, ">=", alone - 0.05, seeds))
    return cut


def arms_of(cells: Mapping[str, Any]) -> list[str]:
    """Return the arms that cells belong to, in order."""
    return list(dict.fromkeys(name.rpartition("-")[0] for name in cells if name[-1].isdigit()))
