"""One stream of typed events for everything that takes long.

Engines and methods call `stage(...)` and `advance(...)`; a progress bar, JSON lines and TensorBoard listen.
Library code never prints.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

EventKind = Literal["start", "advance", "finish", "message"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run.

    Attributes:
        kind: ``start``, ``advance`` and ``finish`` belong to a stage; ``message`` stands alone.
        stage: Name of the stage, e.g. ``"prune"``.
        step: Steps done so far in the stage.
        total: Steps in the whole stage, or None when unknown.
        message: One line for a person.
        metrics: Named numbers at this moment.
        time: Seconds since the epoch.
    """

    kind: EventKind
    stage: str = ""
    step: int = 0
    total: int | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON-able fields."""
        return asdict(self)


Listener = Callable[[Event], None]


class Stage:
    """A running stage; created by `EventStream.stage`."""

    def __init__(self, stream: EventStream, name: str, total: int | None, step: int) -> None:
        self._stream, self._name, self._total, self.step = stream, name, total, step

    def advance(self, steps: int = 1, *, message: str = "", **metrics: float) -> None:
        """Say that `steps` more are done, with any numbers worth following."""
        self.step += steps
        self._stream.emit(
            Event(
                kind="advance", stage=self._name, step=self.step, total=self._total, message=message, metrics=metrics
            )
        )


class EventStream:
    """Hands every event to every listener, in order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def listen(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Hand `event` to all listeners."""
        for listener in self._listeners:
            listener(event)

    def message(self, text: str, **metrics: float) -> None:
        """Emit one line for a person."""
        self.emit(Event(kind="message", message=text, metrics=metrics))

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, *, done: int = 0) -> Iterator[Stage]:
        """Open a stage of `total` steps, of which `done` were finished before (a continued run)."""
        self.emit(Event(kind="start", stage=name, step=done, total=total))
        stage = Stage(self, name, total, done)
        yield stage
        self.emit(Event(kind="finish", stage=name, step=stage.step, total=total))


class JsonLines:
    """A listener that appends one JSON object per event to a file or stream."""

    def __init__(self, target: Path | IO[str]) -> None:
        self._file = target.open("a", encoding="utf-8") if isinstance(target, Path) else target

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps(event.to_json()) + "\n")
        self._file.flush()
