"""Whether a process that was written down still runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

_PROCESSES = Path("/proc")
_START = 19  # of the numbers behind a process's name, in clock ticks since the machine started
_SAME = 0.01  # by which two readings of a start may differ


def identity(pid: int) -> tuple[int, float]:
    """Number of a process and when it was started, 0 when it is gone: numbers are used again, the pair is not.

    The start is one that stays when the clock is set, where the system knows it.
    """
    try:
        return pid, _start(pid)
    except (psutil.Error, OSError):
        return pid, 0.0


def _start(pid: int) -> float:
    if not (_PROCESSES / "stat").exists():
        return psutil.Process(pid).create_time()  # type: ignore[no-any-return]
    facts = (_PROCESSES / str(pid) / "stat").read_text(errors="replace")
    return float(facts.rpartition(")")[2].split()[_START])


def runs(written: Sequence[float]) -> bool:
    """Whether a process of this machine still runs, by its `identity`."""
    pid, started = int(written[0]), written[1]
    return abs(identity(pid)[1] - started) < _SAME


def machine() -> str:
    """Return a name of where numbers of processes mean the same: this machine since its start, and the container."""
    boot, space = _PROCESSES / "sys" / "kernel" / "random" / "boot_id", _PROCESSES / "self" / "ns" / "pid"
    facts = (boot.read_text().strip() if boot.exists() else "", str(space.readlink()) if space.is_symlink() else "")
    return " ".join(filter(None, (platform.node(), *facts)))
