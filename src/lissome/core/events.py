"""One stream of typed events for everything that takes long.

Engines and methods call `stage(...)` and `advance(...)`; a progress bar, JSON lines and TensorBoard listen.
Library code never prints.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self

from lissome.core.errors import ConfigError
from lissome.core.files import unwritable

EventKind = Literal["start", "advance", "finish", "message"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run.

    Attributes:
        kind: ``start``, ``advance`` and ``finish`` belong to a stage; ``message`` stands alone. A stage that an error
            ended has no ``finish``.
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

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Event:
        """Read what `to_json` wrote; numbers that JSON lacked are left out."""
        metrics = {key: value for key, value in fields["metrics"].items() if value is not None}
        return cls(**{**fields, "metrics": metrics})

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON-able fields; a number that is NaN or infinite, which JSON lacks, becomes None."""
        metrics = {key: value if math.isfinite(value) else None for key, value in self.metrics.items()}
        return {**asdict(self), "metrics": metrics}


Listener = Callable[[Event], None]


class Stage:
    """A running stage; created by `EventStream.stage`."""

    def __init__(self, stream: EventStream, name: str, total: int | None, step: int) -> None:
        self._stream, self._name, self._total, self.step = stream, name, total, step

    def advance(self, steps: int = 1, *, message: str = "", **metrics: float) -> None:
        """Say that `steps` more are done (0 to report on the way), with any numbers worth following."""
        if steps < 0:
            raise ValueError(f"a stage does not go back, got {steps} steps.")
        self.step += steps
        self._emit("advance", message, {key: float(value) for key, value in metrics.items()})

    def _emit(self, kind: EventKind, message: str = "", metrics: Mapping[str, float] | None = None) -> None:
        self._stream.emit(
            Event(
                kind=kind,
                stage=self._name,
                step=self.step,
                total=self._total,
                message=message,
                metrics=metrics or {},
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
        self.emit(Event(kind="message", message=text, metrics={key: float(value) for key, value in metrics.items()}))

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, *, done: int = 0) -> Iterator[Stage]:
        """Open a stage of `total` steps, of which `done` were finished before (a continued run)."""
        stage = Stage(self, name, total, done)
        stage._emit("start")
        yield stage
        stage._emit("finish")


class JsonLines:
    """A listener that appends one JSON object per event to a file or stream.

    Args:
        target: A file, made when missing and closed by `close`; or an open stream, which stays open. When a killed
            run left half a line at the end of the file, a new line is begun, so that only the half one is lost.

    Raises:
        ConfigError: When the file cannot be written, or holds something else.
    """

    def __init__(self, target: Path | IO[str]) -> None:
        self._owned = isinstance(target, Path)
        self._file = _appended(target) if isinstance(target, Path) else target

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._file.write(json.dumps(event.to_json(), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, when it was opened here."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Followed:
    """Hands events on that another process writes with `JsonLines`, as they come.

    Args:
        file: The file; it need not be there yet. What stands in it already is passed over.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place = file.stat().st_size if file.is_file() else 0

    def hand_on(self, stream: EventStream) -> None:
        """Emit the events of all whole lines that are new; what a killed process left of a line is passed over."""
        if not self._file.is_file():
            return
        with self._file.open("rb") as file:
            file.seek(self._place)
            new = file.read()
        lines = new[: new.rfind(b"\n") + 1]
        self._place += len(lines)
        for line in lines.splitlines():
            with contextlib.suppress(ValueError):
                stream.emit(Event.from_json(json.loads(line)))


def _appended(path: Path) -> IO[str]:
    try:
        return _opened(path)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(0)
            if file.read(1) != b"{":
                raise ConfigError(f"{path} exists and holds no events; name another file, or remove it.")
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return path.open("a", encoding="utf-8")
