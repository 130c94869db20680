"""Markdown of the claim's stored results: a line for the README, the whole for the method's page."""

from __future__ import annotations

from statistics import mean

from benchmarks._arms import by_arm, finals, spread, told_of
from benchmarks._federated import page_of
from benchmarks._markdown import Results, table


def summary(results: Results) -> str:
    """Return the README's line."""
    cells = results[0]["cells"]
    peak = max(cell["peak"] for name, cell in cells.items() if name.startswith("memory-"))
    worst = max(cell["difference"] for name, cell in cells.items() if name.startswith("stock-"))
    return (
        f"with MiniLM, within {worst:.1g} of Flower's own FedAvg after three rounds, and 100 clients "
        f"in {peak / 2**30:.1f} GiB."
    )


def page(results: Results) -> str:
    """Return all tables of the method's page."""
    cells, facts = results[0]["cells"], results[0]["facts"]
    training = facts["training"]
    pairs = [
        [
            name.removeprefix("stock-"), f"{cell['difference']:.1e}", f"{cell['change']:.2g}",
            *(f"{cell['cpu_seconds'][arm]:.0f}" for arm in ("ours", "flower")),
        ]
        for name, cell in cells.items()
        if name.startswith("stock-")
    ]  # fmt: skip
    sizes = [
        [name.removeprefix("memory-"), *(f"{cell[key] / 2**20:.0f}" for key in ("before", "peak", "bytes"))]
        for name, cell in cells.items()
        if name.startswith("memory-")
    ]
    of, rough = by_arm(cells), facts["rough"]
    unreliable = [
        [
            {"calm": "all in time", "rough": "30 % drop-out, stragglers"}[arm], spread(finals(of[arm])),
            f"{mean(mean(cell['answered']) for cell in of[arm]):.1f}",
            f"{max(max(cell['seconds']) for cell in of[arm]):.1f}",
        ]
        for arm in ("calm", "rough")
    ]  # fmt: skip
    noises = [
        [
            arm.removeprefix("private-"), f"{found[0]['epsilon']:.3g}" if found[0]["epsilon"] is not None else "–",
            spread(finals(found)), f"{100 * told_of(found):.1f}",
        ]
        for arm, found in of.items()
        if arm.startswith("private-")
    ]  # fmt: skip
    exchanged = [
        [name, *(f"{found[key] / 2**20:.2f}" for key in ("payload", "message"))]
        for name, found in cells["sizes"].items()
    ]
    intro = (
        "Against Flower's own FedAvg: the same app on the same grid, MiniLM with frozen embeddings, "
        f"{facts['clients']} clients, {facts['rounds']} rounds of {training['steps']} steps of {training['batch']} "
        "texts. Memory: one round in one process, every other client with half of the blocks' parameters. ±: half of "
        "the 95 % interval of the mean over seeds."
    )
    late = (
        f"Twelve languages, {rough['clients']} clients, {rough['rounds']} rounds of adapters; a round ends after "
        f"{rough['deadline']:g} simulated seconds; most clients need 1, two of ten need 10. An answer that comes late "
        "joins a later round:"
    )
    private = facts["private"]
    hidden = (
        f"A head alone, learned by {private['dealt']['clients']} clients in {private['rounds']} rounds, with noise for "
        "differential privacy (δ = 10⁻⁵), and how often the loss of a text that was learned from is below that of one "
        "that was not (50 % is guessing):"
    )
    parts = [
        table(["seed", "largest difference", "largest change", "CPU s, here", "CPU s, Flower"], pairs),
        table(["clients", "MiB before the round", "peak MiB", "MiB of messages"], sizes),
        late,
        table(["", "accuracy, %", "answers in a round", "longest round, s"], unreliable),
        hidden,
        table(["noise z", "ε", "accuracy, %", "told by losses, %"], noises),
        "What a client and the server send each other in a round of training, both ways:",
        table(["what travels", "MiB of tensors", "MiB of messages"], exchanged),
    ]
    return page_of(intro, results, parts)
