"""Processes that search one study together, one of which is killed; for a file and for a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lissome.engine.search import Found

_ROOT = Path(__file__).parents[3]
_WORKER = """
import sys
from pathlib import Path
from lissome.engine.search import SearchConfig, search
from tests.engine.search.landscapes import slow
folder, study, seconds, name = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
found = search(slow(seconds, folder / f"{name}.log"), SearchConfig(trials=16, heartbeat=1), study=study)
found.save(folder / f"{name}.json")
"""

_DOOMED = """
import os, signal, sys
from dataclasses import replace
from lissome.engine.search import SearchConfig, search
from tests.engine.search.landscapes import problem
left, plain = iter(range(int(sys.argv[2]))), problem(4)
def evaluate(subnet):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(plain.evaluate(subnet))
search(replace(plain, evaluate=evaluate), SearchConfig(trials=14, population=4), seed=1, study=sys.argv[1])
"""


def killed_search(study: Path, after: int) -> int:
    """Let a process search until it is killed in the middle of an evaluation; return its exit code."""
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", _DOOMED, str(study), str(after)], env=environment, check=False
    ).returncode


def worker(folder: Path, study: Path | str, seconds: float, name: str) -> subprocess.Popen[bytes]:
    """Start a process that searches, each evaluation taking so long; it leaves NAME.log and NAME.json in a folder."""
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"}
    command = [sys.executable, "-c", _WORKER, str(folder), str(study), str(seconds), name]
    return subprocess.Popen(command, env=environment)


def lines(file: Path) -> list[str]:
    """Return what a worker began to evaluate."""
    return file.read_text().splitlines() if file.exists() else []


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def check_a_killed_worker(folder: Path, study: Path | str) -> None:
    """The first begins a trial that it will not end; the other one ends all of them, this one too."""
    doomed = worker(folder, study, 3600.0, "doomed")
    try:
        wait_for(lambda: lines(folder / "doomed.log"))
        other = worker(folder, study, 0.05, "other")
        wait_for(lambda: len(lines(folder / "other.log")) > 3)
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        assert other.wait(timeout=120) == 0
    finally:
        doomed.kill()
        doomed.wait()
    found = Found.load(folder / "other.json")
    evaluated = Counter(lines(folder / "other.log"))
    assert len(found.points) == 16
    assert len({point.choices for point in found.points}) == 16
    assert set(lines(folder / "doomed.log")) <= set(evaluated), "what the dead one had begun was done again"
    assert max(evaluated.values()) == 1
    assert {",".join(map(str, point.choices)) for point in found.points} == set(evaluated)
