"""Settings of a method: frozen dataclasses that refuse what they do not know, and round-trip through TOML."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from lissome.core.errors import ConfigError, unknown_name


T = TypeVar("T")


def option(
    default: T, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[T, ...] = ()
) -> T:
    """Declare one setting of a `MethodConfig`.

    Args:
        default: Its default.
        help: One line: meaning, unit, and why this default.
        low: Smallest value allowed.
        high: Largest value allowed.
        choices: The only values allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return cast(T, dataclasses.field(default=default, metadata=metadata))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all method settings; subclasses are frozen keyword-only dataclasses whose fields use `option`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(type(self), field, getattr(self, field.name))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values.

        Raises:
            ConfigError: For an unknown key, a wrong type or a value out of range.
        """
        for key in values:
            if key not in cls.names():
                raise ConfigError(unknown_name("setting", key, cls.names()))
        kinds = typing.get_type_hints(cls)
        return cls(**{key: _convert(key, value, kinds[key]) for key, value in values.items()})

    @classmethod
    def from_assignments(cls, assignments: Iterable[str], base: Mapping[str, Any] | None = None) -> Self:
        """Build from ``key=value`` texts (the command line's ``--set``), over the values of `base`.

        Raises:
            ConfigError: As `from_mapping`, and for a text without ``=``.
        """
        return cls.from_mapping({**(base or {}), **parse_assignments(assignments)})

    def to_mapping(self) -> dict[str, Any]:
        """Return all settings as plain values that TOML and JSON can hold (None is left out)."""
        pairs = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs if value is not None}

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read settings from TOML text.

        Raises:
            ConfigError: When the text is not TOML, or as `from_mapping`.
        """
        return cls.from_mapping(read_toml(text))

    def to_toml(self) -> str:
        """Write the settings as TOML text that `from_toml` reads back to an equal value."""
        return to_toml(self.to_mapping())


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Split ``key=value`` texts.

    Raises:
        ConfigError: For a text without ``=`` or a key given twice.
    """
    values: dict[str, str] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"{text!r} is not a setting; write KEY=VALUE.")
        if key in values:
            raise ConfigError(f"the setting {key!r} is given twice; keep one of them.")
        values[key] = value.strip()
    return values


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ConfigError: When the text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}.") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Write a flat or one-level nested mapping, or lists of tables, as TOML."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if not _is_table(value)]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", to_toml(value).rstrip()]
        elif _is_table(value):
            for table in value:
                lines += ["", f"[[{key}]]", to_toml(table).rstrip()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _toml_string(value)
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise ConfigError(f"{value!r} cannot be written as TOML.")


def _toml_string(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    body = "".join(
        escapes.get(char, f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char) for char in text
    )
    return f'"{body}"'


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _members(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.get_args(kind)
    return (kind,)


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Bring `value` (a TOML value, or text from the command line) to the type of the setting."""
    members = _members(kind)
    if value is None or (isinstance(value, str) and value.lower() == "none" and str not in members):
        if type(None) in members:
            return None
        raise ConfigError(f"the setting {key!r} must not be none.")
    for member in members:
        if member is not type(None):
            try:
                return _convert_one(value, member)
            except (ValueError, TypeError, KeyError):
                continue
    names = " or ".join(getattr(member, "__name__", str(member)) for member in members if member is not type(None))
    raise ConfigError(f"the setting {key!r} must be {names}, got {value!r}.")


def _convert_one(value: Any, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError
    if origin is tuple:
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
        item_kind = typing.get_args(kind)[0]
        return tuple(_convert_one(item, item_kind) for item in items)
    if kind is bool:
        return value if isinstance(value, bool) else _BOOLEANS[_text(value).lower()]
    if kind in (int, float):
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return kind(value)
    if kind is str:
        return _text(value)
    raise TypeError


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _check(owner: type, field: dataclasses.Field[Any], value: Any) -> None:
    where = f"{owner.__qualname__}.{field.name}"
    low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}.")
    if value is None or isinstance(value, str | bool | tuple):
        return
    if low is not None and not value >= low:
        raise ConfigError(f"{where} must be at least {low}, got {value}.")
    if high is not None and not value <= high:
        raise ConfigError(f"{where} must be at most {high}, got {value}.")
