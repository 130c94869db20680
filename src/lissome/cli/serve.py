"""Serve a folder of nested weights over HTTP, in the words of the OpenAI interface."""

from __future__ import annotations

from typing import Annotated

import typer

from lissome.cli._session import working


def command(
    ctx: typer.Context,
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="A folder that lissome export --to nested wrote.")
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Where to listen; 127.0.0.1 is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="KEY", envvar="LISSOME_KEY", help="What clients must show; better in LISSOME_KEY."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="Tokens of a prompt and its answer (default: 2048 at most)."),
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", metavar="N", min=1, max=64, help="Texts at a time.")] = 4,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Requests that may wait; others get status 429.")
    ] = 32,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", metavar="BITS", help="Bits by phase, as of generate (default: what the folder says)."
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="KIND", help="Keys and values, as of generate (default: f16)."),
    ] = None,
) -> None:
    """Serve a folder of nested weights over HTTP, in the words of the OpenAI interface.

    Paths: /v1/chat/completions, /v1/completions, /v1/models, /health.
    """
    from lissome.core.optional import optional_import

    for library in ("starlette", "uvicorn"):
        optional_import(library, extra="serve")
    from lissome.serve.run import ServerSettings, serve

    settings = ServerSettings(
        host=host,
        port=port,
        key=key,
        context=context,
        parallel=parallel,
        queue=queue,
        schedule=schedule,
        cache=cache,
    )
    with working(ctx) as events:
        serve(artifact, settings, events)
