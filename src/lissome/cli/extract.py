"""Cut a model of a wanted size out of one that was trained for many sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer, working


def command(
    ctx: typer.Context,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder with an elastic model.")],
    budget: Annotated[
        str, typer.Option("--budget", metavar="BOUNDS", help="What it may cost, such as block_params<=50%.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes.")],
    as_json: JsonFlag = False,
) -> None:
    """Cut a model of a wanted size out of one that was trained for many sizes."""
    from lissome.pipeline.extracting import extract_within
    from lissome.report import answers

    with working(ctx) as events:
        figures = extract_within(artifact, budget, out, events=events)
    answer({"path": str(out), "figures": figures}, answers.path, as_json)
