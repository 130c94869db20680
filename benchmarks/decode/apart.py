"""Arms in processes of their own, one for every library and model file that it runs.

Libraries that share a process share the helpers of OpenMP and their AMX tiles: with more helpers than cores all of them
sleep where they would wait, and llama.cpp without its tiles ends the process. Precisions of the engine are one file,
which lies in memory once.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks._turns import clock
from benchmarks.decode.arms import request
from benchmarks.decode.files import Files
from benchmarks.decode.opening import open_arms
from lissome.cost.clock import fixed_threads
from lissome.cost.llama_cpp import alone

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Remote:
    """An arm of another process; attributes as of `Arm`."""

    process: Apart
    name: str
    nbytes: int
    cell: int
    tokens: int
    note: str

    def request(self, ids: Sequence[int], prompt: int) -> tuple[float, float]:
        """Return the seconds of a prompt and of the median token after it."""
        first, step = self.process.asked((self.name, list(ids), prompt))
        return first, step


class Apart:
    """A process with arms that time their own requests, on its clock.

    Args:
        files: The model's; those that the arms need are made if they are not there.
        arms: Their names.
        room: Tokens of a text.
        threads: Threads.

    Attributes:
        arms: Each by its name.

    Raises:
        RuntimeError: When the process ends before its time.
    """

    def __init__(self, files: Files, arms: Sequence[str], *, room: int, threads: int) -> None:
        self._what = ", ".join(arms)
        self._pipe, theirs = _SPAWN.Pipe()
        work = (theirs, files.name, files.folder, tuple(arms), room, threads)
        self._process = _SPAWN.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self.arms: Mapping[str, Remote] = {name: Remote(self, name, *self._answer()) for name in arms}

    def asked(self, question: tuple[Any, ...]) -> tuple[Any, ...]:
        """Send a question and wait for its answer."""
        self._pipe.send(question)
        return self._answer()

    def _answer(self) -> tuple[Any, ...]:
        try:
            return tuple(self._pipe.recv())
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process of {self._what} ended with code {self._process.exitcode}") from None

    def close(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self._process.join()


def _serve(*work: Any) -> None:
    alone(partial(_in_one_thread, *work))  # OpenMP's helpers of a second one would make all of them sleep, not wait


def _in_one_thread(pipe: Connection, name: str, folder: Path, arms: Sequence[str], room: int, threads: int) -> None:
    with fixed_threads(threads):
        opened = open_arms(Files(name, folder), arms, room=room, threads=threads)
        for arm in opened.values():
            pipe.send((arm.nbytes, arm.cell, arm.tokens, arm.note))
        gc.collect()
        gc.disable()  # a collection would fall into a token
        while True:
            try:
                which, ids, prompt = pipe.recv()
            except EOFError:
                return
            pipe.send(request(opened[which], ids, prompt, clock(threads)))
