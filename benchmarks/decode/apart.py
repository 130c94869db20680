"""An arm in a process of its own.

Libraries that share a process share the helpers of OpenMP and their AMX tiles: with more helpers than cores all of them
sleep where they would wait, and llama.cpp without its tiles ends the process.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks._turns import clock
from benchmarks.decode.arms import request
from benchmarks.decode.files import Files
from benchmarks.decode.opening import open_arm
from lissome.cost.clock import fixed_threads
from lissome.cost.llama_cpp import alone

_SPAWN = multiprocessing.get_context("spawn")


class Apart:
    """An arm that times its own requests, on a clock of its own process.

    Args:
        files: The model's; those that the arm needs are made if they are not there.
        arm: Its name.
        room: Tokens of a text.
        threads: Threads.

    Raises:
        RuntimeError: When its process ends before its time.
    """

    def __init__(self, files: Files, arm: str, *, room: int, threads: int) -> None:
        self._arm = arm
        self._pipe, theirs = _SPAWN.Pipe()
        work = (theirs, files.name, files.folder, arm, room, threads)
        self._process = _SPAWN.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self.nbytes, self.cell, self.tokens, self.note = self._answer()

    def request(self, ids: Sequence[int], prompt: int) -> tuple[float, float]:
        """Return the seconds of a prompt and of the median token after it."""
        self._pipe.send((list(ids), prompt))
        first, step = self._answer()
        return first, step

    def _answer(self) -> tuple[Any, ...]:
        try:
            return tuple(self._pipe.recv())
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process of {self._arm} ended with code {self._process.exitcode}") from None

    def close(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self._process.join()


def _serve(*work: Any) -> None:
    alone(partial(_in_one_thread, *work))  # OpenMP's helpers of a second one would make all of them sleep, not wait


def _in_one_thread(pipe: Connection, name: str, folder: Path, arm: str, room: int, threads: int) -> None:
    with fixed_threads(threads):
        opened = open_arm(Files(name, folder), arm, room=room, threads=threads)
        pipe.send((opened.nbytes, opened.cell, opened.tokens, opened.note))
        gc.collect()
        gc.disable()  # a collection would fall into a token
        while True:
            try:
                ids, prompt = pipe.recv()
            except EOFError:
                return
            pipe.send(request(opened, ids, prompt, clock(threads)))
