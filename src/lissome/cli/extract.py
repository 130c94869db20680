"""Cut a model of a wanted size out of one that was trained for many sizes; it needs no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, answer, working

TakeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget", metavar="EXPR", help="A bound such as macs<=50%; may be repeated (default: the search's choice)."
    ),
]


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="A folder with an elastic model, or the name of one that ships.")
    ],
    budget: TakeOption = None,
    point: Annotated[
        str | None,
        typer.Option(
            "--point",
            metavar="N",
            help="Take this point of the search instead; or largest, middle or smallest, which need none (with batch "
            "norms the largest alone).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the model goes.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Cut a model of a wanted size out of one that was trained for many sizes; it needs no data.

    Of a super-network that was searched the best point that holds the budget goes, of any other the largest size.
    """
    from lissome import pipeline
    from lissome.cli._session import derived_folder, exclusive
    from lissome.report import supernets

    exclusive(budget=budget, point=point is not None)
    folder = out or derived_folder(artifact, budget or ["extract"], point=point)
    taken = int(point) if point and point.isdecimal() else point
    with working(ctx) as events:
        report = pipeline.extract_for(
            artifact, budget=tuple(budget) if budget else None, point=taken, out=folder, events=events
        )
    answer(report.to_json(), supernets.extracted, as_json)
