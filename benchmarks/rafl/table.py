"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from statistics import mean

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.rafl.run import by_arm


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
        own = [100 * mean(one["test"] for one in cell["own"].values()) for cell in found if "own" in cell]
        test = mean(own) if own else 100 * mean(cell["accuracy"][-1] for cell in found)
        mib = mean(cell["training"] for cell in found) / 2**20
        name, _, who = arm.rpartition("-")
        rows.append(
            [name, who, f"{100 * mean(cell['mean_client'] for cell in found):.1f}", f"{test:.1f}", f"{mib:.1f}"]
        )
    first = next(cell for name, cell in results[0]["cells"].items() if name.startswith("knowledge"))
    sizes = [
        [budget, f"{tier['params'] / 1e6:.2f}", f"{tier['params'] / tier['limit']:.1%}"]
        for budget, tier in first["tiers"].items()
    ]
    intro = (
        f"MiniLM with frozen embeddings learns {facts['languages']} languages from runs of four words; "
        f"{facts['clients']} clients in four tiers, Dirichlet {facts['alpha']}, {facts['rounds']} rounds. Accuracy in "
        "% of every client's model, mean over clients: on its own held-out texts, and on the server's; MiB of tensors "
        "that training sends."
    )
    parts = [
        intro,
        environment(results),
        table(["arm", "clients in a round", "own texts", "server's texts", "MiB"], rows),
        "Architectures that were searched (seed 0):",
        table(["budget", "million parameters in blocks", "of the budget"], sizes),
        "### The claim, inequality by inequality",
        inequalities(results),
    ]
    return "\n\n".join(parts)
