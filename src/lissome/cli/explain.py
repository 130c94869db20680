"""Tell how an artifact came about, and give any step on the way as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer, working
from lissome.core.errors import ConfigError


def command(
    ctx: typer.Context,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that lissome fit wrote.")],
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", min=0, help="Show this step of the curve alone.")
    ] = None,
    extract: Annotated[
        int | None, typer.Option("--extract", metavar="STEP", min=0, help="Write this step of the curve as a model.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where --extract writes.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell how an artifact came about, and give any step on the way as a model."""
    from lissome.report import answers
    from lissome.report.facts import explanation, step_of

    if (extract is None) != (out is None):
        raise ConfigError("--extract STEP and --out DIR go together.")
    if extract is not None and out is not None:
        from lissome import pipeline

        with working(ctx) as events:
            folder = pipeline.extract_step(artifact, extract, out, events=events)
        answer({"path": str(folder), "step": extract}, answers.path, as_json)
    elif step is not None:
        answer(step_of(artifact, step), answers.point, as_json)
    else:
        answer(explanation(artifact), answers.explain, as_json)
