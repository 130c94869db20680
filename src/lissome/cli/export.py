"""Write a model in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lissome.cli._session import JsonFlag, TargetArgument, answer, derived_file, working


def command(
    ctx: typer.Context,
    target: TargetArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORMAT", help="hf (a transformers folder), gguf (llama.cpp) or nested (lissome's engine)."
        ),
    ],
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Number type, e.g. F16, Q8_0, Q4_1 or Q4_0 (default: the original file's, else F16); of nested: bits "
            "of each segment, /64, /kmeans (default: 3+1).",
        ),
    ] = None,
    pad: Annotated[
        bool,
        typer.Option("--pad", help="Add zeros where the format cannot say the true size; what was added is listed."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File or folder to write (default: named after the model)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a model in the format of another program."""
    from lissome import pipeline
    from lissome.report import answers

    with working(ctx) as events:
        report = pipeline.export(target, to, out or derived_file(target, to, type), type=type, pad=pad, events=events)
    answer(report.to_json(), answers.export, as_json)
