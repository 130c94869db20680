"""Claim: clients with architectures of their own, within their budgets, do better than with the weakest common model.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; ten clients in four tiers of 80 to 30 %
of its blocks, Dirichlet 0.3; all clients in every round, or a quarter of them. Every client's model is judged by its
own held-out texts. Sharing nothing, knowledge, overlapping weights and both; searched, random and alike architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import mean

from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES, SEEDS, Cell, Job, by_arm, judged
from benchmarks._frame import Inequality, Store

USED = 0.9
QUICK_ROUNDS, QUICK_ARMS = 2, ("knowledge", "local", "random", "weakest")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.rafl import arms

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    facts = {
        "rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    jobs: dict[str, Job] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        for who, sample in arms.PARTICIPATION.items():
            for arm in QUICK_ARMS if quick or who == "sporadic" else arms.ARMS:
                settings = {**facts, "arm": arms.ARMS[arm], "name": arm, "sample": sample, "seed": seed}
                jobs[f"{arm}-{who}-{seed}"] = (settings, partial(arms.arm, arm, sample, seed, rounds))
    return judged(store, facts, jobs, judge)


def judge(cells: Mapping[str, Cell]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of = by_arm(cells)
    score = {arm: mean(cell["mean_client"] for cell in found) for arm, found in of.items()}
    cells_of = [cell for arm, found in of.items() if arm.startswith("knowledge") for cell in found]
    shares = [tier["params"] / tier["limit"] for cell in cells_of for tier in cell["tiers"].values()]
    apart = max(abs(cell["spent"][-1] - 2 * cell["orders"] * cell["knowledge"]) for cell in cells_of)
    found = [
        Inequality.of("architectures within budgets, largest share", max(shares), "<=", 1.0),
        Inequality.of("budgets used, mean", mean(shares), ">=", USED),
        Inequality.of("bytes of training − 2·|S|·|θ| per round", apart, "==", 0),
    ]
    for who in ("all", "sporadic"):
        own, seeds = score[f"knowledge-{who}"], f"{who}, {len(of[f'knowledge-{who}'])} seeds"
        found += [
            Inequality.of("RaFL ≥ weakest common model", own, ">=", score[f"weakest-{who}"], seeds),
            Inequality.of("RaFL ≥ local", own, ">=", score[f"local-{who}"], seeds),
            Inequality.of("searched ≥ random architectures", own, ">=", score[f"random-{who}"], seeds),
        ]
    return found
