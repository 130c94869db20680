"""The command ``lissome``: finds the commands by file name, loads the one that is called, and words every failure.

A command is a file beside this one with a function `command`; the first line of the file's docstring is its summary.
Nothing else has to be edited to add one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lissome import __version__
from lissome.cli._failures import READER_GONE, Terminated, failure
from lissome.cli._session import Session
from lissome.core.errors import UnknownNameError, unknown_name
from lissome.core.registry import FileInfo, public_files

_DEBUG = "--debug"
_CONTINUING = frozenset({"fit", "search", "federate", "supernet"})
"""Commands that continue when they are given again."""


class Commands(TyperGroup):
    """A group that names the nearest command when one is mistyped."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command and its arguments.

        Raises:
            UnknownNameError: When there is no such command.
        """
        if args[0] not in self.commands:
            raise UnknownNameError(unknown_name("command", args[0], self.commands, "See: lissome --help"))
        return super().resolve_command(ctx, args)


def command_files() -> tuple[FileInfo, ...]:
    """Every command: the public files of this package, except this one."""
    return tuple(info for info in public_files("lissome.cli") if info.name != "main")


def application(words: Sequence[str]) -> typer.Typer:
    """Build the application.

    Args:
        words: The command line; only the files of commands that it mentions are imported, the others are known by
            their summary.
    """
    app = typer.Typer(cls=Commands, add_completion=False, invoke_without_command=True, pretty_exceptions_enable=False)
    app.callback()(_global_options)
    for info in command_files():
        if info.name in words:
            app.command(info.name)(importlib.import_module(info.module).command)
        else:
            app.command(info.name, help=info.summary)(_not_loaded)
    return app


def _not_loaded() -> None:
    raise AssertionError("a command that the command line does not mention was called")


def _global_options(
    ctx: typer.Context,
    events: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Append every event to FILE as one line of JSON.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write every number to DIR for TensorBoard.")
    ] = None,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a pre-trained model smaller and faster, to a budget, and measure what came out.

    Start with: lissome fit
    """
    ctx.obj = Session(events=events, tensorboard=tensorboard, debug=debug)
    if version:
        typer.echo(f"lissome {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: The words after ``lissome`` (default: those of this process).

    Returns:
        The exit code; see `lissome.cli._failures`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "bench" not in words:  # what it compares shall be as fast as elsewhere
        # Threads that wait by spinning steal cores that others need: on a busy machine a product took six times longer.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end = words.index("--") if "--" in words else len(words)
    debug = _DEBUG in words[:end]
    words = [_DEBUG] * debug + [word for word in words[:end] if word != _DEBUG] + words[end:]
    if not debug:
        _quieten_libraries()
    if sys.stdout is None:  # closed by whoever started this process: nobody wants the answer
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (it stays open until the end)
    try:
        with _ending_politely():
            _run(words)
            sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # The reader (say `head`) has what it wanted; nothing may be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (a user gets one line, whatever it was)
        if debug:
            traceback.print_exc()
        line, code = failure(error, continues=not _CONTINUING.isdisjoint(words))
        typer.echo(f"error: {line}", err=True)
        return code
    return 0


@contextlib.contextmanager
def _ending_politely() -> Iterator[None]:
    """Let a request to end (SIGTERM) unwind the stack, so that half-written files are removed."""

    def end(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: Sequence[str]) -> None:
    command = typer.main.get_command(application(words))
    with command.make_context("lissome", list(words)) as context:
        command.invoke(context)


def _quieten_libraries() -> None:
    """Keep what libraries say to developers off the terminal; set before they are imported."""
    warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TQDM_DISABLE", "1"),
    ):
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
