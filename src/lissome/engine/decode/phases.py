"""Bits by phase: the prompt at one precision, then so many new tokens at the next, and the rest at the last.

Bits never rise within a text, so that no token is computed from fewer bits than those before it were worth, and they
are a function of the position alone, so that a text can be continued, batched and checked at any place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.files import read_json
from lissome.engine.decode.decoder import Floats
from lissome.engine.decode.session import Schedule, Session

NAME = "schedule.json"
"""Name of the file beside nested weights that says how they are read unless somebody says otherwise."""
_PHASE = re.compile(r"(\d{1,2})(?::(\d{1,9}))?")
_FORM = "4 (everywhere), 4:64,3 (4 bits for the prompt and 64 new tokens, then 3) or 6/4:64,3 (the prompt at 6)"


class Steps(Protocol):
    """The bits of one text's new tokens."""

    def bits(self, step: int) -> int:
        """Return the bits of a step, 0 being the one that computes the first new token; they never rise."""

    def see(self, logits: Floats) -> None:
        """Look at the logits that a step gave, float32[V], the next one's bits being asked for after it."""


class Policy(Protocol):
    """What decides the bits of texts."""

    @property
    def prefill(self) -> int:
        """Bits of prompts."""

    def decide(self, session: Session) -> Steps:
        """Return the bits of a sequence that consists of a prompt."""


@dataclass(frozen=True)
class Phases:
    """A schedule.

    Attributes:
        prefill: Bits of the prompt.
        steps: Bits, and how many steps they last; a step computes one new token to get the one after it. The last ones
            last to the end: their count is None.
    """

    prefill: int
    steps: tuple[tuple[int, int | None], ...]

    def __post_init__(self) -> None:
        bits = [self.prefill, *(own for own, _ in self.steps)]
        counts = [count for _, count in self.steps]
        if not counts or counts[-1] is not None or any(count is None or count < 0 for count in counts[:-1]):
            raise ConfigError(f"a schedule says for how many tokens, and of the last bits only nothing; write {_FORM}.")
        if any(later > earlier for earlier, later in pairwise(bits)):
            raise ConfigError(f"the bits of a schedule never rise, got {', '.join(map(str, bits))}; write {_FORM}.")

    @classmethod
    def parse(cls, text: str) -> Phases:
        """Read ``4``, ``4:64,3`` or ``6/4:64,3``.

        Raises:
            ConfigError: When it is no schedule.
        """
        first, slash, rest = text.replace(" ", "").partition("/")
        matches = [_PHASE.fullmatch(part) for part in (rest if slash else first).split(",")]
        if not all(matches) or (slash and not first.isdecimal()):
            raise ConfigError(f"{text!r:.60} is no schedule; write {_FORM}.")
        steps = tuple((int(one[1]), int(one[2]) if one[2] else None) for one in matches if one)
        return cls(int(first) if slash else steps[0][0], steps)

    def __str__(self) -> str:
        steps = ",".join(f"{bits}" if count is None else f"{bits}:{count}" for bits, count in self.steps)
        return steps if self.prefill == self.steps[0][0] else f"{self.prefill}/{steps}"

    def decide(self, session: Session) -> Phases:
        """Return itself: nothing has to be known of the prompt."""
        return self

    def require(self, precisions: tuple[int, ...]) -> Phases:
        """Return it, when weights have its precisions.

        Raises:
            ConfigError: Names one that they have not.
        """
        for bits in (self.prefill, *(own for own, _ in self.steps)):
            if bits not in precisions:
                listed = ", ".join(map(str, precisions))
                raise ConfigError(f"the schedule {self} reads {bits} bits, but the weights are read at {listed}.")
        return self

    def bits(self, step: int) -> int:
        """Return the bits of a step, 0 being the one that computes the first new token."""
        for own, count in self.steps:
            if count is None or step < count:
                return own
            step -= count
        raise AssertionError("the last bits last to the end")

    def see(self, logits: Floats) -> None:
        """Nothing: it depends on positions alone."""

    def after(self, prompt: int) -> Schedule:
        """Return the bits by absolute position for a prompt of so many tokens."""
        return lambda at: self.prefill if at < prompt else self.bits(at - prompt)

    def average(self, steps: int) -> float:
        """Return the mean bits of so many steps; the bits of the prompt when there are none."""
        return sum(map(self.bits, range(steps))) / steps if steps else float(self.prefill)


def read_schedule(folder: Path) -> str | None:
    """Read how a folder wants to be read; None when it does not say.

    Raises:
        ArtifactError: When the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    fields: Any = read_json(path)
    found = fields.get("schedule") if isinstance(fields, dict) else None
    if not isinstance(found, str):
        raise ArtifactError(f"{path} holds no schedule; restore or remake it.")
    return found
