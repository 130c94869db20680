"""Dataclasses to JSON values and back, strictly: a wrong type or an unknown key is an error, never a guess."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lissome.core.errors import ArtifactError, unknown_name

T = TypeVar("T")

_DEEPEST = 64  # our own files are nested less than ten deep
_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}


def as_json(value: Any) -> Any:
    """Return a dataclass, or a container of them, as JSON values; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {key: as_json(item) for key, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Rebuild a dataclass from `as_json`.

    Args:
        kind: The dataclass; its fields may be text, numbers, booleans, None, literals, ``tuple[X, ...]``,
            ``Mapping[str, X]``, other dataclasses, unions of these, or Any.
        value: What a JSON file held.
        where: How to call it in an error, e.g. ``"manifest.json"``.

    Raises:
        ArtifactError: When a key is missing or unknown, or a value has another type.
    """
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where} must be an object, got {_shown(value)}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise ArtifactError(f"{where}: {unknown_name('key', str(key), fields)}")
    hints = typing.get_type_hints(kind)
    ready: dict[str, Any] = {}
    for key, field in fields.items():
        if key in value:
            ready[key] = _convert(hints[key], value[key], f"{where}.{key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ArtifactError(f"{where} lacks {key!r}; the file is damaged or not of this kind.")
    return kind(**ready)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as `kind`, or raise an ArtifactError that says where it stands and what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        _check_depth(value, where)
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise ArtifactError(f"{where} must be one of {', '.join(map(str, arguments))}, got {_shown(value)}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ArtifactError(f"{where} must be a list, got {_shown(value)}.")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ArtifactError(f"{where} must be an object, got {_shown(value)}.")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(type[Any], kind), value, where)
    return _convert_plain(kind, value, where)


def _convert_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    problems = []
    for member in members:
        if member is not type(None):
            try:
                return _convert(member, value, where)
            except ArtifactError as error:
                problems.append(error)
    raise problems[-1]


def _convert_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond what a float can hold
            number = math.inf
        if math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    raise ArtifactError(f"{where} must be {_NAMES.get(kind, str(kind))}, got {_shown(value)}.")


def _check_depth(value: Any, where: str) -> None:
    """Refuse nesting that nobody writes on purpose, and that would exhaust the stack of whoever walks it."""
    level = [value]
    for _ in range(_DEEPEST):
        children = (item.values() if isinstance(item, Mapping) else item for item in level if _holds(item))
        level = [child for items in children for child in items]
        if not level:
            return
    raise ArtifactError(f"{where} is nested more than {_DEEPEST} deep; the file is damaged or not ours.")


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
