"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from statistics import mean, median

from benchmarks._federated import Cell, by_arm, page_of, spread
from benchmarks._markdown import Results, table
from benchmarks.rafl.run import by_tier


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    left, right = (100 * mean(cell["mean_client"] for cell in of[f"{arm}-all"]) for arm in ("knowledge", "weakest"))
    return (
        f"RaFL: clients in four tiers of devices reach {left:.1f} % on their own texts with models of their own, "
        f"{right:.1f} % with the weakest common model. Details: [RaFL](docs/methods/federate/rafl.md)."
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
        own = [spread([cell["mean_client"] for cell in found]), spread(looks)]
        rows.append([name, who, *own, spread(test), f"{mib:.1f}"])
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
        "within the bytes that the knowledge network takes; 0 without one), and on the server's; MiB of tensors "
        "that training sends (architectures are cut from a model that every client has, so that no first download of "
        "them is in it). ±: half of the 95 % interval of the mean over seeds. `distil`: knowledge networks teach one "
        "on public texts, instead of being averaged; `heterofl` averages slices of one model; `weakest` is what "
        "the weakest tier can hold, trained by all; `middle` what the second tier can hold, trained and judged by the "
        "two upper tiers alone."
    )
    searched = (
        "Architectures that were searched (seed 0), milliseconds of one text of 32 tokens (processor time, in turns, "
        "median over seeds), and how well the clients' models of a tier do on the server's texts (all seeds; who has "
        "which device is drawn, so that tiers have unlike data):"
    )
    parts = [
        table(["arm", "clients in a round", "own texts", "own texts, at knowledge's bytes", "server's", "MiB"], rows),
        searched,
        table(["budget", "million parameters in blocks", "of the budget", "ms", "accuracy"], sizes),
    ]
    return page_of(intro, results, parts)


def within(cell: Cell, limit: float) -> float:
    """Return the mean accuracy of clients when they were last judged within so many bytes; 0 when that was never."""
    looks = zip(cell["reached"], cell["spent"], strict=True)
    return float([0.0, *(one for one, sent in looks if one is not None and sent <= limit)][-1])
