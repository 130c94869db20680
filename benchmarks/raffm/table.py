"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks._arms import Cell, by_arm, final
from benchmarks._federated import page_of
from benchmarks._markdown import Results, table
from benchmarks._trials import tried
from benchmarks.raffm.run import rows, tasks_of

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
    parts = [
        table(_HEAD, rows(of)),
        *_tasks(of, facts["tasks"]),
        "How often each size was trained, by its share of all parameters (seed 0):",
        table(["arm", "sizes"], trained),
        "Sizes cut from RaFFM's model without training, by their share of the blocks' parameters (seed 0):",
        table(["size", "accuracy"], curve(of["raffm"][0]["sizes"])),
        "A forward and backward pass of 16 texts by what each device holds (processor time, in turns, median of 21):",
        table(["device", "million parameters", "ms"], times),
        "Half of the channels of every MLP of the whole models, cut without training:",
        table(["order", "accuracy"], halves),
    ]
    words = (
        f"Runs of {facts['trial']['rounds']} rounds with seed 0, judged by validation texts, and on other tasks by "
        "examples that another seed deals: accuracy of the global model in %. Arms that are not listed have the rate "
        "of `heterofl`, `unordered` that of `raffm`; runs with other `epochs` take other numbers of steps."
    )
    return page_of(intro, results, [*parts, *filter(None, [tried(facts, results[0]["cells"], words)])])


def _tasks(of: Mapping[str, Sequence[Cell]], facts: Mapping[str, Any]) -> list[str]:
    """Arms and sizes on further tasks."""
    found = []
    for prefix, words in tasks_of(of).items():
        own = facts[prefix]
        big = mean(cell["big"] for cell in of[f"{prefix}raffm"])
        lengths = f"{own['data']['most']} examples, {own['rounds']} rounds of {own['step']['epochs']:g} epochs"
        found += [
            f"On {words}: {lengths}; clients that hold the whole model have {big:.0%} of the examples.",
            table(_HEAD, rows(of, prefix)),
            f"Sizes cut from RaFFM's model on {words} without training (seed 0):",
            table(["size", "accuracy"], curve(of[f"{prefix}raffm"][0]["sizes"])),
        ]
    return found


def curve(sizes: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Return the rows of a table of sizes, the smallest first."""
    ordered = sorted(sizes, key=lambda one: one["share"])
    return [[f"{one['share']:.0%}", f"{100 * one['accuracy']:.1f}"] for one in ordered]
