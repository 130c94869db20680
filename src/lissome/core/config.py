"""Settings of a method: frozen dataclasses that refuse what they do not know, and round-trip through TOML."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from lissome.core.errors import ConfigError, unknown_name

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def option(
    default: T, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[T, ...] = ()
) -> T:
    """Declare one setting of a `MethodConfig`.

    Args:
        default: Its default.
        help: One line: meaning, unit, and why this default.
        low: Smallest value allowed, of each item when it is a tuple.
        high: Largest value allowed, of each item when it is a tuple.
        choices: The only values allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all method settings; subclasses are frozen keyword-only dataclasses whose fields use `option`.

    A setting is a bool, int, float, str, Literal, a tuple of these, or a union of these with each other or None. TOML
    has no None: one that is the default is left out, any other is written as the text ``none``, so that a setting
    that may be text or None must have None as its default.

    Raises:
        ConfigError: When a value has another type than its setting, or is out of range.
    """

    def __init_subclass__(cls) -> None:
        for name in cls.__annotations__:
            if hasattr(MethodConfig, name):
                raise TypeError(
                    f"{cls.__qualname__}: {name!r} is taken by MethodConfig; give the setting another name."
                )

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            where = f"the setting {field.name!r}"
            value = _convert(where, getattr(self, field.name), kinds[field.name])
            _check_range(where, value, field.metadata)
            object.__setattr__(self, field.name, value)  # frozen, but 1 must become 1.0 and a list a tuple

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from typed values, such as a TOML file holds.

        Raises:
            ConfigError: For an unknown key, a wrong type or a value out of range.
        """
        for key in values:
            if key not in cls.names():
                raise ConfigError(unknown_name("setting", str(key), cls.names()))
        return cls(**values)

    @classmethod
    def from_assignments(cls, assignments: Iterable[str], base: Mapping[str, Any] | None = None) -> Self:
        """Build from ``key=value`` texts (the command line's ``--set``), over the typed values of `base`.

        A list is written ``1,2,3``, a None ``none``, a boolean ``true``, ``yes``, ``on``, ``1`` or their opposites.

        Raises:
            ConfigError: As `from_mapping`, and for a text without ``=``.
        """
        kinds = typing.get_type_hints(cls)
        values = dict(base or {})
        for key, text in parse_assignments(assignments).items():
            values[key] = _read(f"the setting {key!r}", text, kinds[key]) if key in cls.names() else text
        return cls.from_mapping(values)

    def to_mapping(self) -> dict[str, Any]:
        """Return all settings as plain values that TOML and JSON can hold and `from_mapping` reads back."""
        pairs = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {
            field.name: list(value) if isinstance(value, tuple) else "none" if value is None else value
            for field, value in pairs
            if value is not None or field.default is not None
        }

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read settings from TOML text.

        Raises:
            ConfigError: When the text is not TOML, or as `from_mapping`.
        """
        return cls.from_mapping(read_toml(text))

    def check_finite(self) -> None:
        """Refuse infinite numbers, which no file of a job can hold.

        Raises:
            ConfigError: Names the setting.
        """
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isinf(value):
                raise ConfigError(f"the setting {name!r} must be finite, got {value}.")

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


_LARGEST = 2**63 - 1  # of a whole number: neither TOML nor torch promises more
MAX_SEED = _LARGEST
"""Largest seed: the largest that every random number generator takes."""


def check_seed(seed: object) -> None:
    """Refuse what is no seed before any work.

    Raises:
        ConfigError: When it is not a whole number from 0 to `MAX_SEED`.
    """
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"the seed must be a whole number from 0 to {MAX_SEED}, got {seed!r}.")


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ConfigError: When the text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
        raise ConfigError(f"not valid TOML: {error}.") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Write a mapping, with mappings and lists of mappings in it as tables, as TOML text.

    Raises:
        ConfigError: When a value is not one that TOML has.
    """
    return "\n".join(_toml_lines(values, ())).lstrip("\n") + "\n"


def _toml_lines(values: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in values.items() if not _is_table(value)]
    for key, value in values.items():
        if _is_table(value):
            place = (*above, _toml_key(key))
            header = "{}" if isinstance(value, Mapping) else "[{}]"
            for table in [value] if isinstance(value, Mapping) else value:
                lines += ["", "[" + header.format(".".join(place)) + "]", *_toml_lines(table, place)]
    return lines


def _is_table(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_string(key)


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value)  # of the plain number, also when it is an IntEnum
        case float():
            return float.__repr__(value)  # likewise when it is NumPy's
        case str():
            return _toml_string(value)
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise ConfigError(f"{value!r} cannot be written as TOML.")


def _toml_string(text: str) -> str:
    if not _encodable(text):
        raise ConfigError(f"{text!r} cannot be written as TOML: it holds half a character.")
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    body = "".join(
        escapes.get(char, f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char) for char in text
    )
    return f'"{body}"'


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _members(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.get_args(kind)
    return (kind,)


def _convert(where: str, value: Any, kind: Any) -> Any:
    """Bring `value` to the type of the setting without guessing: a whole number may stand for a float, no more."""
    members = _members(kind)
    for member in members:
        try:
            return _typed(value, member)
        except ValueError:
            continue
    if value == "none" and type(None) in members:  # how `to_mapping` writes it
        return None
    raise ConfigError(f"{where} must be {_described(members)}, got {value!r}.")


def _typed(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`; a ValueError says that it is not one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(item, one) for item, one in zip(value, _item_kinds(arguments, len(value)), strict=True))
    elif kind is float:
        with contextlib.suppress(OverflowError):  # a whole number that no float holds
            if type(value) in (int, float) and not math.isnan(value):
                return float(value)
    elif type(value) is kind:
        return value
    raise ValueError


def _item_kinds(arguments: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """Kinds of the items of a ``tuple[X, ...]`` or a ``tuple[X, Y, Z]`` that holds `length` of them."""
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * length
    if len(arguments) != length:
        raise ValueError
    return arguments


def _read(where: str, text: str, kind: Any) -> Any:
    """Read a value from the text of a command line."""
    members = _members(kind)
    for member in sorted(members, key=lambda member: member is str):  # text is what is left when nothing else fits
        try:
            return _from_text(text, member)
        except ValueError:
            continue
    raise ConfigError(f"{where} must be {_described(members)}, got {text!r}.")


def _from_text(text: str, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise ValueError
    if origin is tuple:
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        kinds = _item_kinds(arguments, len(parts))
        return tuple(_from_text(part, one) for part, one in zip(parts, kinds, strict=True))
    if kind is type(None) and text.lower() == "none":
        return None
    if kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind in (int, float):
        return _typed(kind(text), kind)
    if kind is str:
        return text
    raise ValueError


def _described(members: tuple[Any, ...]) -> str:
    return " or ".join(_KIND_NAMES.get(member) or _described_one(member) for member in members)


def _described_one(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_described(arguments[:1])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_described(arguments[:1])}"
    return str(kind)


_KIND_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "none",
}


def _check_range(where: str, value: Any, metadata: Mapping[str, Any]) -> None:
    low, high, choices = (metadata.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}.")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise ConfigError(
                    f"{where} must be a whole number of 64 bits at most, got one of {number.bit_length()}."
                )
            if low is not None and not number >= low:
                raise ConfigError(f"{where} must be at least {low}, got {number}.")
            if high is not None and not number <= high:
                raise ConfigError(f"{where} must be at most {high}, got {number}.")
