"""Turns whatever went wrong into one line and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import typer

from lissome.core.errors import LissomeError, nearest, unknown_name

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
READER_GONE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM
EXIT_CODES = {
    1: "the machine or a defect: disk full, out of memory, a file that cannot be used, an unexpected error",
    2: "what was asked for: a mistyped name, a wrong setting, a model or file that cannot be used",
    3: "the budget cannot be, or was not, met",
    4: "NaN or infinity in weights, activations or losses",
    5: "the job needs more than `--max-memory`",
    INTERRUPTED: "interrupted",
    READER_GONE: "the reader of the answer went away",
    TERMINATED: "terminated, by a scheduler's time limit for example",
}
"""What each exit code says, besides 0."""

USAGE: type[Exception] = getattr(typer, "TyperException", None) or import_module("click").ClickException
"""What a misuse of the command line raises: newer versions of typer have errors of their own, older ones click's."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries written in other languages hand the reason on as text only.
_FULL_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded", "disk is full")
_LARGE = frozenset({errno.EFBIG})
_LARGE_TEXTS = ("file too large", "os error 27")
_MEMORY_TEXTS = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
_FILES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def failure(error: BaseException, *, continues: bool = True) -> tuple[str, int]:
    """Return the line for a person, without its ``error:``, and the exit code.

    Args:
        error: What went wrong.
        continues: Whether the command goes on where it was when it is given again.
    """
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        word, code = ("terminated", TERMINATED) if isinstance(error, Terminated) else ("interrupted", INTERRUPTED)
        return f"{word}; the same command continues." if continues else f"{word}.", code
    if isinstance(error, LissomeError):
        return _line(error), 1 if _is_disk_full(error) else error.exit_code  # full: not what was asked for
    if _is_disk_full(error) or _is_too_large(error):
        return _no_room(error, continues), 1
    if isinstance(error, USAGE):
        return _usage(error), int(getattr(error, "exit_code", 2))
    if _is_memory(error):
        return "out of memory; close other programs, choose a smaller model, or plan with --max-memory first.", 1
    if isinstance(error, _FILES) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"{error.filename or 'a file'}: {error.strerror or _line(error)}; check the path and its permissions.", 1
    return f"unexpected {type(error).__name__}: {_line(error)}; run again with --debug and report it.", 1


def _line(error: BaseException) -> str:
    """The text of an error as one line, however it was laid out."""
    return " ".join(str(error).split()) or "no reason given"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: BaseException) -> bool:
    return _says(error, _FULL, _FULL_TEXTS)


def _is_too_large(error: BaseException) -> bool:
    return _says(error, _LARGE, _LARGE_TEXTS)


def _says(error: BaseException, numbers: frozenset[int], texts: Sequence[str]) -> bool:
    return any(
        (isinstance(link, OSError) and link.errno in numbers) or any(text in str(link).lower() for text in texts)
        for link in _chain(error)
    )


def _written(error: BaseException) -> str | None:
    """The file that was being written, where an error says it."""
    names = [link.filename for link in _chain(error) if isinstance(link, OSError) and link.filename]
    return str(names[0]) if names else None


def _no_room(error: BaseException, continues: bool) -> str:
    name = _written(error)
    if not _is_disk_full(error):
        return f"{name or 'a file'} is larger than its file system, or ulimit -f, allows; write to another place."
    then = "the same command continues" if continues else "give the command again"
    return f"disk full{f' while writing {name}' if name else ''}; free some space, then {then}."


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so with RuntimeErrors of several classes."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS)
    )


def _usage(error: Any) -> str:
    """A misuse of the command line, with the nearest option and the help to read."""
    context: Any = getattr(error, "ctx", None)
    help_line = f"See: {context.command_path} --help" if context is not None else "See: lissome --help"
    given: str | None = getattr(error, "option_name", None)
    if given is None or context is None:
        return (
            f"{_line(error) if not hasattr(error, 'format_message') else _sentence(error.format_message())} {help_line}"
        )
    known = _options(context)
    if given in known:  # it exists, but was used wrongly
        return f"{_sentence(error.format_message())} {help_line}"
    above = _options(context.parent) if context.parent is not None else []
    if given in above and nearest(given, known) != given:
        return f"{given} stands before the command: lissome {given} … {context.info_name} …"
    return unknown_name("option", given, known, help_line)


def _options(context: Any) -> list[str]:
    return [name for parameter in context.command.get_params(context) for name in parameter.opts if name[:2] == "--"]


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    line = line[:1].lower() + line[1:]
    return line if line.endswith((".", "?", "!")) else f"{line}."
