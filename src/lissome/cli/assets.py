"""List the models that are known by name, or fetch one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lissome.cli._session import JsonFlag, answer, working
from lissome.core.errors import ConfigError, UnknownNameError, unknown_name


def command(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list or fetch.")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which asset to fetch.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the models that are known by name, or fetch one; those of the zoo ship with lissome."""
    from lissome.data import assets
    from lissome.models import zoo
    from lissome.report import answers

    if action not in ("list", "fetch"):
        raise UnknownNameError(unknown_name("action", action, ("list", "fetch"), "See: lissome assets --help"))
    if (action == "fetch") != (name is not None):
        raise ConfigError("write: lissome assets list, or: lissome assets fetch NAME")
    if name is not None:
        with working(ctx) as events:
            path = zoo.folder_of(name) if name in zoo.zoo() else assets.fetch(name, events=events)
        answer({"name": name, "path": str(path)}, answers.path, as_json)
        return
    fields: list[dict[str, Any]] = [
        {
            "name": asset.name,
            "kind": asset.kind,
            "bytes": asset.size,
            "fetched": assets.is_fetched(asset),
            "licence": asset.licence,
            "summary": asset.summary,
        }
        for asset in assets.assets().values()
    ]
    fields += [
        {
            "name": name,
            "kind": "model",
            "bytes": sum((zoo.ZOO / name / file).stat().st_size for file in known.files),
            "fetched": True,
            "licence": zoo.LICENCE,
            "summary": f"{known.summary}; {known.told}",
        }
        for name, known in zoo.zoo().items()
    ]
    answer({"assets": fields}, answers.assets, as_json)
