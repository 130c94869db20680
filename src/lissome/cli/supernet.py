"""Make a super-network: trained once, it holds a model for every budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, ModelArgument, SeedOption, SetOption, answer, derived_folder, working

WhichOption = Annotated[
    str, typer.Option("--method", metavar="NAME", help="The method that makes it (lissome methods).")
]
ExamplesOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="X",
        help="What it learns: labelled images (a folder of folders, .npz, a datasets id), labelled texts (CSV or JSON "
        "lines) or questions (SQuAD's JSON) for an encoder, images with masks (.npz) for a segmenter, text for a "
        "language model (default: shipped text).",
    ),
]


def command(
    ctx: typer.Context,
    model: ModelArgument,
    method: WhichOption = "bootstrapnas",
    data: ExamplesOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="S", help="Where it goes (default: named after model and method).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a super-network: trained once, it holds a model for every budget.

    Then: lissome search S, and lissome extract S --budget … for each device. The same command again continues.
    """
    from lissome import pipeline
    from lissome.report import supernets

    folder = out or derived_folder(model, [method], data=data, settings=settings, seed=seed)
    with working(ctx) as events:
        report = pipeline.supernet(
            model, method=method, data=data, settings=tuple(settings or ()), seed=seed, out=folder, events=events
        )
    answer(report.to_json(), supernets.supernet, as_json)
