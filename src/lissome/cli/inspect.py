"""Show what is in a model, or what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer, working
from lissome.core.errors import ConfigError


def command(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="An asset (lissome assets), a folder, a GGUF file, or a hub id."),
    ] = None,
    device: Annotated[
        bool, typer.Option("--device", help="Measure this machine instead: threads, speed, bandwidth.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what is in a model, or what this machine can do."""
    from lissome import pipeline
    from lissome.report import answers

    if device == (model is not None):
        raise ConfigError("give either a MODEL or --device.")
    with working(ctx) as events:
        report = pipeline.inspect_device(events=events) if model is None else pipeline.inspect(model, events=events)
    answer(report.to_json(), answers.inspect, as_json)
