"""Claim: adapters trained across silos come near to pooled training, far above local training, at a few of the bytes.

MiniLM learns twelve languages from runs of four words; ten clients, Dirichlet 0.3. Fine-tuning whole, by head, by
virtual tokens and by adapters merged in four ways, at equal rounds; centralised, local and zero-shot arms of the same
recipe; slices of time with and without protection, and with all earlier ones at hand; search over clients' texts
against one index. A byte-level model is pre-trained across eight languages, another gets virtual tokens without
gradients, and SmolLM2 is tuned across man pages in four. Learning rates come from short runs with one seed, as many for
each arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean

from benchmarks._arms import Cell, by_arm, final, told_of
from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES, SEEDS, Job, judged
from benchmarks._frame import Inequality, Store

ABOVE, SHARE, WITHIN = 0.03, 0.05, 1.1
QUICK_ROUNDS, QUICK_ARMS = 2, ("full", "lora", "prompt", "prompt-alone")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.ffm import arms
    from benchmarks.ffm.sweep import SWEEP

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    rates = SWEEP.middle() if quick else SWEEP.chosen(store)
    facts = {"rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "model": "minilm"}
    jobs: dict[str, Job] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        jobs |= {f"{name}-{seed}": job for name, job in jobs_of(seed, rounds, quick, rates).items()}
    jobs = {name: ({**facts, "step": step, "name": name}, compute) for name, (step, compute) in jobs.items()}
    jobs |= {} if quick else SWEEP.jobs(rates)
    return judged(store, {**facts, **SWEEP.facts_of(rates)}, jobs, partial(judge, rounds=rounds))


def jobs_of(seed: int, rounds: int, quick: bool, rates: Mapping[str, float]) -> dict[str, Job]:
    """Return all that is measured with one seed, at the rates that were chosen."""
    from benchmarks.ffm import arms, language
    from benchmarks.ffm.sweep import RATE_OF

    jobs: dict[str, Job] = {}
    tuned = {one: arms.FINETUNED[one] for one in QUICK_ARMS} if quick else arms.FINETUNED
    for name, step in {**tuned, **arms.OTHERS}.items():
        rate = rates[RATE_OF[name]]
        fleet = {"devices": list(arms.UNLIKE)} if "fleet" in step else {}
        jobs[name] = ({**step, **fleet, "lr": rate, "seed": seed}, partial(arms.finetuned, name, seed, rounds, rate))
    for name, step in arms.PROTECTED.items():
        made = {"lr": rates[RATE_OF[name]]}
        jobs[name] = ({**step, **made, "seed": seed}, partial(arms.continual, name, seed, rounds, made))
    many = QUICK_ROUNDS if quick else language.PRETRAIN_ROUNDS
    for arm in language.ARMS:
        made = {"lr": rates[RATE_OF[language.PREFIX + arm]]}
        step = {**language.ARMS[arm], **made, "arm": arm, "rounds": many, "seed": seed}
        jobs[language.PREFIX + arm] = (step, partial(language.pretrained, arm, seed, many, made))
    found = QUICK_ROUNDS if quick else language.SEARCH_ROUNDS
    for name, step in language.PROMPTED.items():
        facts = {**step, "rounds": found, "most": language.FEW, "seed": seed}
        jobs[f"prompted-{name}"] = (facts, partial(language.prompted, name, seed, found))
    for arm in () if quick else ("federated", "zero-shot"):
        step = {**language.TUNE, "arm": arm, "rounds": language.TUNE_ROUNDS, "seed": seed, **language.TEXTS}
        jobs[f"smollm2-{arm}"] = (step, partial(language.tuned, arm, seed, language.TUNE_ROUNDS))
    jobs["retrieval"] = ({"results": arms.RESULTS, "seed": seed}, partial(arms.retrieval, seed))
    return jobs


def judge(cells: Mapping[str, Cell], rounds: int) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    from benchmarks.ffm import arms

    of = by_arm(cells)
    seeds = f"{len(of['lora'])} seeds"
    lora, local = final(of["lora"]), own_accuracy(of["local"])
    sent = {arm: mean(cell["spent"][-1] for cell in of[arm]) for arm in ("lora", "full", "prompt-alone")}
    gaps = {arm: mean(map(gap, of[arm])) for arm in ("local", "lora")}
    tokens = arms.TOKENS * arms.WIDTH * 4 * 2 * CLIENTS * rounds
    lost = {name: mean(cell["forgetting"] for cell in of[f"continual-{name}"]) for name in ("replay", "none")}
    kept = {name: mean(cell["average"] for cell in of[f"continual-{name}"]) for name in ("replay", "none", "joint")}
    found, central = (mean(cell[key] for cell in of["retrieval"]) for key in ("recall", "central"))
    return [
        *written(of, seeds),
        Inequality.of("centralised ≥ federated adapters", final(of["centralised"]), ">=", lora, seeds),
        Inequality.of("federated adapters ≥ local + 3 points", lora, ">=", local + ABOVE, seeds),
        Inequality.of("federated adapters > zero-shot", lora, ">", final(of["zero-shot"]), seeds),
        Inequality.of("bytes of adapters ÷ of the whole model", sent["lora"] / sent["full"], "<", SHARE, seeds),
        Inequality.of("bytes of virtual tokens = m·d·4·2·|S|·R", sent["prompt-alone"], "==", tokens, seeds),
        Inequality.of("gap of train to test, local > federated", gaps["local"], ">", gaps["lora"], seeds),
        Inequality.of("told by losses, federated ≤ local", told_of(of["lora"]), "<=", told_of(of["local"]), seeds),
        *prompted(of, seeds),
        Inequality.of("forgetting with replay < none", lost["replay"], "<", lost["none"], seeds),
        Inequality.of("accuracy over all slices with replay > none", kept["replay"], ">", kept["none"], seeds),
        Inequality.of("the same, all earlier slices at hand ≥ replay", kept["joint"], ">=", kept["replay"], seeds),
        Inequality.of("recall across clients = of one index", found, "==", central, seeds),
    ]


def prompted(of: Mapping[str, Sequence[Cell]], seeds: str) -> list[Inequality]:
    """Judge virtual tokens, as far as what they are compared with was measured."""
    if "head" not in of:
        return []
    return [
        Inequality.of("virtual tokens and the head ≥ the head", final(of["prompt"]), ">=", final(of["head"]), seeds),
        Inequality.of("virtual tokens and the head ≤ adapters", final(of["prompt"]), "<=", final(of["lora"]), seeds),
    ]


def written(of: Mapping[str, Sequence[Cell]], seeds: str) -> list[Inequality]:
    """Judge the arms that write text, as far as they were measured."""
    found = []
    if "pretrain-federated" in of:
        loss = {
            arm: mean(cell["loss"] for cell in of[f"pretrain-{arm}"]) for arm in ("federated", "centralised", "plain")
        }
        local = min(one["test"] for cell in of["pretrain-local"] for one in cell["own"].values())
        ratio = math.exp(loss["federated"] - min(loss["centralised"], loss["plain"]))
        found += [
            Inequality.of("pre-training: loss < the best local one", loss["federated"], "<", local, seeds),
            Inequality.of("pre-training: perplexity ÷ the better centralised", ratio, "<=", WITHIN, seeds),
        ]
    if "prompted-search" in of:
        ends = {at: mean(cell["prompted"][at] for cell in of["prompted-search"]) for at in ("first", "last")}
        found.append(
            Inequality.of(
                "virtual tokens without gradients: loss < at the start", ends["last"], "<", ends["first"], seeds
            )
        )
    if "smollm2-federated" in of:
        change = [
            after - before["losses"][name]
            for one, before in zip(of["smollm2-federated"], of["smollm2-zero-shot"], strict=True)
            for name, after in one["losses"].items()
        ]
        found.append(Inequality.of("SmolLM2: largest change of a client's loss", max(change), "<", 0.0, seeds))
    return found


def own_accuracy(cells: Sequence[Cell]) -> float:
    """Return the accuracy of clients' own models on the server's texts, the mean over clients and seeds."""
    return mean(one["test"] for cell in cells for one in cell["own"].values())


def gap(cell: Cell) -> float:
    """Return by how much models do better on what they learned from than on the server's texts."""
    return mean(one["train"] - one["test"] for one in cell["own"].values())
