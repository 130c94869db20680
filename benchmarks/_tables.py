"""Writes the tables of the README and of the methods' pages from stored results, between two markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._frame import claims, part, published
from lissome.core.files import write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NONE = (
    "Not yet measured: this table is generated from the stored results under `benchmarks/`, "
    "of which there are none so far."
)


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the full results of a claim, in order of their names; quick ones are no table's source."""
    found = [published(path) for path in sorted((folder / "results").glob("*.json"))]
    return [result for result in found if not result["quick"]]


def update(root: Path, *, check: bool = False) -> int:
    """Bring all tables up to date, or with `check` only say which are not.

    Returns:
        1 when `check` found a table out of date, else 0.
    """
    stale = []
    for path, block in blocks(root).items():
        old = path.read_text(encoding="utf-8")
        new = replaced(old, block, path)
        if new == old:
            continue
        stale.append(path.relative_to(root).as_posix())
        if not check:
            write_text(path, new)
    for name in stale:
        print(f"{name}: {'out of date; run `python -m benchmarks table`' if check else 'written'}")
    return 1 if check and stale else 0


def blocks(root: Path) -> dict[Path, str]:
    """Return the text that belongs between the markers, by file: a line each in the README, and each claim's page."""
    lines, found = [], {}
    for name, folder in claims(root).items():
        stored = results(folder)
        table = part(folder, "table")
        for page in root.glob(f"docs/**/{name}.md"):
            found[page] = table.page(stored) if stored else NONE
            lines += [f"- {_link(page, root)}: {table.summary(stored)}"] if stored else []
    return {root / "README.md": "\n".join(lines) or NONE, **found}


def _link(page: Path, root: Path) -> str:
    title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return f"[{title}]({page.relative_to(root).as_posix()})"


def replaced(text: str, block: str, path: Path) -> str:
    """Return `text` with `block` between its markers.

    Raises:
        ValueError: When the markers are not there, once each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must have {BEGIN} and {END} once each.")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{block.strip()}\n{END}{rest.partition(END)[2]}"
