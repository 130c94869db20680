"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from benchmarks._federated import Cell, at_bytes, by_arm, final, finals, page_of, spread, told_of
from benchmarks._markdown import Results, table
from benchmarks.ffm.run import gap, own_accuracy


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    left, right = (100 * final(of[arm]) for arm in ("lora", "centralised"))
    share = mean(cell["spent"][-1] for cell in of["lora"]) / mean(cell["spent"][-1] for cell in of["full"])
    return (
        f"FFM: adapters of MiniLM trained across ten silos reach {left:.1f} % where pooled data reach {right:.1f} %, "
        f"with {share:.1%} of the bytes of whole models. Details: [FFM](docs/methods/federate/ffm.md)."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    facts, of = results[0]["facts"], by_arm(results[0]["cells"])
    rows, slices, texts = [], [], []
    tuned = [arm for arm in of if arm.startswith("smollm2-")]
    for arm, found in of.items():
        if "forgetting" in found[0]:
            slices.append([arm, *(spread([cell[key] for cell in found]) for key in ("average", "forgetting"))])
        elif "loss" in found[0]:
            own = [one["test"] for cell in found for one in cell.get("own", {}).values()]
            texts.append(
                [arm.removeprefix("pretrain-"), f"{math.exp(mean(own or [cell['loss'] for cell in found])):.2f}"]
            )
        elif "spent" in found[0] and "losses" not in found[0]:
            own = [] if arm != "local" else [[own_accuracy([cell]) for cell in found]]
            scores = own * 2 or [finals(found), at_bytes(found, of["lora"])]
            apart = [100 * gap(cell) for cell in found if "own" in cell]
            known = any("told" in one for cell in found for one in cell.get("own", {}).values())
            clients = [one for cell in found for one in cell["clients"].values() if one is not None]
            rows.append(
                [
                    arm, *map(spread, scores), f"{100 * mean(clients):.1f}",
                    f"{mean(apart):.1f}" if apart else "–", f"{100 * told_of(found):.1f}" if known else "–",
                    f"{mean(cell['spent'][-1] for cell in found) / 2**20:.1f}",
                ]
            )  # fmt: skip
    intro = (
        f"MiniLM learns {facts['languages']} languages from runs of four words; {facts['clients']} clients, "
        f"Dirichlet {facts['alpha']}, {facts['rounds']} rounds. Accuracy in % on other articles, of `local` the mean "
        "over clients' own models; after as many bytes as adapters take; of clients on their own held-out texts; gap: "
        "by how much it is better on what was learned from; told: how often the loss of a text that was learned from "
        "is below that of one that was not (50 % is guessing); MiB of tensors that training sends. ±: half of the 95 % "
        "interval of the mean over seeds."
    )
    language = (
        "A byte-level model pre-trained across eight languages, all arms on the same tokens: perplexity per byte of "
        "the server's articles. `centralised` takes the server's steps of the federated arm, `plain` is AdamW alone."
    )
    tongues = sorted(of[tuned[0]][0]["losses"]) if tuned else []
    pages = [[arm.removeprefix("smollm2-"), *(perplexity(of[arm], one) for one in tongues)] for arm in tuned]
    seen = [arm for arm in of if "matrix" in of[arm][0]]
    ends = [[arm, f"{at + 1}", *row] for arm in seen for at, row in enumerate(by_slice(of[arm]))]
    searched = [[spread([cell[key] for cell in of["retrieval"]]) for key in ("recall", "fewer", "central")]]
    parts = [
        table(["arm", "accuracy", "at the bytes of adapters", "clients, mean", "gap", "told", "MiB"], rows),
        "Slices of time, each with other languages: accuracy over all of them at the end, and what was lost of it.",
        table(["arm", "average", "forgotten"], slices),
        "Accuracy on each slice after each of them:",
        table(["arm", "after slice", *(f"on {at + 1}" for at in range(len(ends[0]) - 2))], ends) if ends else "",
        "Searches whose answer is among the five best texts, in %: lists of all clients merged, and one index of all.",
        table(["across clients", "without the largest", "one index"], searched),
        language,
        table(["arm", "perplexity"], texts),
        "SmolLM2 tuned across man pages, one silo a language: perplexity per token of each client's held-out pages.",
        table(["arm", *tongues], pages) if pages else "",
    ]
    return page_of(intro, results, [one for one in parts if one])


def perplexity(cells: Sequence[Cell], client: str) -> str:
    """Write the perplexity of a client's held-out text, of the mean loss over seeds."""
    return f"{math.exp(mean(cell['losses'][client] for cell in cells)):.2f}"


def by_slice(cells: Sequence[Cell]) -> list[list[str]]:
    """Write accuracy in percent after each slice (rows) on each slice (columns), the mean over seeds."""
    return [
        [f"{100 * mean(values):.1f}" for values in zip(*rows, strict=True)]
        for rows in zip(*(cell["matrix"] for cell in cells), strict=True)
    ]
