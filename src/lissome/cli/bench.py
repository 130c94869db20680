"""Measure speed, memory and size, next to a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import AgainstOption, JsonFlag, TargetArgument, answer, working


def command(
    ctx: typer.Context,
    target: TargetArgument,
    against: AgainstOption = None,
    save_table: Annotated[
        Path | None,
        typer.Option(
            "--save-table", metavar="FILE", help="Also write a latency table that another machine can plan with."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure speed, memory and size, next to a baseline."""
    from lissome import pipeline
    from lissome.report import answers

    with working(ctx) as events:
        report = pipeline.measure(target, against=against, save_table=save_table, events=events)
    answer(report.to_json(), answers.table, as_json)
