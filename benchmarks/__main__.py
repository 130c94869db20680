"""``python -m benchmarks [CLAIM …] [--quick]`` runs claims; ``… table [--check]`` writes the tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import _frame, _tables

ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run claims or write tables.

    Args:
        arguments: The command line (default: that of the process).
        root: The checkout whose claims, README and pages are meant.

    Returns:
        0, or 1 when an inequality failed or (``table --check``) a table is out of date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"`table`, or claims: {', '.join(_frame.claims(root))} (default: all)")
    parser.add_argument("--quick", action="store_true", help="same code and inequalities, fewer seeds")
    parser.add_argument(
        "--cells", metavar="PATTERN", help="only compute cells of such names, e.g. 'smollm2-135m-auto*'"
    )
    parser.add_argument("--fresh", action="store_true", help="compute stored cells again")
    parser.add_argument("--check", action="store_true", help="with `table`: change nothing, fail when out of date")
    options = parser.parse_args(arguments)
    if options.what == ["table"]:
        return _tables.update(root, check=options.check)
    known = _frame.claims(root)
    unknown = [name for name in options.what if name not in known]
    if unknown:
        parser.error(f"there is no claim {unknown[0]!r}; known: {', '.join(known)}, or `table`")
    failed = [
        name
        for name in options.what or known
        if not _frame.run_claim(root, name, quick=options.quick, pattern=options.cells, fresh=options.fresh)
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
