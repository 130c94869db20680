"""Claim: the plain mean is Flower's own FedAvg, at its cost, and memory does not grow with the number of clients.

MiniLM, its embeddings frozen. Against Flower: the same app on the same grid, four clients, three rounds of eight plain
steps, three seeds of data and head; every final number within 1e-6, CPU time within 10 %. Memory: one round of 10 and
of 100 clients, every other one with half of the blocks' parameters, in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

from benchmarks._frame import Inequality, Store

SEEDS, FEW, MANY = (0, 1, 2), 10, 100
EXACT, OVERHEAD, GROWTH, MEMORY = 1e-6, 1.10, 1.2, 12 << 30


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.fedavg import memory, stock

    facts = {
        "clients": stock.CLIENTS, "rounds": stock.ROUNDS, "training": stock.CONFIG.to_mapping(), "model": "minilm",
    }  # fmt: skip
    cells: dict[str, dict[str, Any]] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        name, settings = f"stock-{seed}", {**facts, "seed": seed}
        if store.wants(name):
            cells[name] = store.cell(name, settings, partial(stock.compared, seed))
    for count in (FEW, MANY):
        name, settings = f"memory-{count}", {"clients": count, "budget": memory.BUDGET, "texts": memory.TEXTS}
        if store.wants(name):
            cells[name] = store.cell(name, settings, partial(_memory, count))
    if store.pattern is not None:
        return []
    inequalities = judge(cells)
    store.publish("minilm", {"facts": facts, "cells": cells, "inequalities": [vars(one) for one in inequalities]})
    return inequalities


def judge(cells: dict[str, dict[str, Any]]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    pairs = [cell for name, cell in cells.items() if name.startswith("stock-")]
    ratios = [cell["cpu_seconds"]["ours"] / cell["cpu_seconds"]["flower"] for cell in pairs]
    few, many = cells[f"memory-{FEW}"], cells[f"memory-{MANY}"]
    difference, change = max(cell["difference"] for cell in pairs), min(cell["change"] for cell in pairs)
    seeds = f"{len(pairs)} seeds"
    return [
        Inequality.of("largest difference to Flower's FedAvg after three rounds", difference, "<=", EXACT, seeds),
        Inequality.of("largest change that training made", change, ">=", 1000 * EXACT, seeds),
        Inequality.of("CPU time ÷ that of Flower's FedAvg, median", statistics.median(ratios), "<=", OVERHEAD, seeds),
        Inequality.of(f"clients of {MANY} that answered", many["answered"], "==", MANY),
        Inequality.of(f"peak memory with {MANY} clients, bytes", many["peak"], "<=", MEMORY),
        Inequality.of(f"peak memory with {MANY} clients ÷ with {FEW}", many["peak"] / few["peak"], "<=", GROWTH),
    ]


def _memory(count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fedavg.memory", str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found
