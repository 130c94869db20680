"""List the methods, or show the settings of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lissome.cli._session import JsonFlag, answer
from lissome.core import registry


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this method's settings.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the methods, or show the settings of one."""
    from lissome.report import answers
    from lissome.report.settings import describe

    if name is not None:
        answer(describe(registry.method(name)), answers.method, as_json)
        return
    fields: list[dict[str, Any]] = [
        {"name": info.name, "family": info.family, "summary": info.summary} for info in registry.methods().values()
    ]
    answer({"methods": fields}, answers.methods, as_json)
