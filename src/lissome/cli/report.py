"""Write the page that shows how a model came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer
from lissome.core.manifest import MANIFEST


def command(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT",
            help="A folder that lissome fit, supernet or federate wrote, or the name of a super-network that ships.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page (default: report.html in the artifact, NAME.html of one that ships); FILE.md gets the "
            "table alone.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the page that shows how a model came about: one HTML file that opens without a network."""
    from lissome.models.zoo import place_of
    from lissome.report import answers
    from lissome.report.page import write_page

    place = place_of(str(artifact))
    if not (place / MANIFEST).exists():
        from lissome.pipeline.loading import check_finished

        check_finished(place)
    path = write_page(place, out or (None if place == artifact else Path(f"{artifact}.html")))
    answer({"path": str(path), "bytes": path.stat().st_size}, answers.path, as_json)
