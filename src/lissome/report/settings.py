"""What a method says of itself, read from its class: what it needs and leaves, and every setting."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from lissome.core.config import MethodConfig
from lissome.core.registry import MethodInfo


def describe(info: MethodInfo) -> dict[str, Any]:
    """Return a method as JSON-able fields; imports its file.

    Raises:
        LissomeError: When the file does not define exactly one method.
    """
    method = info.load()
    return {
        "name": info.name,
        "family": info.family,
        "summary": info.summary,
        "needs": sorted(method.needs),
        "leaves": sorted(method.leaves),
        "removes": sorted(method.removes),
        "budget_terms": sorted(method.budget_terms),
        "settings": settings(method.Config),
    }


def settings(config: type[MethodConfig]) -> list[dict[str, Any]]:
    """Return every setting of a Config: name, type, default, bounds, choices, help."""
    kinds = typing.get_type_hints(config)
    return [
        {
            "name": field.name,
            "type": _kind(kinds[field.name]),
            "default": list(field.default) if isinstance(field.default, tuple) else field.default,
            "low": field.metadata.get("low"),
            "high": field.metadata.get("high"),
            "choices": list(field.metadata.get("choices") or ()),
            "help": field.metadata.get("help", ""),
        }
        for field in dataclasses.fields(config)
    ]


def _kind(kind: Any) -> str:
    """A type as a person writes it: ``int or none``, ``auto | magnitude``, ``list of int``."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "none"
    if origin is typing.Literal:
        return " | ".join(map(str, members))
    if origin is tuple:
        return f"list of {_kind(members[0])}"
    if origin is typing.Union or isinstance(kind, types.UnionType):
        return " or ".join(map(_kind, members))
    return getattr(kind, "__name__", str(kind))
