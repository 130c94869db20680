"""Make a model smaller and faster, to a budget, and measure the result."""

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
    derived_folder,
    exclusive,
    working,
)
from lissome.core.errors import BudgetUnmetError


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
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the result goes (default: named after the model and budget)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a model smaller and faster, to a budget, and measure the result.

    Without arguments: SmolLM2-135M at 85 % of its latency. The same command again continues an interrupted run.
    """
    from lissome import pipeline
    from lissome.report import answers
    from lissome.report.page import write_page_if_possible

    exclusive(method=method, recipe=recipe)
    limit = byte_count(max_memory)
    folder = out or derived_folder(model, budget, method=method, recipe=recipe, data=data, settings=settings, seed=seed)
    with working(ctx) as events:
        report = pipeline.fit(
            model,
            method=method,
            recipe=recipe,
            budget=tuple(budget) if budget else None,
            data=data,
            settings=tuple(settings or ()),
            seed=seed,
            max_memory=limit,
            out=folder,
            events=events,
        )
        write_page_if_possible(folder, events)
    answer(report.to_json(), answers.fit, as_json)
    failed = [str(verdict) for verdict in report.verdicts if not verdict.ok]
    if failed:
        raise BudgetUnmetError("; ".join(failed))
