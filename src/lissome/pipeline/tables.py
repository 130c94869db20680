"""Reads the tables of a federation's recipe; what is wrong is said with the table that it stands in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lissome.core.config import MethodConfig
from lissome.core.errors import ConfigError, LissomeError, OrderError
from lissome.core.registry import method as find_method
from lissome.engine.federate.method import FederatedMethod
from lissome.pipeline.recipe import RecipeStep

T = TypeVar("T", bound=MethodConfig)


@contextlib.contextmanager
def said_of(where: str) -> Iterator[None]:
    """Put a place, such as a file or a table, before what went wrong in it."""
    try:
        yield
    except LissomeError as error:
        raise type(error)(f"{where}: {error}") from error


def table(fields: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Read the settings of a table ``[key]``; without one they are the defaults.

    Raises:
        ConfigError: When it is no table, or a setting is unknown, mistyped or out of range.
    """
    found = fields.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{key} must be a table, [{key}].")
    with said_of(f"[{key}]"):
        return kind.from_mapping(found)


def tables(fields: Mapping[str, Any], key: str, kind: type[T]) -> tuple[T, ...]:
    """Read the settings of each table ``[[key]]``.

    Raises:
        ConfigError: As of `table`.
    """
    read = []
    for number, found in enumerate(_tables(fields, key), start=1):
        with said_of(f"[[{key}]] {number}"):
            read.append(kind.from_mapping(found))
    return tuple(read)


def only_step(fields: Mapping[str, Any], base: Path | None = None) -> RecipeStep:
    """Read the one step of a federation.

    Args:
        fields: The whole recipe.
        base: Folder of the recipe; files of public rows may lie there.

    Raises:
        ConfigError: When there is not one step, or a setting is unknown, mistyped or out of range.
        OrderError: When its method does not train across clients.
        UnknownNameError: When there is no such method.
    """
    found = _tables(fields, "step")
    if len(found) != 1 or not isinstance(found[0].get("method"), str):
        raise ConfigError('a federation needs one [[step]] with method = "NAME"; see: lissome methods')
    settings = dict(found[0])
    if isinstance(settings.get("public"), str):  # a file beside the recipe, like the data
        settings["public"] = beside(settings["public"], base)
    name = settings.pop("method")
    if not issubclass(find_method(name).load(), FederatedMethod):
        raise OrderError(f"{name} does not train across clients; use it with lissome fit before or after.")
    with said_of("[[step]]"):
        return RecipeStep.of(name, settings)


def beside(name: str, base: Path | None) -> str:
    """Return the path of a file or folder beside a recipe, if there is one of that name; otherwise the name."""
    return str((base / name).resolve()) if base is not None and name and (base / name).exists() else name


def _tables(fields: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = fields.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"{key} must be a list of tables, [[{key}]].")
    return found
