"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from statistics import mean

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.raffm.run import arms_of


def summary(results: Results) -> str:
    """Return the README's line."""
    cells = results[0]["cells"]
    own, whole = ([cell for name, cell in cells.items() if name.rpartition("-")[0] == arm] for arm in ("raffm", "full"))
    left, right = (100 * mean(cell["accuracy"][-1] for cell in arm) for arm in (own, whole))
    share = mean(cell["payload"] for cell in own) / mean(cell["payload"] for cell in whole)
    return (
        f"RaFFM: devices of three sizes train MiniLM to {left:.1f} % where whole copies reach {right:.1f} %, with "
        f"{share:.0%} of the bytes. Details: [RaFFM](docs/methods/federate/raffm.md)."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    cells, facts = results[0]["cells"], results[0]["facts"]
    rows, trained = [], []
    for arm in arms_of(cells):
        found = [cell for name, cell in cells.items() if name.rpartition("-")[0] == arm]
        own = [sorted(one for one in cell["clients"].values() if one is not None) for cell in found]
        worst = [mean(one[: max(1, len(one) // 10)]) for one in own if one]
        rows.append(
            [
                arm, f"{100 * mean(cell['accuracy'][-1] for cell in found):.1f}",
                f"{100 * mean(mean(one) for one in own if one):.1f}", f"{100 * mean(worst):.1f}",
                f"{mean(cell['payload'] for cell in found) / 2**20:.0f}",
            ]
        )  # fmt: skip
        trained.append([arm, ", ".join(f"{size}: {count}" for size, count in found[0]["trained"].items())])
    drawn = sorted(cells["raffm-0"]["sizes"], key=lambda one: one["share"])
    sizes = [[f"{one['share']:.0%}", f"{100 * one['accuracy']:.1f}"] for one in drawn]
    intro = (
        f"MiniLM with frozen embeddings learns {facts['languages']} languages from runs of four words; "
        f"{facts['clients']} clients, Dirichlet {facts['alpha']}, {facts['rounds']} rounds of "
        f"{facts['step']['epochs']:g} epochs. Accuracy in % of the whole model on other articles, and of clients on "
        "their own held-out texts."
    )
    parts = [
        intro,
        environment(results),
        table(["arm", "global", "clients, mean", "worst tenth", "MiB of tensors"], rows),
        "How often each size was trained, by its share of all parameters (seed 0):",
        table(["arm", "sizes"], trained),
        "Sizes cut from RaFFM's model without training, by their share of the blocks' parameters (seed 0):",
        table(["size", "accuracy"], sizes),
        "### The claim, inequality by inequality",
        inequalities(results),
    ]
    return "\n\n".join(parts)
