"""Pieces of Markdown that the pages of all claims have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Sequence[Mapping[str, Any]]
"""Stored results of one claim, as `benchmarks._tables.results` reads them."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: the first column to the left, numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def of_bandwidth(row: Mapping[str, Any]) -> str:
    """Return what `benchmarks._turns.reached` found, in words."""
    return f"{row['share']:.0%} of {row['width'] / 1e9:.1f} GB/s"


def inequalities(results: Results) -> str:
    """Return, under a title, every inequality of a claim: what was measured, whether it holds, interval and samples."""
    rows = [
        [
            row["name"],
            f"{row['left']:.4g} {row['relation']} {row['right']:.4g}",
            "holds" if row["ok"] else "**fails**",
            row["detail"],
        ]
        for result in results
        for row in result["inequalities"]
    ]
    return f"### The claim, inequality by inequality\n\n{table(['', 'measured', '', ''], rows)}"


def environment(results: Results, *, note: str = "") -> str:
    """Return what the results were measured on, one line per machine and set of versions.

    Args:
        results: The results.
        note: What else to say of the threads.
    """
    threads: dict[tuple[str, str], set[int]] = {}
    for one in (one for result in results for one in result["environments"]):
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        machine = f"Measured on {one['cpu']} ({one['capability']}), {one['cores']} cores"
        software = f"{one['system']}, Python {one['python']}, {versions}."
        threads.setdefault((machine, software), set()).add(one["threads"])
    return "\n".join(
        f"{machine}, {' or '.join(map(str, sorted(counts)))} thread{'s' * (counts != {1})}{note}, {software}"
        for (machine, software), counts in threads.items()
    )
