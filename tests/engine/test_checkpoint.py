"""Checkpoints survive kills, full disks and damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import lissome
from lissome.core.errors import ArtifactError
from lissome.core.events import Event, EventStream
from lissome.engine.checkpoint import Checkpoint, restore_rng, rng_state

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lissome.__file__).parents[1])}
KEY = {"seed": 0, "config": {"lr": 0.1}}


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"view": torch.arange(12.0).view(3, 4).T, "scalar": torch.tensor(3), "empty": torch.zeros(0, 2)}
    tensors["same"] = tensors["scalar"]
    tensors["part"] = torch.arange(6)[2:4]
    checkpoint = Checkpoint(tmp_path / "state", KEY)
    assert checkpoint.load() is None
    checkpoint.save(7, tensors, {"loss": 0.5, "names": ["a"]})
    saved = Checkpoint(tmp_path / "state", KEY).load()
    assert saved is not None
    assert saved.step == 7
    assert saved.state == {"loss": 0.5, "names": ["a"]}
    assert saved.tensors.keys() == tensors.keys()
    assert all(torch.equal(saved.tensors[name], tensors[name]) for name in tensors)


def test_keeps_the_last_two(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    for step in range(5):
        checkpoint.save(step, {"x": torch.tensor(step)})
    assert len(_numbered(tmp_path)) == 2
    saved = checkpoint.load()
    assert saved is not None
    assert saved.step == 4


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_newest_falls_back(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    checkpoint.save(1, {"x": torch.arange(100)})
    checkpoint.save(2, {"x": torch.arange(100) + 1})
    victim = _numbered(tmp_path)[-1] / file
    data = bytearray(victim.read_bytes())
    data[-20] ^= 1
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(data if damage == "flip" else data[:-20])
    again, said = Checkpoint(tmp_path, KEY), list[Event]()
    saved = again.load(EventStream(said.append))
    assert saved is not None
    assert saved.step == 1
    (told,) = said
    assert f"{victim.parent} is damaged" in told.message
    assert torch.equal(saved.tensors["x"], torch.arange(100))
    again.save(2, {"x": torch.arange(100)})
    steps = []
    for path in _numbered(tmp_path):  # the damaged one made room for the new one; both that are left are whole
        other = Checkpoint(tmp_path / "alone", KEY)
        other.folder.mkdir(exist_ok=True)
        path.rename(other.folder / path.name)
        alone = other.load()
        assert alone is not None
        steps.append(alone.step)
        other.clear()
    assert steps == [1, 2]


def test_another_job_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, KEY).save(1, {})
    with pytest.raises(ArtifactError, match=r"another job \(seed was 0, now 1\)"):
        Checkpoint(tmp_path, {**KEY, "seed": 1}).load()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    checkpoint.save(1, {})
    state = _numbered(tmp_path)[0] / "state.json"
    state.write_text(state.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ArtifactError, match="schema 99"):
        checkpoint.load()


def test_rng_states_come_back() -> None:
    generator_state = rng_state()
    first = (random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3))
    restore_rng(generator_state)
    second = (random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3))
    assert first[:2] == second[:2]
    assert np.array_equal(first[2], second[2])
    assert torch.equal(first[3], second[3])


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from lissome.core.errors import ArtifactError
from lissome.engine.checkpoint import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]), {})
checkpoint.save(1, {"x": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(2, {"x": torch.ones(10_000)})
except ArtifactError as error:
    assert "\\n" not in str(error), error
    print(error)
"""


def test_full_disk_leaves_the_last_one_valid(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "cannot write a checkpoint of step 2" in result.stdout
    assert "is intact" in result.stdout
    saved = Checkpoint(tmp_path, {}).load()
    assert saved is not None
    assert saved.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


ENDLESS = """
import sys
from pathlib import Path
import torch
from lissome.engine.checkpoint import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]), {})
saved = checkpoint.load()
step = saved.step if saved else 0
while True:
    step += 1
    checkpoint.save(step, {"x": torch.full((50_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_killed_at_any_instant(tmp_path: Path) -> None:
    rng = random.Random(0)
    done = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        printed = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        saved = Checkpoint(tmp_path, {}).load()
        assert saved is not None
        assert saved.step >= max([*printed, done + 1])
        assert saved.state == {"step": saved.step}
        assert bool((saved.tensors["x"] == saved.step).all())
        done = saved.step
