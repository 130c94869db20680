"""Clients that drop out and clients that are ten times slower: time is bounded, learning goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome.engine.federate.local import Device
from lissome.engine.federate.rounds import Federation
from lissome.engine.train import TrainConfig
from tests.engine.federate.fleet import encoder, federation, subnet_program, training_clients

NAMES = tuple(f"c{index}" for index in range(6))
DEADLINE = 4.0
TRAINING = TrainConfig(steps=6, lr=5e-3, batch=8, schedule="constant", precision="fp32")


def run(folder: Path, devices: dict[str, Device], **loop: object) -> Federation:
    model = encoder()
    who = training_clients(model, NAMES, folder, config=TRAINING)
    job = federation(subnet_program(model), who, folder / "server", devices=devices, rounds=6, **loop)
    job.run()
    return job


def test_dropout_and_stragglers_cost_little(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm", {})
    unreliable = {
        name: Device(seconds=10.0 if index < 2 else 1.0, spread=0.1, dropout=0.3) for index, name in enumerate(NAMES)
    }
    rough = run(tmp_path / "rough", unreliable, deadline=DEADLINE, quorum=0.3)
    assert all(one.seconds <= DEADLINE for one in rough.rounds), "no round waits for a straggler"
    waiting = run(tmp_path / "waiting", {**unreliable, "c0": Device(seconds=10.0)}, quorum=0.3)
    assert max(one.seconds for one in waiting.rounds) >= 10, "without a deadline every round does"
    assert sum(one.ok for one in rough.rounds[1:]) >= 4
    assert {line["event"] for line in rough.audit.lines} <= {"silent", "late"}
    left, right = (job.rounds[-1].metrics["server/accuracy"] for job in (rough, calm))
    assert left >= right - 0.02


@pytest.mark.parametrize("late", ["drop", "use"])
def test_late_answers_are_dropped_or_count_less(late: str, tmp_path: Path) -> None:
    slow = {name: Device(seconds=6.0 if name == "c0" else 1.0) for name in NAMES}
    job = run(tmp_path, slow, deadline=DEADLINE, late=late)
    noted = [line for line in job.audit.lines if line["event"] == "late"]
    assert bool(noted) == (late == "drop")
    assert all(line["client"] == "c0" for line in job.audit.lines)


def test_oversampling_makes_up_for_those_who_are_slow(tmp_path: Path) -> None:
    slow = {name: Device(seconds=50.0 if name == "c0" else 1.0) for name in NAMES}
    job = run(tmp_path, slow, sample=0.5, oversample=2.0, deadline=DEADLINE)
    assert all(one.answered == 3 for one in job.rounds[1:])
    assert all(one.seconds <= 1.0 for one in job.rounds[1:]), "the wanted three are there before the slow one"
