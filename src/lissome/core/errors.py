"""Every error that lissome raises on purpose, and the help it carries.

The tree (catch `LissomeError` for all of them)::

    LissomeError
    ├── ConfigError            a setting or recipe is unknown, mistyped or out of range
    ├── BudgetError            a budget expression cannot be read
    │   └── BudgetUnmetError   it can be read, but not be met; says which term and what is reachable
    ├── OrderError             methods in an order that cannot work (`needs` / `leaves`)
    ├── UnknownNameError       no such method, asset, command, format, term …
    ├── UnsupportedModelError  a model whose parts were not understood
    ├── SubnetError            a choice outside its Space, or a Subnet of another Space
    ├── NumericsError          NaN or infinity in weights, activations or losses
    ├── DataError              text, task or tokenizer that cannot be used
    ├── ArtifactError          a saved folder or file that is damaged, unsafe or from the future
    ├── AssetError             a named download that is missing or whose checksum differs
    ├── ExportError            a model that the wanted format cannot express
    ├── FederationError        a federation that cannot go on: too few clients, a client or server that is another's
    ├── MemoryLimitError       a job that will not fit the given memory
    └── MissingExtraError      an optional library is not installed; says the install line

Each message is one line: what was given, what is allowed, the nearest match, the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 24  # names that a message lists: all methods, terms and settings, but not the hundreds of axes of a model
_WIDTH = 400  # characters that they may take together, the longest counting for all


class LissomeError(Exception):
    """Base of all errors raised on purpose; the command line prints its text and exits with `exit_code`."""

    exit_code = 2


class ConfigError(LissomeError):
    """A setting or recipe is unknown, mistyped or out of range."""


class BudgetError(LissomeError):
    """A budget expression cannot be read."""


class BudgetUnmetError(BudgetError):
    """A budget was understood but cannot be, or was not, met; the failed term is named."""

    exit_code = 3


class OrderError(LissomeError):
    """Methods stand in an order that cannot work."""


class UnknownNameError(LissomeError):
    """A name that is not registered."""


class UnsupportedModelError(LissomeError):
    """A model whose parts were not understood."""


class SubnetError(LissomeError):
    """A choice outside its Space, or a Subnet that belongs to another Space."""


class NumericsError(LissomeError):
    """NaN or infinity where finite numbers are needed."""

    exit_code = 4


class DataError(LissomeError):
    """Text, a task or a tokenizer that cannot be used."""


class ArtifactError(LissomeError):
    """A saved folder or file that is damaged, unsafe, or written by a newer version."""


class AssetError(LissomeError):
    """A named download that is missing, or whose checksum differs."""


class ExportError(LissomeError):
    """A model that the wanted format cannot express."""


class FederationError(LissomeError):
    """A federation that cannot start or go on: too few clients answer, or one belongs to another federation."""


class MemoryLimitError(LissomeError):
    """A job that will not fit the given memory."""

    exit_code = 5


class MissingExtraError(LissomeError, ImportError):
    """An optional library is not installed."""


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `given` (the case does not matter), or None when nothing is close."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(given.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def unknown_name(what: str, given: str, known: Iterable[str], next_step: str = "") -> str:
    """Word the standard message for an unknown name.

    Args:
        what: What kind of name it is, e.g. ``"method"``.
        given: The name that was given.
        known: The names that exist; of many, the first few are shown.
        next_step: What the user can do next, appended as its own clause.
    """
    names = sorted(known)
    shown = max(1, min(_SHOWN, _WIDTH // (1 + max(map(len, names), default=0))))
    guess = nearest(given, names)
    hint = f" did you mean {guess!r}?" if guess else ""
    more = f" … ({len(names)} in all)" if len(names) > shown else ""
    listing = (", ".join(names[:shown]) or "none") + more
    tail = f" {next_step}" if next_step else ""
    return f"unknown {what} {given!r};{hint} known: {listing}.{tail}"


def first_line(error: Exception) -> str:
    """Return the first line of what an error of foreign code says, or its name where it says nothing."""
    return next((each.strip() for each in str(error).splitlines() if each.strip()), type(error).__name__)[:120]
