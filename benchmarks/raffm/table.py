"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks._arms import by_arm, final
from benchmarks._federated import page_of
from benchmarks._markdown import Results, table
from benchmarks._trials import tried
from benchmarks.raffm.run import PICTURES, rows

_HEAD = ["arm", "global", "global, at RaFFM's bytes", "clients, mean", "worst tenth", "MiB of tensors"]


def summary(results: Results) -> str:
    """Return the README's line."""
    of = by_arm(results[0]["cells"])
    own, whole = of["raffm"], of["full"]
    share = mean(cell["payload"] for cell in own) / mean(cell["payload"] for cell in whole)
    return (
        f"devices of three sizes train MiniLM to {100 * final(own):.1f} % where whole copies reach "
        f"{100 * final(whole):.1f} %, with {share:.0%} of the bytes."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    facts, of = results[0]["facts"], by_arm(results[0]["cells"])
    trained = [[arm, ", ".join(f"{size}: {count}" for size, count in of[arm][0]["trained"].items())] for arm in of]
    sizes, pixels = (curve(of[f"{prefix}raffm"][0]["sizes"]) for prefix in ("", PICTURES))
    halves = [
        [order, f"{100 * mean(cell['halves'][order] for cell in of['full']):.1f}"] for order in of["full"][0]["halves"]
    ]
    big = mean(cell["big"] for cell in of["raffm"])
    held = ", ".join(f"{one['share']:g} {one.get('budget') or 'without a budget'}" for one in facts["fleet"])
    intro = (
        f"MiniLM with frozen embeddings learns {facts['languages']} languages from runs of four words; "
        f"{facts['clients']} clients, Dirichlet {facts['alpha']}, {facts['rounds']} rounds of "
        f"{facts['step']['epochs']:g} epochs; their devices: {held}. Accuracy in % of the whole "
        f"model on other articles (of `smallest`, of the size that was trained), and of clients on their own held-out "
        f"texts; ±: half of the 95 % interval of the "
        f"mean over seeds. Clients that hold the whole model have {big:.0%} of the texts."
    )
    times = [
        [device, f"{one['params'] / 1e6:.1f}", f"{1e3 * one['seconds']:.0f}"]
        for device, one in results[0]["cells"]["steps"].items()
    ]
    pictures = (
        f"A small convolutional network and CIFAR-10, {facts['pictures']['most']} images, {facts['seen']} rounds "
        "(FedRolex's window moves channels, which statistics of batch norms that stay do not follow):"
    )
    parts = [
        table(_HEAD, rows(of, pictures=False)),
        pictures,
        table(_HEAD, rows(of, pictures=True)),
        "How often each size was trained, by its share of all parameters (seed 0):",
        table(["arm", "sizes"], trained),
        "Sizes cut from RaFFM's model without training, by their share of the blocks' parameters (seed 0):",
        table(["size", "accuracy"], sizes),
        "The same of the convolutional network, on CIFAR-10 (seed 0):",
        table(["size", "accuracy"], pixels),
        "A forward and backward pass of 16 texts by what each device holds (processor time, in turns, median of 21):",
        table(["device", "million parameters", "ms"], times),
        "Half of the channels of every MLP of the whole models, cut without training:",
        table(["order", "accuracy"], halves),
    ]
    words = (
        f"Runs of {facts['trial']['rounds']} rounds with seed 0, judged by validation texts, and on CIFAR-10 by images "
        "that another seed draws: accuracy of the global model in %. Arms that are not listed have the rate of "
        "`heterofl`, `unordered` that of `raffm`; runs with other `epochs` take other numbers of steps."
    )
    return page_of(intro, results, [*parts, *filter(None, [tried(facts, results[0]["cells"], words)])])


def curve(sizes: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Return the rows of a table of sizes, the smallest first."""
    ordered = sorted(sizes, key=lambda one: one["share"])
    return [[f"{one['share']:.0%}", f"{100 * one['accuracy']:.1f}"] for one in ordered]
