"""Measure how well a model writes, answers, classifies or segments, next to a baseline."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli._session import AgainstOption, JsonFlag, TargetArgument, answer, exclusive, working
from lissome.core.errors import ConfigError


def command(
    ctx: typer.Context,
    target: TargetArgument,
    against: AgainstOption = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="Text for the perplexity (default: shipped test text)."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="NAME", help="Choice tasks such as piqa; may be repeated or joined by commas."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="X",
            help="What a model with classes is judged by: labelled texts (CSV or JSON lines) or images (a folder of "
            "folders, .npz); images with masks; or questions (SQuAD's JSON).",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most N questions of each task.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how well a model writes, answers, classifies or segments, next to a baseline."""
    from lissome import pipeline
    from lissome.report import answers

    exclusive(text=text, tasks=tasks, data=data)
    names = tuple(name.strip() for group in tasks or () for name in group.split(",") if name.strip())
    if tasks and not names:
        raise ConfigError("--tasks names no task; write for example --tasks piqa,boolq.")
    with working(ctx) as events:
        report = pipeline.evaluate(
            target, against=against, text=text, tasks=names, data=data, limit=limit, events=events
        )
    answer(report.to_json(), answers.table, as_json)
