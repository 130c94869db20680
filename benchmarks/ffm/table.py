"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from benchmarks._arms import Cell, at_bytes_of, by_arm, final, finals, spread, told_of
from benchmarks._federated import page_of
from benchmarks._markdown import Results, table
from benchmarks._trials import tried
from benchmarks.ffm.run import gap, own_accuracy


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    left, right = (100 * final(of[arm]) for arm in ("lora", "centralised"))
    share = mean(cell["spent"][-1] for cell in of["lora"]) / mean(cell["spent"][-1] for cell in of["full"])
    return (
        f"adapters of MiniLM trained across ten silos reach {left:.1f} % where pooled data reach {right:.1f} %, "
        f"with {share:.1%} of the bytes of whole models."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    facts, of = results[0]["facts"], by_arm(results[0]["cells"])
    rows, slices, texts, virtual = [], [], [], []
    tuned = [arm for arm in of if arm.startswith("smollm2-")]
    for arm, found in of.items():
        if "forgetting" in found[0]:
            slices.append([arm, *(spread([cell[key] for cell in found]) for key in ("average", "forgetting"))])
        elif "prompted" in found[0]:
            ends = [mean(cell["prompted"][at] for cell in found) for at in ("none", "first", "last")]
            mib = mean(cell["spent"][-1] for cell in found) / 2**20
            virtual.append([arm.removeprefix("prompted-"), *(f"{math.exp(one):.2f}" for one in ends), f"{mib:.2f}"])
        elif "loss" in found[0]:
            own = [one["test"] for cell in found for one in cell.get("own", {}).values()]
            texts.append(
                [arm.removeprefix("pretrain-"), f"{math.exp(mean(own or [cell['loss'] for cell in found])):.2f}"]
            )
        elif "spent" in found[0] and "losses" not in found[0]:
            own = [own_accuracy([cell]) for cell in found] if arm == "local" else []
            scores = [spread(own)] * 2 if own else [spread(finals(found)), at_bytes_of(found, of["lora"])]
            apart = [100 * gap(cell) for cell in found if "own" in cell]
            known = any("told" in one for cell in found for one in cell.get("own", {}).values())
            clients = [one for cell in found for one in cell["clients"].values() if one is not None]
            rows.append(
                [
                    arm, *scores, f"{100 * mean(clients):.1f}",
                    f"{mean(apart):.1f}" if apart else "–", f"{100 * told_of(found):.1f}" if known else "–",
                    f"{mean(cell['spent'][-1] for cell in found) / 2**20:.1f}",
                ]
            )  # fmt: skip
    intro = (
        f"MiniLM learns {facts['languages']} languages from runs of four words; {facts['clients']} clients, "
        f"Dirichlet {facts['alpha']}, {facts['rounds']} rounds. Accuracy in % on other articles, of `local` the mean "
        "over clients' own models; after as many bytes as all rounds of adapters take, or of an arm of which one round "
        "takes more, after that round; of clients on their own held-out texts; gap: "
        "by how much it is better on what was learned from; told: how often the loss of a text that was learned from "
        "is below that of one that was not (50 % is guessing); MiB of tensors that training sends. ±: half of the 95 % "
        "interval of the mean over seeds. Of `lora-unlike` and `lora-unlike-product` a third of the clients each has "
        "adapters of the whole rank, and of as much as 70 and 50 % of the bytes allow."
    )
    past = (
        "Slices of time, each with other languages: accuracy over all of them at the end, and what was lost of it. "
        "With `replay` clients keep some examples of earlier slices, with `joint` all of them."
    )
    before = (
        "Virtual tokens before the zoo's byte-level Llama, across the same languages and as many rounds, found without "
        "and with gradients: perplexity per byte of the server's articles without any, with the first ones and at the "
        "end; MiB of tensors."
    )
    tries = (
        f"Runs of {facts['trial']['rounds']} rounds with seed 0 (one for each slice of a continual arm, of "
        f"{facts['trial']['epochs']:g} epochs), judged by validation texts: accuracy in %, of `pretrain` 100 over the "
        "perplexity of a byte of clients' held-out text. Arms that are not listed have the rate of `lora`, "
        "`pretrain-local` that of `pretrain-plain`."
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
        past,
        table(["arm", "average", "forgotten"], slices),
        "Accuracy on each slice after each of them:",
        table(["arm", "after slice", *(f"on {at + 1}" for at in range(len(ends[0]) - 2))], ends) if ends else "",
        "Searches whose answer is among the five best texts, in %: lists of all clients merged, and one index of all.",
        table(["across clients", "without the largest", "one index"], searched),
        language,
        table(["arm", "perplexity"], texts),
        before,
        table(["found by", "no tokens", "first tokens", "at the end", "MiB"], virtual),
        "SmolLM2 tuned across man pages, one silo a language: perplexity per token of each client's held-out pages.",
        table(["arm", *tongues], pages) if pages else "",
        tried(facts, results[0]["cells"], tries),
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
