"""Peak memory of a piece of work, and bytes on disk.

On Linux the kernel itself keeps the high-water mark of resident memory (VmHWM) and resets it on request, so that no
peak, however short, is missed. Where it cannot be reset, a thread looks at the present size every few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lissome.core.errors import ArtifactError
from lissome.core.optional import optional_import

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PERIOD = 0.005  # s; a model's weights take longer than this to be touched
_active: list[Peak] = []  # nested measurements share the kernel's one mark


@dataclass
class Peak:
    """What `peak_memory` found; final after its ``with`` block.

    Attributes:
        before: Resident bytes at the start.
        highest: Largest resident bytes inside.
        gpu: Largest bytes allocated on the current CUDA GPU inside, 0 without one.
        exact: Whether the kernel kept the mark, so that nothing short was missed.
    """

    before: int
    highest: int = 0
    gpu: int = 0
    exact: bool = True
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def above(self) -> int:
        """Bytes by which the peak exceeds the start."""
        return max(0, self.highest - self.before)

    def see(self, resident: int, gpu: int = 0) -> None:
        """Take sizes into account."""
        self.highest, self.gpu = max(self.highest, resident), max(self.gpu, gpu)


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the peak resident memory of this process inside the ``with`` block; may be nested.

    Files mapped into memory count while they are resident, as they do for the user's machine.
    """
    _share(_active)
    exact = _reset_mark()
    peak = Peak(before=resident_bytes(), exact=exact)
    peak.see(peak.before)
    watcher = None if exact else threading.Thread(target=_watch, args=(peak,), daemon=True)
    if watcher is not None:
        watcher.start()
    _active.append(peak)
    try:
        yield peak
    finally:
        peak._stop.set()
        if watcher is not None:
            watcher.join()
        _share(_active)
        _active.remove(peak)


def resident_bytes() -> int:
    """Return the resident size of this process.

    Raises:
        MissingExtraError: Where neither ``/proc`` nor psutil can tell.
    """
    if _STATUS.exists():
        return _status("VmRSS")
    return int(optional_import("psutil", extra="dev").Process().memory_info().rss)


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc): between two stages of a long run."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library; it has no such call, or needs none
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def bytes_on_disk(path: Path, pattern: str = "**/*") -> int:
    """Return the bytes of a file, or of the files in a folder that match `pattern` (e.g. ``"*.safetensors"``).

    Raises:
        ArtifactError: When there is nothing at `path`.
    """
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist; give a file or a folder whose size is wanted.")
    return sum(file.stat().st_size for file in path.glob(pattern) if file.is_file())


def available_memory() -> int | None:
    """Return the bytes that this process may still take: the machine's, or its control group's when that is less."""
    limits = [value for value in (_machine_memory(), _group_memory()) if value is not None]
    return min(limits) if limits else None


def _machine_memory() -> int | None:
    info = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE) if info.exists() else None
    return int(found[1]) * 1024 if found else None


def _group_memory() -> int | None:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _share(peaks: list[Peak]) -> None:
    """Show the marks since the last reset to all who are watching, then reset the GPU's."""
    gpu = 0
    if torch.cuda.is_available():
        gpu = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for peak in peaks:
        peak.see(_status("VmHWM") if peak.exact else resident_bytes(), gpu)


def _reset_mark() -> bool:
    """Set the kernel's high-water mark to the present size; False where that is not possible."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return _status("VmHWM") <= _status("VmRSS") + (8 << 20)  # some kernels take the order and do nothing


def _watch(peak: Peak) -> None:
    while not peak._stop.wait(_PERIOD):
        peak.see(resident_bytes())
