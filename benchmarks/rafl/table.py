"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks._federated import Cell, by_arm, final, page_of
from benchmarks._markdown import Results, table


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
        own = [one["test"] for cell in found for one in cell.get("own", {}).values()]
        test = 100 * (mean(own) if own else final(found))
        mib = mean(cell["spent"][-1] for cell in found) / 2**20
        name, _, who = arm.rpartition("-")
        rows.append(
            [name, who, f"{100 * mean(cell['mean_client'] for cell in found):.1f}", f"{test:.1f}", f"{mib:.1f}"]
        )
    first = of["knowledge-all"][0]
    sizes = [
        [budget, f"{tier['params'] / 1e6:.2f}", f"{tier['params'] / tier['limit']:.1%}", one]
        for (budget, tier), one in zip(first["tiers"].items(), by_tier(of["knowledge-all"]), strict=True)
    ]
    intro = (
        f"MiniLM with frozen embeddings learns {facts['languages']} languages from runs of four words; "
        f"{facts['clients']} clients in four tiers, Dirichlet {facts['alpha']}, {facts['rounds']} rounds. Accuracy in "
        "% of every client's model, mean over clients: on its own held-out texts, and on the server's; MiB of tensors "
        "that training sends."
    )
    searched = (
        "Architectures that were searched (seed 0), and how well the clients' models of a tier do on the server's "
        "texts (all seeds; who has which device is drawn, so that tiers have unlike data):"
    )
    parts = [
        table(["arm", "clients in a round", "own texts", "server's texts", "MiB"], rows),
        searched,
        table(["budget", "million parameters in blocks", "of the budget", "accuracy"], sizes),
    ]
    return page_of(intro, results, parts)


def by_tier(cells: Sequence[Cell]) -> list[str]:
    """Return the accuracy on the server's texts of each tier's clients."""
    scores: dict[str, list[float]] = {}
    for cell in cells:
        for name, tier in cell["kinds"].items():
            scores.setdefault(tier, []).append(cell["own"][name]["test"])
    return [f"{100 * mean(found):.1f}" for _, found in sorted(scores.items())]
