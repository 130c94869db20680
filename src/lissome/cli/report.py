"""Write the page that shows how a model came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer
from lissome.core.manifest import MANIFEST


def command(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A folder that lissome fit, supernet or federate wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page (default: report.html in the artifact); FILE.md gets the table alone.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the page that shows how a model came about: one HTML file that opens without a network."""
    from lissome.report import answers
    from lissome.report.page import write_page

    if not (artifact / MANIFEST).exists():
        from lissome.pipeline.loading import check_finished

        check_finished(artifact)
    path = write_page(artifact, out)
    answer({"path": str(path), "bytes": path.stat().st_size}, answers.path, as_json)
