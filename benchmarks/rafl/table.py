"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from statistics import mean, median

from benchmarks._arms import Cell, by_arm, spread
from benchmarks._federated import page_of
from benchmarks._markdown import Results, table
from benchmarks._trials import tried
from benchmarks.rafl.run import by_tier


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    own, common, tuned = (
        100 * mean(cell["mean_client"] for cell in of[f"{arm}-all"]) for arm in ("knowledge", "weakest", "tuned")
    )
    return (
        f"clients in four tiers of devices reach {own:.1f} % on their own texts with models of their own, "
        f"{common:.1f} % with the weakest common model, {tuned:.1f} % when each tunes that."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    facts, of = results[0]["facts"], by_arm(results[0]["cells"])
    rows = []
    for arm, found in of.items():
        test = [mean(one["test"] for one in cell["own"].values()) for cell in found]
        mib = mean(cell["spent"][-1] for cell in found) / 2**20
        name, _, who = arm.rpartition("-")
        pairs = zip(found, of[f"knowledge-{who}"], strict=True)
        looks = [within(cell, other["spent"][-1]) for cell, other in pairs]
        known = [one for one in looks if one is not None]
        own = [spread([cell["mean_client"] for cell in found]), spread(known) if len(known) == len(looks) else "–"]
        work = [mean(cell["effort"][key] for cell in found) for key in ("steps", "macs")]
        rows.append([name, who, *own, spread(test), f"{mib:.1f}", f"{work[0]:.0f}", f"{work[1] / 1e12:.1f}"])
    searched_of = of["knowledge-all"]
    sizes = [
        [
            budget, f"{tier['params'] / 1e6:.2f}", f"{tier['params'] / tier['limit']:.1%}",
            f"{1e3 * median(cell['latency'][budget] for cell in searched_of):.2f}", f"{100 * one:.1f}",
        ]
        for (budget, tier), one in zip(searched_of[0]["tiers"].items(), by_tier(searched_of), strict=True)
    ]  # fmt: skip
    intro = (
        f"MiniLM with frozen embeddings learns {facts['languages']} languages from runs of four words; "
        f"{facts['clients']} clients in four tiers, Dirichlet {facts['alpha']}, {facts['rounds']} rounds. Accuracy in "
        "% of every client's model, mean over clients: on its own held-out texts (at the end, and at the last look "
        "within the bytes that the knowledge network takes; – where not one was), and on the server's; MiB of tensors "
        "that training sends (architectures are cut from a model that every client has, so that no first download of "
        "them is in it); steps of all clients, and 10¹² multiply-accumulates that they take, of which a step with a "
        "knowledge network takes those of two networks. ±: half of the 95 % interval of the mean over seeds. "
        "`distil`: knowledge networks teach one on public texts, instead of being averaged; `heterofl` averages "
        "slices of one model; `weakest` is what the weakest tier can hold, trained by all; `tuned` is the same for "
        "fewer rounds, then tuned by every client to its own texts, with no more steps in all; `middle` what the "
        "second tier can hold, trained and judged by the two upper tiers alone."
    )
    searched = (
        "Architectures that were searched (seed 0), milliseconds of one text of 32 tokens (processor time, in turns, "
        "median over seeds), and how well the clients' models of a tier do on the server's texts (all seeds; who has "
        "which device is drawn, so that tiers have unlike data):"
    )
    head = ["arm", "clients in a round", "own texts", "own texts, at knowledge's bytes", "server's", "MiB"]
    words = (
        f"Runs of {facts['trial']['rounds']} rounds with seed 0 and all clients, judged by texts of theirs that judge "
        "nothing else: mean accuracy of clients, %. Arms that are not listed have the rate of `knowledge` or "
        "(`middle`, `heterofl`) `weakest`; runs with other `epochs` take other numbers of steps."
    )
    parts = [
        table([*head, "steps", "10¹² MACs"], rows),
        searched,
        table(["budget", "million parameters in blocks", "of the budget", "ms", "accuracy"], sizes),
    ]
    return page_of(intro, results, [*parts, *filter(None, [tried(facts, results[0]["cells"], words)])])


def within(cell: Cell, limit: float) -> float | None:
    """Return the mean accuracy of clients when they were last judged within so many bytes; None when that was never."""
    looks = zip(cell["reached"], cell["spent"], strict=True)
    return ([None, *(one for one, sent in looks if one is not None and sent <= limit)])[-1]
