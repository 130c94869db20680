"""What scripts that train what ships with lissome are asked, and what they say meanwhile."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from lissome.core.events import Event
from lissome.core.files import cache_dir
from lissome.models.zoo import ZOO


def ask(
    script: str, summary: str | None, known: Collection[str], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Read the command line of a script; sets torch's threads when they are given.

    Args:
        script: Its module's name.
        summary: Its docstring, of which the first line is shown.
        known: Names of the models that it trains.
        arguments: What was given (default: the process's own).

    Returns:
        ``names`` (all, when none is given), ``steps`` or None, ``out``, ``work``, and ``time``: whether to time alone.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {script}", description=(summary or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--steps", type=int, help="of training (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=ZOO, help="where the folders go (default: into the package)")
    parser.add_argument("--work", type=Path, default=cache_dir() / "zoo", help="where unfinished work lies")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--time", action="store_true", help="only time a step of each")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; known: {', '.join(known)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    asked.names = asked.names or list(known)
    return asked


def _plain(loss: float) -> str:
    return f"loss {loss:.2f}"


class Ticker:
    """Prints a line of progress every minute.

    Args:
        name: What is trained.
        word: Words its loss.
    """

    def __init__(self, name: str, word: Callable[[float], str] = _plain) -> None:
        self._name, self._word, self._last = name, word, time.monotonic()

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if event.kind == "advance" and event.stage == "train" and time.monotonic() - self._last > 60:
            self._last = time.monotonic()
            told, left = self._word(event.metrics["loss"]), event.metrics["seconds_left"] / 60
            print(f"{self._name}: step {event.step}/{event.total}, {told}, {left:.0f} min left", flush=True)
