"""What a deployment starts ends with it, whatever that has started in its turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lissome.engine.federate.flower.processes import Processes

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
_USER = """
import os, sys, time
from pathlib import Path
from lissome.engine.federate.flower.processes import Processes
processes = Processes(Path(sys.argv[1]), dict(os.environ))
processes.start("parent", [sys.executable, "-c", sys.argv[2]])
time.sleep(600)
"""


def child_of(folder: Path) -> int:
    """The process that left its parent's session, once it is there."""
    log, limit = folder / "parent.log", time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < limit, "it did not start"
        time.sleep(0.05)
    return int(log.read_text())


def ended(pid: int) -> bool:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_children_in_sessions_of_their_own_end_too(tmp_path: Path) -> None:
    mine, other = (Processes(tmp_path / name, {}) for name in ("mine", "other"))
    for one in (mine, other):
        one.start("parent", [sys.executable, "-c", _PARENT])
    child, stranger = child_of(tmp_path / "mine"), child_of(tmp_path / "other")
    os.kill(mine["parent"].pid, signal.SIGKILL)  # its child lives on, and belongs to nobody
    mine["parent"].wait()
    assert psutil.pid_exists(child)
    mine.stop()
    assert ended(child) and psutil.pid_exists(stranger)
    other.stop()
    assert ended(stranger)


@pytest.mark.long
def test_the_next_user_of_a_folder_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    user = subprocess.Popen([sys.executable, "-c", _USER, str(tmp_path), _PARENT])
    child = child_of(tmp_path)
    Processes(tmp_path, {}).stop_former()
    assert psutil.pid_exists(child), "its user still runs"
    user.kill()
    user.wait()
    assert psutil.pid_exists(child)
    Processes(tmp_path, {}).stop_former()
    assert ended(child)
