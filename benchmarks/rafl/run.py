"""Claim: clients with architectures of their own, within their budgets, do better than with the weakest common model.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; twelve clients in four tiers of 80 to 30
% of its blocks, Dirichlet 0.3; all clients in every round, or a quarter of them. Every client's model is judged by its
own held-out texts. The weakest common model is judged as it is, and after every client tuned it to its own texts, with
no more steps in all. Sharing nothing, knowledge (averaged or distilled), overlapping weights and both; searched, random
and alike architectures; HeteroFL's slices of one model. Sizes are counted again in the extracted models, which are also
timed in turns. Learning rates come from short runs with one seed, as many for each arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean

from benchmarks._arms import Cell, by_arm
from benchmarks._federated import ALPHA, LANGUAGES, SEEDS, Job, judged
from benchmarks._frame import Inequality, Store
from lissome.ops.stats import spearman

USED, RANKED = 0.9, 0.9
QUICK_ROUNDS, QUICK_ARMS = 2, ("knowledge", "local", "random", "weakest", "tuned")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.rafl import arms

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    rates = arms.SWEEP.middle() if quick else arms.SWEEP.chosen(store)
    facts = {
        "rounds": rounds, "clients": arms.CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    jobs: dict[str, Job] = {} if quick else arms.SWEEP.jobs(rates)
    for seed in SEEDS[:1] if quick else SEEDS:
        for who, sample in arms.PARTICIPATION.items():
            for arm in QUICK_ARMS if quick else arms.SPORADIC if who == "sporadic" else arms.ARMS:
                rate = rates[arms.RATE_OF[arm]]
                made = {**arms.ARMS[arm], "lr": rate, "alone": arms.alone(arm, rounds)}
                settings = {**facts, "arm": made, "name": arm, "sample": sample, "seed": seed}
                jobs[f"{arm}-{who}-{seed}"] = (settings, partial(arms.arm, arm, sample, seed, rounds, rate))
    return judged(store, {**facts, **arms.SWEEP.facts_of(rates)}, jobs, judge)


def judge(cells: Mapping[str, Cell]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of = by_arm(cells)
    score = {arm: mean(cell["mean_client"] for cell in found) for arm, found in of.items()}
    cells_of = [cell for arm, found in of.items() if arm.startswith("knowledge") for cell in found]
    shares = [tier["params"] / tier["limit"] for cell in cells_of for tier in cell["tiers"].values()]
    apart = max(abs(cell["spent"][-1] - 2 * cell["orders"] * cell["knowledge"]) for cell in cells_of)
    used = mean(map(utilisation, of["knowledge-all"]))
    common = mean(utilisation(one, weak) for one, weak in zip(of["knowledge-all"], of["weakest-all"], strict=True))
    order = min(ranked(cell) for cell in of["knowledge-all"])
    ends = by_tier(of["knowledge-all"])
    found = [
        Inequality.of("architectures within budgets, largest share", max(shares), "<=", 1.0),
        Inequality.of("what all clients' budgets allow that is used", used, ">=", USED),
        Inequality.of("the same, more than of the weakest common model", used, ">", common),
        Inequality.of("latency ranks tiers: least Spearman of any seed", order, ">=", RANKED),
        Inequality.of("largest tier ≥ smallest tier, server's texts", ends[0], ">=", ends[-1]),
        Inequality.of("bytes of training − 2·|S|·|θ| per round", apart, "==", 0),
    ]
    for who in ("all", "sporadic"):
        own, seeds = score[f"knowledge-{who}"], f"{who}, {len(of[f'knowledge-{who}'])} seeds"
        found += [
            Inequality.of("RaFL ≥ weakest common model", own, ">=", score[f"weakest-{who}"], seeds),
            Inequality.of("RaFL ≥ weakest common model, tuned by each", own, ">=", score[f"tuned-{who}"], seeds),
            Inequality.of("RaFL ≥ local", own, ">=", score[f"local-{who}"], seeds),
            Inequality.of("searched ≥ random architectures", own, ">=", score[f"random-{who}"], seeds),
        ]
    return found


def utilisation(cell: Cell, weakest: Cell | None = None) -> float:
    """Return Σ size ÷ Σ budget over the clients of a cell, of their own architectures or of the weakest common one."""
    tiers = list(cell["tiers"].values())
    own = [tiers[int(kind.rpartition("-")[2])] for kind in cell["kinds"].values()]
    size = next(iter(weakest["tiers"].values()))["params"] if weakest is not None else None
    return sum(one["params"] if size is None else size for one in own) / sum(one["limit"] for one in own)


def ranked(cell: Cell) -> float:
    """Return the rank correlation of the tiers' measured latency with their parameters."""
    return spearman([tier["params"] for tier in cell["tiers"].values()], list(cell["latency"].values()))


def by_tier(cells: Sequence[Cell]) -> list[float]:
    """Return the accuracy on the server's texts of each tier's clients, over all seeds."""
    scores: dict[str, list[float]] = {}
    for cell in cells:
        for name, tier in cell["kinds"].items():
            scores.setdefault(tier, []).append(cell["own"][name]["test"])
    return [mean(found) for _, found in sorted(scores.items())]
