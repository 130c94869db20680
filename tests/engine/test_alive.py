"""A process is known by its number and its start."""

from __future__ import annotations

import os
import subprocess
import sys

from lissome.engine.alive import identity, machine, runs


def test_a_process_runs_until_it_ends_and_its_number_alone_is_not_it() -> None:
    mine = identity(os.getpid())
    assert runs(mine) and runs(list(mine))
    assert not runs((mine[0], mine[1] + 1))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = identity(process.pid)
        assert runs(other)
        process.communicate(b"\n")
    assert not runs(other)
    assert machine() == machine()
