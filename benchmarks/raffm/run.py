"""Claim: devices too small for a model train it nearly as well as whole copies would, and any size can be cut from it.

MiniLM, its embeddings frozen, learns twelve languages from runs of four words; ten clients, Dirichlet 0.3, two of them
hold the whole model, four 65 % of its blocks, four 35 %. All arms have the same data, rounds and steps. `full` ignores
budgets, `big-only` leaves out whoever cannot hold the model, `smallest` gives all what the weakest can hold; HeteroFL,
FjORD, FedRolex and adapters on slices are printed beside, and the sandwich without the order and the other way round.
Most of it again with a convolutional network and CIFAR-10. Learning rates come from short runs with one seed, as many
for each arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import mean

from benchmarks._arms import Cell, at_bytes_of, by_arm, final, finals, spread
from benchmarks._federated import ALPHA, CLIENTS, LANGUAGES, SEEDS, Job, judged
from benchmarks._frame import Inequality, Store

BEHIND, PRESERVED, FEWEST, RARE = 0.02, 1e-4, 20, 0.3
PICTURES = "cifar10-"
QUICK_ROUNDS, QUICK_ARMS = 2, ("raffm", "full", "heterofl", "big-only")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge."""
    from benchmarks.raffm import arms, pictures

    rounds = QUICK_ROUNDS if quick else arms.ROUNDS
    seen = QUICK_ROUNDS if quick else pictures.ROUNDS
    rates = arms.SWEEP.middle() if quick else arms.SWEEP.chosen(store)
    on_pictures = pictures.SWEEP.middle() if quick else pictures.SWEEP.chosen(store)
    facts = {
        "rounds": rounds, "clients": CLIENTS, "alpha": ALPHA, "languages": len(LANGUAGES), "step": arms.STEP,
        "fleet": list(arms.FLEET), "model": "minilm",
    }  # fmt: skip
    jobs: dict[str, Job] = {
        "preserved": ({"seed": 0}, lambda _folder: arms.preserved(0)),
        "steps": ({"fleet": list(arms.FLEET), "batch": arms.STEP["batch"]}, lambda _folder: arms.steps()),
    }
    for seed in SEEDS[:1] if quick else SEEDS:
        for arm in QUICK_ARMS if quick else arms.ARMS:
            rate = rates[arms.RATE_OF[arm]]
            settings = {**facts, "arm": {**arms.ARMS[arm], "lr": rate}, "name": arm, "seed": seed}
            jobs[f"{arm}-{seed}"] = (settings, partial(arms.arm, arm, seed, rounds, rate))
        for arm in pictures.ARMS:
            rate = on_pictures[pictures.RATE_OF[arm]]
            known = {**pictures.FACTS, "rounds": seen, "arm": {**arms.ARMS[arm], "lr": rate}, "name": arm, "seed": seed}
            jobs[f"{PICTURES}{arm}-{seed}"] = (known, partial(pictures.arm, arm, seed, seen, rate))
    if not quick:
        jobs |= {**arms.SWEEP.jobs(rates), **pictures.SWEEP.jobs(on_pictures)}
    text, seeing = arms.SWEEP.facts_of(rates), pictures.SWEEP.facts_of(on_pictures)
    tried = {key: {**text[key], **seeing[key]} for key in ("rates", "usual")} | {"trial": text["trial"]}
    return judged(store, {**facts, **tried, "pictures": pictures.FACTS, "seen": seen}, jobs, judge)


def judge(cells: Mapping[str, Cell]) -> list[Inequality]:
    """Compare what was measured with what is claimed."""
    of, moved = by_arm(cells), cells["preserved"]
    seeds = f"{len(of['raffm'])} seeds"
    sizes = min(
        len({round(one["share"], 4) for one in cell["sizes"]})
        for arm in ("raffm", f"{PICTURES}raffm")
        for cell in of[arm]
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
    return [*found, *compared(of, PICTURES, "CIFAR-10: ", seeds)]


def compared(of: Mapping[str, Sequence[Cell]], prefix: str, words: str, seeds: str) -> list[Inequality]:
    """Compare RaFFM with whole models, and with those alone who hold them."""
    own, whole, big = (of[prefix + arm] for arm in ("raffm", "full", "big-only"))
    sent, all_of_it = (mean(cell["payload"] for cell in arm) for arm in (own, whole))
    return [
        Inequality.of(f"{words}RaFFM ≥ whole models − 2 points", final(own), ">=", final(whole) - BEHIND, seeds),
        Inequality.of(f"{words}bytes of RaFFM < of whole models", sent, "<", all_of_it, seeds),
        Inequality.of(f"{words}RaFFM > big clients alone", final(own), ">", final(big), seeds),
    ]


def rows(of: Mapping[str, Sequence[Cell]], *, pictures: bool) -> list[list[str]]:
    """Return the arms of a table: global model, at the bytes of RaFFM, clients, worst tenth, MiB, what the big have."""
    prefix = PICTURES if pictures else ""
    found = []
    for arm, cells in of.items():
        if arm.startswith(PICTURES) != pictures:
            continue
        own = [sorted(one for one in cell["clients"].values() if one is not None) for cell in cells]
        worst = [mean(one[: max(1, len(one) // 10)]) for one in own if one]
        everybody = [mean(one) for one in own if one]
        models = [spread(finals(cells)), at_bytes_of(cells, of[prefix + "raffm"])]
        if arm == "smallest":  # nobody trained the rest of the whole model
            models = [spread([cell["sizes"][0]["accuracy"] for cell in cells]), "–"]
        mib = mean(cell["payload"] for cell in cells) / 2**20
        found.append([arm.removeprefix(PICTURES), *models, spread(everybody), spread(worst), f"{mib:.0f}"])
    return found
