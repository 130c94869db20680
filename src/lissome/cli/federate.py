"""Train one model across clients whose data stay where they are and whose devices differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lissome.cli._session import JsonFlag, answer, working
from lissome.core.errors import ConfigError, UnknownNameError, unknown_name


def command(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file: model, data, devices, method.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes; the same again continues.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="Where clients run: inprocess, ray or deployment.")
    ] = "inprocess",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say who gets which sub-network, bytes and memory; train nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train one model across clients whose data stay where they are and whose devices differ."""
    from lissome.pipeline.federating import BACKENDS, federate, plan_federation
    from lissome.report import federated

    if backend not in BACKENDS:
        raise UnknownNameError(unknown_name("back end", backend, BACKENDS))
    if not dry_run and out is None:
        raise ConfigError("say where the result goes with --out DIR, or add --dry-run.")
    with working(ctx) as events:
        if dry_run:
            report: Any = plan_federation(recipe, events=events)
        else:
            assert out is not None
            report = federate(recipe, out=out, backend=backend, events=events)  # type: ignore[arg-type]
    answer(report.to_json(), federated.plan if dry_run else federated.result, as_json)
