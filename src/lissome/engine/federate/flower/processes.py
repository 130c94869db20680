"""Processes of one folder: each logs to a file there, and ends with us, or when the folder is next used."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from lissome.core.errors import ArtifactError
from lissome.core.files import read_json, write_json
from lissome.engine.alive import identity, runs

_ENDING = 10.0  # seconds that a process may take to end when it is asked to
_LONGEST = 240  # characters of a log in a message
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MARK = "LISSOME_PROCESSES_OF"


class Processes:
    """The processes of one folder, by name.

    Each leads a session of its own, so that what it has started ends with it; what leaves that session, as the
    SuperLink lets its apps do, is known by a mark in its environment. Which ones were started is written down: when we
    are killed ourselves they live on, and the next one to use the folder ends them before it starts others.

    Args:
        folder: For logs and for the record of what runs.
        environment: Of all of them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, {**environment, _MARK: str(folder.absolute())}
        self._record = folder / "processes.json"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __getitem__(self, name: str) -> subprocess.Popen[bytes]:
        """Return a process that was started."""
        return self._running[name]

    def log(self, name: str) -> Path:
        """File that a process writes to."""
        return self._folder / f"{name}.log"

    def said(self, name: str) -> str:
        """Return what went wrong by the log of a process, and where that is."""
        return f"{_essence(self.log(name))}; see {self.log(name)}"

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment,
                start_new_session=True, cwd=self._folder,
            )  # fmt: skip
        started = {name: identity(one.pid) for name, one in self._running.items()}
        write_json(self._record, {"owner": identity(os.getpid()), "started": started})
        return self._running[name]

    def stop(self) -> None:
        """End all of them."""
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            limit = time.monotonic() + _ENDING
            for process in self._running.values():
                _signal(process.pid, wanted)
            while time.monotonic() < limit and any(one.poll() is None for one in self._running.values()):
                time.sleep(0.1)
        self._stop_strays()
        self._record.unlink(missing_ok=True)

    def stop_former(self) -> None:
        """End those of a former user of the folder that was killed; those of one that still runs are left alone."""
        try:
            former = read_json(self._record)
        except ArtifactError:
            return
        if runs(former["owner"]):
            return
        for pid, started in former["started"].values():
            if runs((pid, started)) or not psutil.pid_exists(pid):  # a leader that is gone may have left others
                _signal(pid, signal.SIGKILL)
        self._stop_strays()
        self._record.unlink(missing_ok=True)

    def _stop_strays(self) -> None:
        """End what was started by those that were started, in a session of its own."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # gone, or somebody else's
                if process.environ().get(_MARK) == self._environment[_MARK]:
                    process.kill()


def _signal(pid: int, wanted: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, wanted)


def _essence(log: Path) -> str:
    """Return the last error of a log with the two lines that explain it, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in (_COLOUR.sub("", line).strip() for line in text.splitlines()) if line]
    errors = [place for place, line in enumerate(lines) if line.startswith("ERROR")]
    said = lines[errors[-1] : errors[-1] + 3] if errors else lines[-1:]
    return " ".join(" ".join(said).split())[:_LONGEST] or "it said nothing"
