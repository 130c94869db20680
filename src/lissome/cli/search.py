"""Find the trade-off between quality and cost in a super-network, or in a language model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, SeedOption, SetOption, answer, derived_folder, working
from lissome.core.errors import BudgetUnmetError

SubjectArgument = Annotated[
    str, typer.Argument(metavar="S", help="What to search: an asset, a folder, a GGUF file or a hub id.")
]
BoundOption = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="EXPR", help="A bound such as params<=80%; may be repeated (default: none)."),
]
ObjectiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="What to make better, the most important first; may be repeated (default: quality and what is bounded).",
    ),
]

ExamplesOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="X",
        help="Of a super-network: where the examples that it was trained on lie now (default: where they lay then). "
        "Of a language model as it is: a text file, JSON lines, or a datasets id (default: shipped text).",
    ),
]
CheckOption = Annotated[
    int, typer.Option("--check", metavar="N", min=0, help="Time N sub-networks to see how latency is predicted.")
]
CorrectOption = Annotated[
    int,
    typer.Option("--correct", metavar="N", min=0, help="Time N sub-networks here to correct the times of --device."),
]
LatencyOption = Annotated[
    str,
    typer.Option(
        "--latency",
        metavar="WAY",
        help="Where latency comes from: table, regression, measured; auto: a table of a language model, else a "
        "regression.",
    ),
]


def command(
    ctx: typer.Context,
    target: SubjectArgument,
    budget: BoundOption = None,
    objective: ObjectiveOption = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="Subnets to evaluate.")] = 100,
    sampler: Annotated[
        str, typer.Option("--sampler", metavar="NAME", help="nsga2, tpe, random, climb or ensemble.")
    ] = "nsga2",
    data: ExamplesOption = None,
    latency: LatencyOption = "auto",
    device: Annotated[
        Path | None,
        typer.Option("--device", metavar="FILE", help="Search for the machine that wrote FILE (lissome bench)."),
    ] = None,
    check: CheckOption = 0,
    correct: CorrectOption = 0,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes that share the trials.")] = 1,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="URL", help="Keep the trials in this database (default: a file in --out)."),
    ] = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the search (default: named after what was asked, in S if that is a super-network).",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the trade-off between quality and cost in a super-network, or in a language model as it is.

    The same command again continues; more trials go on from there. Of a super-network, report.html in S shows the
    front: click a point to see its sub-network and the command that extracts it.
    """
    from lissome import pipeline
    from lissome.report import answers
    from lissome.report.page import write_page_if_possible

    inside = Path(target) if pipeline.is_elastic(target) else Path()
    folder = out or inside / derived_folder(
        target, ["search", *(budget or [])], objective=objective, sampler=sampler, data=data, latency=latency,
        device=device, correct=correct, settings=settings, seed=seed,
    )  # fmt: skip
    with working(ctx) as events:
        report = pipeline.search(
            target,
            out=folder,
            budget=tuple(budget or ()),
            objectives=tuple(objective or ()),
            settings=tuple(settings or ()),
            trials=trials,
            sampler=sampler,
            data=data,
            device=str(device) if device else None,
            latency=latency,
            check=check,
            correct=correct,
            workers=workers,
            study=study,
            seed=seed,
            events=events,
        )
        if pipeline.is_elastic(target):
            write_page_if_possible(Path(target), events)
    answer(report.to_json(), answers.search, as_json)
    if budget and not report.front:
        raise BudgetUnmetError(
            f"none of the {report.evaluated} Subnets that were evaluated holds {', '.join(report.bounds)}; "
            "give more --trials or a wider bound."
        )
