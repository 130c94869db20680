"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

import math
from statistics import mean

from benchmarks._markdown import Results, environment, inequalities, table
from benchmarks.ffm.run import by_arm, gap


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    left, right = (100 * mean(cell["accuracy"][-1] for cell in of[arm]) for arm in ("lora", "centralised"))
    share = mean(cell["training"] for cell in of["lora"]) / mean(cell["training"] for cell in of["full"])
    return (
        f"FFM: adapters of MiniLM trained across ten silos reach {left:.1f} % where pooled data reach {right:.1f} %, "
        f"with {share:.1%} of the bytes of whole models. Details: [FFM](docs/methods/federate/ffm.md)."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    facts, of = results[0]["facts"], by_arm(results[0]["cells"])
    rows, slices, texts = [], [], []
    for arm, found in of.items():
        if "forgetting" in found[0]:
            slices.append(
                [arm, *(f"{100 * mean(cell[key] for cell in found):.1f}" for key in ("average", "forgetting"))]
            )
        elif "loss" in found[0]:
            own = [one["test"] for cell in found for one in cell.get("own", {}).values()]
            texts.append(
                [arm.removeprefix("pretrain-"), f"{math.exp(mean(own or [cell['loss'] for cell in found])):.2f}"]
            )
        elif "losses" not in found[0] and "accuracy" in found[0]:
            own = [100 * mean(one["test"] for one in cell["own"].values()) for cell in found if "own" in cell]
            final = mean(own) if arm == "local" else 100 * mean(cell["accuracy"][-1] for cell in found)
            apart = [100 * gap(cell) for cell in found if "own" in cell]
            mib = mean(cell["training"] for cell in found) / 2**20
            rows.append([arm, f"{final:.1f}", f"{mean(apart):.1f}" if apart else "–", f"{mib:.1f}"])
    intro = (
        f"MiniLM learns {facts['languages']} languages from runs of four words; {facts['clients']} clients, Dirichlet "
        f"{facts['alpha']}, {facts['rounds']} rounds. Accuracy in % on other articles, of `local` the mean over "
        "clients' own models; gap: by how much it is better on what was learned from; MiB of tensors that training "
        "sends."
    )
    parts = [
        intro,
        environment(results),
        table(["arm", "accuracy", "gap", "MiB"], rows),
        "Slices of time, each with other languages: accuracy over all of them at the end, and what was lost of it.",
        table(["arm", "average", "forgotten"], slices),
        "A byte-level model pre-trained across eight languages: perplexity per byte of the server's articles.",
        table(["arm", "perplexity"], texts),
        "### The claim, inequality by inequality",
        inequalities(results),
    ]
    return "\n\n".join(parts)
