"""Let a model continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, TargetArgument, answer, working

MOST_TOKENS = 1_000_000  # far more than any model reads


def command(
    ctx: typer.Context,
    target: TargetArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the model continues.")],
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, max=MOST_TOKENS, help="Stop after N tokens at the latest."
        ),
    ] = 64,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            metavar="BITS",
            help="Of nested weights: bits of the prompt and the first new tokens, then of the rest, e.g. 4:64,3; "
            "or learnt (default: what the folder says, else all).",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="KIND",
            help="In the decoder engine: keys and values as f16, int8 or f32, and shares of zeros in those of earlier "
            "blocks, e.g. int8:0.5 (default: f16).",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a model continue a prompt (greedily, so that two models can be compared)."""
    from lissome import pipeline
    from lissome.report import answers

    with working(ctx) as events:
        report = pipeline.generate(
            target, prompt, max_new_tokens=max_new_tokens, schedule=schedule, cache=cache, events=events
        )
    answer(report.to_json(), answers.generate, as_json)
