"""What every command shares: where progress goes, how an answer is printed, and the options that recur."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from lissome.core.budget import parse_bytes
from lissome.core.config import MAX_SEED
from lissome.core.errors import ConfigError
from lissome.core.events import EventStream, JsonLines

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_BUDGET = "latency=85%"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the answer as JSON (keys: docs/reference/json.md).")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An asset (lissome assets), a folder, a GGUF file, or a hub id.")
]
TargetArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="What to look at: an artifact, an asset, a folder, a GGUF file or a hub id."),
]
AgainstOption = Annotated[
    str | None, typer.Option("--against", metavar="BASE", help="Compare with BASE in the same run, paired.")
]
MethodOption = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="The method to run (default: multipruner).")
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A TOML file that lists methods with their settings.")
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="EXPR",
        help=f"A bound such as disk<=400MB; may be repeated (default: the recipe's, else {DEFAULT_BUDGET}).",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="X",
        help="Text to calibrate on: a text file, JSON lines, or a datasets id (default: shipped text). For an encoder: "
        "labelled texts, CSV or JSON lines with text and label.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method (lissome methods NAME); may be repeated."),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=MAX_SEED, help="The one source of randomness.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="B", help="Refuse before starting if more memory is needed, e.g. 2GiB."),
]


@dataclass(frozen=True)
class Session:
    """The global options of one command line."""

    events: Path | None = None
    tensorboard: Path | None = None
    debug: bool = False


class Answer(Protocol):
    """What the pipeline returns: anything that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON-able fields."""


@contextlib.contextmanager
def working(ctx: typer.Context) -> Iterator[EventStream]:
    """Give a command its event stream; standard output is kept for the answer while it works."""
    from lissome.report.progress import progress

    session = ctx.obj if isinstance(ctx.obj, Session) else Session()
    with contextlib.ExitStack() as stack:
        stream = EventStream(stack.enter_context(progress(sys.stderr)))
        if session.events is not None:
            stream.listen(stack.enter_context(JsonLines(session.events)))
        if session.tensorboard is not None:
            from lissome.report.tensorboard import TensorBoard

            stream.listen(stack.enter_context(TensorBoard(session.tensorboard)))
        # Libraries that print must not end up in the middle of an answer that a program reads.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield stream


def answer(fields: dict[str, Any], shown: Callable[[dict[str, Any]], Sequence[RenderableType]], as_json: bool) -> None:
    """Print an answer on standard output: as JSON, or as `shown` lays it out for a person."""
    if as_json:
        typer.echo(json.dumps(_finite(fields), indent=2, allow_nan=False))
        return
    from rich.text import Text

    from lissome.report.table import terminal

    console = terminal(sys.stdout)
    with console.capture() as page:
        for part in shown(fields):
            console.print(part, soft_wrap=isinstance(part, Text))  # text keeps its lines; tables fit the width
    typer.echo(page.get(), nl=False, color=console.is_terminal)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def exclusive(**given: object) -> None:
    """Refuse options that cannot stand together.

    Raises:
        ConfigError: When more than one of them was given.
    """
    names = [f"--{name}" for name, value in given.items() if value]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} cannot stand together; keep one of them.")


def byte_count(text: str | None) -> int | None:
    """Read an amount of memory such as ``2GiB``.

    Raises:
        ConfigError: When it is not an amount of bytes.
    """
    return None if text is None else parse_bytes(text, "--max-memory")


def derived_folder(model: str, budget: Sequence[str] | None, **choices: object) -> Path:
    """Name the output of a job after what was asked, so that the same command finds it again.

    The model and the budget are readable; anything else that was chosen goes into six digits of a hash.
    """
    bounds = budget or _default_bounds(**choices)
    name = "-".join([_model_name(model), *map(_words, bounds)])
    chosen = {key: value for key, value in choices.items() if value}
    if chosen:
        text = json.dumps(chosen, sort_keys=True, default=str)
        name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return Path(name)


def _default_bounds(**choices: Any) -> list[str]:
    """What a job is held to when no budget is given; a recipe says it itself, and some settings need none."""
    if choices.get("recipe"):
        return []
    if choices.get("method"):
        from lissome.pipeline.recipe import Recipe

        return [DEFAULT_BUDGET] if Recipe.of(choices["method"], choices.get("settings") or ()).follows_budget else []
    return [DEFAULT_BUDGET]


def derived_file(target: str, format: str, type: str | None) -> Path:
    """Name an exported file or folder after the model, in the working directory."""
    name = _model_name(target)
    return Path(f"{name}-{type or 'F16'}.gguf" if format == "gguf" else f"{name}-{_words(format)}")


def _model_name(model: str) -> str:
    path = Path(model).resolve()  # "." and ".." have names of their own
    return _words(path.stem if path.suffix == ".gguf" else path.name) or "model"


def _words(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
