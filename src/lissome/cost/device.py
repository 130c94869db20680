"""A device, written down in TOML: what it is, what it can do, and a fingerprint that ties measurements to it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError
from lissome.core.files import write_text
from lissome.cost.roofline import Peaks, measure_peaks

_CACHE = re.compile(r"(\d+)([KMG])")


@dataclass(frozen=True, kw_only=True)
class Device(MethodConfig):
    """A machine that runs models.

    Raises:
        ConfigError: When a value has another type than its setting, or is out of range.
    """

    name: str = option("", "what a person calls it")
    kind: Literal["cpu", "cuda"] = option("cpu", "what computes")
    processor: str = option("", "the processor's or GPU's own name")
    threads: int = option(1, "CPU threads of a run", low=1)
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "type in which weights are held")
    memory: int = option(0, "bytes of memory, 0 when unknown", low=0)
    bandwidth: float = option(0.0, "bytes per second read from memory at best, 0 when unknown", low=0)
    flops: float = option(0.0, "floating-point operations per second at best, 0 when unknown", low=0)
    torch: str = option("", "version of torch that was used")

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of what decides about times: processor, kind, threads, dtype, torch."""
        parts = (self.processor, self.kind, str(self.threads), self.dtype, self.torch)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def peaks(self) -> Peaks | None:
        """Its roofline, or None when it was not calibrated."""
        return Peaks(flops=self.flops, bandwidth=self.bandwidth) if self.flops and self.bandwidth else None

    @classmethod
    def here(
        cls,
        *,
        kind: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        calibrate: bool = False,
    ) -> Device:
        """Describe this machine.

        Args:
            kind: What computes.
            threads: CPU threads (default: as many as torch uses now).
            dtype: Type in which weights are held.
            calibrate: Measure the roofline too, which takes up to three seconds.

        Raises:
            ConfigError: When there is no such device here.
        """
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError("this machine has no CUDA GPU that torch can use; choose kind cpu.")
        threads = threads or torch.get_num_threads()
        peaks = measure_peaks(kind, getattr(torch, dtype), threads) if calibrate else Peaks(flops=0.0, bandwidth=0.0)
        return cls(
            name=platform.node(),
            kind=kind,
            processor=torch.cuda.get_device_name() if kind == "cuda" else processor_name(),
            threads=threads,
            dtype=dtype,
            memory=_memory(kind),
            bandwidth=peaks.bandwidth,
            flops=peaks.flops,
            torch=str(torch.__version__),
        )

    def save(self, path: Path) -> None:
        """Write it as TOML, atomically."""
        write_text(path, self.to_toml())

    @classmethod
    def load(cls, path: Path) -> Device:
        """Read it from TOML.

        Raises:
            ConfigError: When the file cannot be read, or a key or value in it is not allowed.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the device file {path} cannot be read: {error}.") from error
        try:
            return cls.from_toml(text)
        except ConfigError as error:
            raise ConfigError(f"the device file {path}: {error}") from error


def processor_name() -> str:
    """Return the processor's own name and family, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    text = info.read_text(encoding="utf-8", errors="replace")
    fields = (re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model"))
    found = [match[1].strip() for match in fields if match]
    return " / ".join(found) or platform.machine()


def _memory(kind: str) -> int:
    if kind == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def last_cache() -> int:
    """Return the bytes of the largest cache of this machine's first core; 0 when the system does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = _CACHE.fullmatch(path.read_text(encoding="ascii").strip())
        if match:
            sizes.append(int(match[1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]])
    return max(sizes)
