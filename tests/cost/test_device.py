from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lissome.core.errors import ConfigError
from lissome.cost import roofline
from lissome.cost.counted import Counter
from lissome.cost.device import Device
from lissome.cost.measured import Lap, Request, Timing
from lissome.cost.roofline import Peaks, Work, bound, measure_peaks
from lissome.testing.toys import toy_model


def test_device_survives_its_file(tmp_path: Path) -> None:
    device = Device.here(threads=3)
    device.save(tmp_path / "device.toml")
    again = Device.load(tmp_path / "device.toml")
    assert again == device
    assert again.fingerprint == device.fingerprint
    assert device.memory > 1 << 28
    assert device.processor
    assert device.peaks is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("thraeds = 2", "did you mean 'threads'"),
        ("threads = 0", "threads"),
        ('kind = "tpu"', "kind"),
        ("threads = [", "TOML"),
    ],
)
def test_a_wrong_device_file_is_refused(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        Device.load(path)


def test_a_missing_device_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Device.load(tmp_path / "none.toml")


def test_fingerprint_follows_what_decides_about_times_only() -> None:
    device = Device(name="a", processor="P", threads=2, torch="2")
    assert Device(name="b", processor="P", threads=2, torch="2", memory=5).fingerprint == device.fingerprint
    assert Device(name="a", processor="P", threads=1, torch="2").fingerprint != device.fingerprint
    assert Device(name="a", processor="P", threads=2, torch="3").fingerprint != device.fingerprint


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        Device.here(kind="cuda")


def test_bound_takes_the_slower_of_compute_and_memory() -> None:
    work = Work(prefill_macs=100, step_macs=1, weight_bytes=40, cache_bytes=10)
    found = bound(work, Peaks(flops=10, bandwidth=5))
    assert (found.prefill, found.prefill_by) == (20.0, "compute")
    assert (found.step, found.step_by) == (10.0, "memory")
    request = Request(prompt=4, new=3)
    assert found.latency(request) == 40.0
    timing = Timing.of([Lap(40.0, (20.0, 20.0))], request)
    shares = found.shares(timing, request)
    assert shares == pytest.approx({"latency": 0.5, "prefill": 0.5, "decode": 0.5})


def test_calibration_finds_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SECONDS", 0.05)
    peaks = measure_peaks(threads=1)
    assert 1e8 < peaks.flops < 1e15
    assert 1e8 < peaks.bandwidth < 1e14


def test_bound_of_a_subnet_is_below_that_of_the_whole() -> None:
    counter, peaks = Counter(toy_model("llama")), Peaks(flops=1e9, bandwidth=1e9)
    whole, small = bound(counter.work(), peaks), bound(counter.work({"layers.0.attention": 0}), peaks)
    assert small.prefill < whole.prefill
    assert small.step < whole.step
