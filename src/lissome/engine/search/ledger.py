"""Where the trials of a search are written down: in memory here, in a database in `lissome.engine.search.database`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from lissome.models.space import Subnet

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One Subnet that is to be, is being, or was evaluated.

    Attributes:
        number: Its place in the order of proposals; a trial that is repeated keeps it.
        subnet: The Subnet.
        state: ``failed`` is one whose figures cannot be had at all.
        by: Who proposed it.
        notes: What the sampler wants to remember of it.
        figures: Its figures, once it is done.
        seconds: What the evaluation took.
        error: Why it failed.
    """

    number: int
    subnet: Subnet
    state: State = "waiting"
    by: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Return one trial of each Subnet, a done one before others.

    On a server, two processes that begin at one moment may both write down what to start from.
    """
    found: dict[Subnet, Trial] = {}
    for trial in trials:
        if trial.subnet not in found or (trial.state == "done" != found[trial.subnet].state):
            found[trial.subnet] = trial
    return list(found.values())


class Ledger(Protocol):
    """A list of trials that several processes may share."""

    def trials(self) -> list[Trial]:
        """Return all trials by number; of one that was repeated, how it stands now."""

    def alone(self) -> AbstractContextManager[Any]:
        """Return a context in which no other process looks, proposes or claims."""

    def add(self, subnet: Subnet, by: str, notes: Mapping[str, Any]) -> None:
        """Write down a trial that waits."""

    def claim(self, *, rescue: bool = True) -> Trial | None:
        """Take the first trial that waits; None when there is none.

        Args:
            rescue: Look for trials that a dead process left behind first.
        """

    def working(self, trial: Trial) -> AbstractContextManager[Any]:
        """Return a context in which others are told that the trial's process is alive."""

    def finish(self, trial: Trial, figures: Mapping[str, float], seconds: float) -> None:
        """Write down the figures of a claimed trial; when another process has it now, nothing."""

    def fail(self, trial: Trial, error: str) -> None:
        """Write down that a claimed trial has no figures, and why."""

    def give_back(self, trial: Trial) -> None:
        """Let a claimed trial wait again."""

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON-able value beside the trials."""

    def noted(self, name: str) -> Any:
        """Return such a value; None when there is none."""


class Memory:
    """A ledger of this process alone."""

    def __init__(self) -> None:
        self._trials: list[Trial] = []
        self._notes: dict[str, Any] = {}
        self._waiting: list[int] = []

    def trials(self) -> list[Trial]:
        """Return all trials."""
        return list(self._trials)

    def alone(self) -> AbstractContextManager[Any]:
        """Nobody else looks."""
        return nullcontext()

    def add(self, subnet: Subnet, by: str, notes: Mapping[str, Any]) -> None:
        """Write down a trial that waits."""
        self._waiting.append(len(self._trials))
        self._trials.append(Trial(number=len(self._trials), subnet=subnet, by=by, notes=notes))

    def claim(self, *, rescue: bool = True) -> Trial | None:
        """Take the first trial that waits."""
        if not self._waiting:
            return None
        number = self._waiting.pop(0)
        self._trials[number] = replace(self._trials[number], state="running")
        return self._trials[number]

    def working(self, trial: Trial) -> AbstractContextManager[Any]:
        """Nobody to be told."""
        return nullcontext()

    def finish(self, trial: Trial, figures: Mapping[str, float], seconds: float) -> None:
        """Write down the figures."""
        self._trials[trial.number] = replace(trial, state="done", figures=dict(figures), seconds=seconds)

    def fail(self, trial: Trial, error: str) -> None:
        """Write down that there are no figures."""
        self._trials[trial.number] = replace(trial, state="failed", error=error)

    def give_back(self, trial: Trial) -> None:
        """Let it wait again."""
        self._trials[trial.number] = replace(trial, state="waiting")
        self._waiting.insert(0, trial.number)

    def note(self, name: str, value: Any) -> None:
        """Keep a value."""
        self._notes[name] = value

    def noted(self, name: str) -> Any:
        """Return a value."""
        return self._notes.get(name)
