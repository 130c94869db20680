"""Claim: devices too small for a model train it nearly as well as whole copies would, and any size can be cut from it.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; ten clients, Dirichlet 0.3, two of them
hold the whole model, four 75 % of its blocks, four 50 %, by channels of MLPs. All arms have the same data, rounds
and steps. `full` ignores budgets, `big-only` leaves out whoever cannot hold the model, `smallest` gives all what the
weakest can hold; HeteroFL, FjORD, FedRolex and adapters on slices are printed beside, the sandwich without the order
and the other way round. Most of it again with mail that is spam or not, and with a convolutional network and CIFAR-10.
Learning rates come from short runs with one seed, as many for each arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean

from benchmarks._arms import Cell, at_bytes_of, by_arm, final, finals, spread
from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES, SEEDS, Job, judged
from benchmarks._frame import Inequality, Store

BEHIND, PRESERVED, FEWEST, RARE = 0.02, 1e-4, 20, 0.3
QUICK_ROUNDS, QUICK_ARMS = 2, ("raffm", "full", "heterofl", "big-only")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.raffm import arms
    from benchmarks.raffm.tasks import TASKS

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    rates = arms.SWEEP.middle() if quick else arms.SWEEP.chosen(store)
    chosen = {task: task.sweep.middle() if quick else task.sweep.chosen(store) for task in TASKS}
    facts = {
        "rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "slices": arms.SLICES, "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    jobs: dict[str, Job] = {
        "preserved": ({"seed": 0}, lambda _folder: arms.preserved(0)),
        "steps": (
            {"fleet": list(arms.FLEET), "slices": arms.SLICES, "batch": arms.STEP["batch"]},
            lambda _folder: arms.steps(),
        ),
    }
    for seed in SEEDS[:1] if quick else SEEDS:
        for arm in QUICK_ARMS if quick else arms.ARMS:
            rate = rates[arms.RATE_OF[arm]]
            settings = {**facts, "arm": {**arms.ARMS[arm], "lr": rate}, "name": arm, "seed": seed}
            jobs[f"{arm}-{seed}"] = (settings, partial(arms.arm, arm, seed, rounds, rate))
        for task in TASKS:
            jobs |= task.jobs(seed, QUICK_ROUNDS if quick else task.rounds, chosen[task])
    tried = arms.SWEEP.facts_of(rates)
    for task in TASKS:
        own = task.sweep.facts_of(chosen[task])
        tried |= {key: {**tried[key], **own[key]} for key in ("rates", "usual")}
        jobs |= {} if quick else task.sweep.jobs(chosen[task])
    jobs |= {} if quick else arms.SWEEP.jobs(rates)
    beside = {
        task.prefix: {"words": task.words, "rounds": QUICK_ROUNDS if quick else task.rounds, **task.facts}
        for task in TASKS
    }
    return judged(store, {**facts, **tried, "tasks": beside}, jobs, judge)


def judge(cells: Mapping[str, Cell]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of, moved = by_arm(cells), cells["preserved"]
    seeds = f"{len(of['raffm'])} seeds"
    tasks = tasks_of(of)
    sizes = min(
        len({round(one["share"], 4) for one in cell["sizes"]})
        for prefix in ("", *tasks)
        for cell in of[f"{prefix}raffm"]
    )
    small, whole = (cells["steps"][name]["seconds"] for name in ("small", "big"))
    big = [cell["big"] for cell in of["raffm"]]
    halves = {order: mean(cell["halves"][order] for cell in of["full"]) for order in ("salience", "none")}
    found = [
        Inequality.of("change of hidden states by the order", moved["difference"], "<=", PRESERVED * moved["size"]),
        Inequality.of("untrained halves by salience ≥ as they are", halves["salience"], ">=", halves["none"], seeds),
        *compared(of, "", "", seeds),
        Inequality.of("sizes cut from one training, fewest", sizes, ">=", FEWEST, seeds),
        Inequality.of("data of clients that hold the whole model, share", max(big), "<", RARE, seeds),
        Inequality.of("time of a small device's step ÷ of a big one's", small / whole, "<", 1.0),
    ]
    if "smallest" in of:
        smallest = mean(cell["sizes"][0]["accuracy"] for cell in of["raffm"])
        alone = mean(cell["sizes"][0]["accuracy"] for cell in of["smallest"])
        found.append(
            Inequality.of("smallest device's size ≥ trained alone − 5 points", smallest, ">=", alone - 0.05, seeds)
        )
    for prefix, words in tasks.items():
        found += compared(of, prefix, f"{words}: ", seeds)
    return found


def tasks_of(of: Mapping[str, Sequence[Cell]]) -> dict[str, str]:
    """Return what the arms of each further task begin with, and how it is called."""
    from benchmarks.raffm.tasks import TASKS

    return {task.prefix: task.words for task in TASKS if f"{task.prefix}raffm" in of}


def compared(of: Mapping[str, Sequence[Cell]], prefix: str, words: str, seeds: str) -> list[Inequality]:
    """Compare RaFFM with whole models, and with those alone who hold them."""
    own, whole, big = (of[prefix + arm] for arm in ("raffm", "full", "big-only"))
    sent, all_of_it = (mean(cell["payload"] for cell in arm) for arm in (own, whole))
    return [
        Inequality.of(f"{words}RaFFM ≥ whole models − 2 points", final(own), ">=", final(whole) - BEHIND, seeds),
        Inequality.of(f"{words}bytes of RaFFM < of whole models", sent, "<", all_of_it, seeds),
        Inequality.of(f"{words}RaFFM > big clients alone", final(own), ">", final(big), seeds),
    ]


def rows(of: Mapping[str, Sequence[Cell]], prefix: str = "") -> list[list[str]]:
    """Return the arms of a table: global model, at the bytes of RaFFM, clients, worst tenth, MiB, what the big have."""
    found, others = [], tuple(one for one in tasks_of(of) if one != prefix)
    for arm, cells in of.items():
        if not arm.startswith(prefix) or arm.startswith(others):
            continue
        own = [sorted(one for one in cell["clients"].values() if one is not None) for cell in cells]
        worst = [mean(one[: max(1, len(one) // 10)]) for one in own if one]
        everybody = [mean(one) for one in own if one]
        models = [spread(finals(cells)), at_bytes_of(cells, of[prefix + "raffm"])]
        if arm == "smallest":  # nobody trained the rest of the whole model
            models = [spread([cell["sizes"][0]["accuracy"] for cell in cells]), "–"]
        mib = mean(cell["payload"] for cell in cells) / 2**20
        found.append([arm.removeprefix(prefix), *models, spread(everybody), spread(worst), f"{mib:.0f}"])
    return found
