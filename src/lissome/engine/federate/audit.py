"""What went wrong, and with whom: one line of JSON for each answer that was not used. Nothing private stands in it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Event = Literal["rejected", "failed", "late", "silent", "banned", "refused", "void", "reverted"]
"""``rejected``: an answer that breaks the rules; ``failed``: a client that says it could not; ``late``: after the
round; ``silent``: nothing came; ``banned``: asked no more; ``refused``: may not join; ``void``: took part in a round
whose result could not be used; ``reverted``: used, but an older private state took the place of a damaged one."""

_LONGEST = 200  # of a reason: it may come from a client


class Audit:
    """The log, what a former process wrote included, and how often each client broke the rules.

    Args:
        file: Where lines are appended; None keeps them in memory alone.
        most: Strikes with which a client is banned; 0: never.

    Attributes:
        lines: All of them.
        strikes: By client, how often it broke the rules.
        heard: Called with every new line.
    """

    def __init__(self, file: Path | None = None, *, most: int = 0) -> None:
        self._file, self._most = file, most
        self.strikes: Counter[str] = Counter()
        self.heard: Callable[[dict[str, object]], None] = lambda _: None
        self.lines: list[dict[str, object]] = _read(file) if file is not None and file.is_file() else []

    def note(self, event: Event, *, round: int, client: str, action: str, reason: str) -> None:
        """Write one line; a rejected answer is a strike against its client."""
        if event == "rejected":
            self.strikes[client] += 1
        line: dict[str, object] = {
            "time": round_time(), "event": event, "round": round, "client": printable(client), "action": action,
            "reason": printable(reason),
        }  # fmt: skip
        self.lines.append(line)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a+b") as file:
                half = file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"  # of one that was killed
                file.write(b"\n" * bool(half) + json.dumps(line).encode() + b"\n")
        self.heard(line)
        if event == "rejected" and self.strikes[client] == self._most:
            why = f"{self._most} of its answers were rejected; it is asked no more"
            self.note("banned", round=round, client=client, action=action, reason=why)

    def count(self, event: Event) -> int:
        """How often something happened."""
        return sum(line["event"] == event for line in self.lines)


def _read(file: Path) -> list[dict[str, object]]:
    """Lines of a former process; one that was killed may have left half a line."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def round_time() -> float:
    """Seconds since the epoch, to the millisecond."""
    return round(time.time(), 3)


def printable(text: str) -> str:
    """Return text of others as one short line of plain characters."""
    line = " ".join(text.split())
    safe = "".join(char if char.isprintable() else "?" for char in line)
    return safe if len(safe) <= _LONGEST else safe[: _LONGEST - 1] + "…"
