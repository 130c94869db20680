"""Say what a fit would do, reach and need, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import (
    BudgetOption,
    DataOption,
    JsonFlag,
    MemoryOption,
    MethodOption,
    ModelArgument,
    RecipeOption,
    SeedOption,
    SetOption,
    answer,
    byte_count,
    exclusive,
    working,
)


def command(
    ctx: typer.Context,
    model: ModelArgument = "smollm2-135m",
    method: MethodOption = None,
    recipe: RecipeOption = None,
    budget: BudgetOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    max_memory: MemoryOption = None,
    device: Annotated[
        Path | None,
        typer.Option(
            "--device", metavar="FILE", help="Plan for the machine that wrote FILE (lissome bench --save-table)."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a fit would do, reach and need, without doing it."""
    from lissome import pipeline
    from lissome.report import answers

    exclusive(method=method, recipe=recipe)
    limit = byte_count(max_memory)
    with working(ctx) as events:
        report = pipeline.plan(
            model,
            method=method,
            recipe=recipe,
            budget=tuple(budget) if budget else None,
            data=data,
            settings=tuple(settings or ()),
            seed=seed,
            max_memory=limit,
            device=device,
            events=events,
        )
    answer(report.to_json(), answers.plan, as_json)
