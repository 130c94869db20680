"""Shows the event stream to a person: a bar with the time left on a terminal, a few plain lines elsewhere.

Rounds of a federation stand in a table above their bar, which grows while they go on.

``LISSOME_PROGRESS`` overrides the choice: ``bar``, ``plain`` or ``off``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from lissome.core.errors import ConfigError, unknown_name
from lissome.core.events import Event, Listener
from lissome.report.table import columns, sheet
from lissome.report.units import duration, number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

MODES = ("bar", "plain", "off")
ROUNDS = "federate"
"""The stage whose steps are rounds."""
_SHOWN = 12  # rounds that stand above the bar: with more, a small terminal would show nothing else
_INTERVAL = 10.0  # seconds between two plain lines of one stage: a log of an hour stays readable


@contextlib.contextmanager
def progress(stream: IO[str], mode: str | None = None) -> Iterator[Listener]:
    """Give a listener that shows events on `stream` while the block runs.

    Args:
        stream: Where to write, usually standard error.
        mode: One of `MODES` (default: ``LISSOME_PROGRESS``, else a bar on a terminal and plain lines elsewhere).

    Raises:
        ConfigError: When the mode is unknown.
    """
    chosen = mode or os.environ.get("LISSOME_PROGRESS") or ("bar" if stream.isatty() else "plain")
    if chosen not in MODES:
        raise ConfigError(unknown_name("progress mode", chosen, MODES, "It comes from LISSOME_PROGRESS."))
    if chosen == "off":
        yield lambda _: None
    elif chosen == "plain":
        yield PlainLines(stream)
    else:
        with _bar(stream) as bar:
            yield bar


@dataclass
class _Running:
    """A stage being watched: when it began and at which step, and when it was last spoken of."""

    began: float
    first: int
    said: float

    def left(self, event: Event) -> float | None:
        """Seconds that the rest will take at the pace so far; None when that cannot be known yet."""
        done = event.step - self.first
        if event.total is None or done <= 0:
            return None
        return (event.time - self.began) / done * (event.total - event.step)


class PlainLines:
    """A listener that writes a line when a stage begins and ends, and now and then between."""

    def __init__(self, stream: IO[str], *, interval: float = _INTERVAL) -> None:
        self._stream, self._interval = stream, interval
        self._running: dict[str, _Running] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "message":
            self._write(event.message, event.metrics)
        elif event.kind == "start":
            self._running[event.stage] = _Running(event.time, event.step, event.time)
            self._write(f"{event.stage}: {_position(event)}" if event.step else event.stage)
        elif event.kind == "finish":
            began = self._running.pop(event.stage).began
            self._write(f"{event.stage}: done in {duration(event.time - began)}")
        else:
            self._advance(event)

    def _advance(self, event: Event) -> None:
        running = self._running[event.stage]
        if event.time - running.said < self._interval:
            return
        running.said = event.time
        left = running.left(event)
        parts = [_position(event), event.message, f"{duration(left)} left" if left is not None else ""]
        self._write(f"{event.stage}: {', '.join(part for part in parts if part)}", event.metrics)

    def _write(self, text: str, metrics: Mapping[str, float] | None = None) -> None:
        self._stream.write(f"{text}{_numbers(metrics or {})}\n")
        self._stream.flush()


def _position(event: Event) -> str:
    return f"{event.step}" if event.total is None else f"{event.step}/{event.total}"


def _numbers(metrics: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {number(value)}' for name, value in metrics.items())})" if metrics else ""


@contextlib.contextmanager
def _bar(stream: IO[str]) -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    console = Console(file=stream)
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}", markup=True),
        BarColumn(bar_width=28),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    rounds = _Rounds()

    class Board(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if rounds.ended:
                yield rounds.table()
            yield from super().get_renderables()

    # Libraries write to the same terminal: what they say goes above the bar instead of through it.
    with Board(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        yield _Bars(bars, console.print, rounds)


@dataclass
class _Rounds:
    """The rounds of a federation that have ended, with the seconds that each took."""

    ended: list[tuple[Event, float]] = field(default_factory=list)
    _last: float = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event of the stage in; a stage that begins begins the table anew."""
        if event.kind == "start":
            self.ended.clear()
        else:
            self.ended.append((event, event.time - self._last))
        self._last = event.time

    def table(self) -> Table:
        """The last rounds: who answered and what was sent, how long it took, and every number."""
        shown = self.ended[-_SHOWN:]
        names = columns(name for event, _ in shown for name in event.metrics)
        table = sheet("round", "clients", "time", *names)
        for event, seconds in shown:
            values = (number(event.metrics[name]) if name in event.metrics else "" for name in names)
            table.add_row(_position(event), event.message, duration(seconds), *values)
        return table


class _Bars:
    """A listener that keeps one bar per open stage, and leaves one line behind for each that is done."""

    def __init__(self, bars: Progress, write: Callable[..., None], rounds: _Rounds) -> None:
        self._bars, self._write, self._rounds = bars, write, rounds
        self._tasks: dict[str, TaskID] = {}
        self._running: dict[str, _Running] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.stage == ROUNDS and event.kind in ("start", "advance"):
            self._rounds(event)
        if event.kind == "message":
            self._write(f"{event.message}{_numbers(event.metrics)}", markup=False, highlight=False)
        elif event.kind == "start":
            if event.stage in self._tasks:  # a stage that failed is tried again
                self._bars.remove_task(self._tasks[event.stage])
            self._running[event.stage] = _Running(event.time, event.step, event.time)
            self._tasks[event.stage] = self._bars.add_task(
                _escaped(event.stage), total=event.total, completed=event.step, note=""
            )
        elif event.kind == "advance":
            left = self._running[event.stage].left(event)
            parts = [_position(event), f"{duration(left)} left" if left is not None else "", event.message]
            note = " · ".join(part for part in parts if part) + _numbers(event.metrics)
            note = " · ".join(filter(None, parts[:2])) if event.stage == ROUNDS else note  # the table says the rest
            self._bars.update(self._tasks[event.stage], completed=event.step, total=event.total, note=note)
        else:
            self._bars.remove_task(self._tasks.pop(event.stage))
            seconds = event.time - self._running.pop(event.stage).began
            self._write(f"✓ {event.stage} in {duration(seconds)}", markup=False, highlight=False, style="green")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
