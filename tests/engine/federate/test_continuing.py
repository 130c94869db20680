"""Killed at any moment and given again, a federation ends with the very tensors of one that was never disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissome.engine.federate.codec import Codec
from lissome.engine.federate.merge import Trimmed
from lissome.engine.federate.outer import Momentum
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.program import TRAIN, Program
from lissome.engine.federate.rounds import Federation
from tests.engine.federate.fleet import adders, digest, encoder, federation, subnet_program, training_clients

ROUNDS = 4


def zeros() -> dict[str, Tensor]:
    return {"w": torch.zeros(40, 3), "b": torch.zeros(5)}


def killed(run: Callable[[], object]) -> bool:
    """Run something in a child process; whether it was killed."""
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class Mortal:
    """A client at whose n-th order, counted over all clients, the whole process dies, before or after its work."""

    def __init__(self, inner: Callable[[], Any], counter: list[int], fatal: int, *, after: bool) -> None:
        self._inner, self._counter, self._fatal, self._after = inner, counter, fatal, after

    def handle(self, parcel: Parcel) -> Parcel:
        self._counter[0] += 1
        if self._counter[0] == self._fatal and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer: Parcel = self._inner().handle(parcel)
        if self._counter[0] == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


def mortal(clients: dict[str, Any], fatal: int, *, after: bool) -> dict[str, Any]:
    counter = [0]
    return {name: partial(Mortal, inner, counter, fatal, after=after) for name, inner in clients.items()}


def momentum() -> Program:
    phase = replace(TRAIN, up=Codec.parse("delta+top=10%+int8+feedback"))
    return Program(zeros(), outer=Momentum(), phases=(phase,))


def trimmed() -> Program:
    return Program(zeros(), phases=(replace(TRAIN, merger=Trimmed),))


@pytest.mark.long
@pytest.mark.parametrize("make", [momentum, trimmed])
def test_killed_at_every_order(make: Callable[[], Program], tmp_path: Path) -> None:
    """Private client state, the outer optimizer, and what a codec left out are all part of it."""
    count = 3
    expected = make()
    clean = federation(expected, adders(zeros(), count, tmp_path / "whole"), tmp_path / "whole" / "s", rounds=ROUNDS)
    clean.run()
    orders = count * (ROUNDS + 1)  # the profiles are asked too
    for fatal in range(count + 1, orders + 1, 2):
        folder, deaths = tmp_path / str(fatal), 0
        while True:
            clients: dict[str, Any] = adders(zeros(), count, folder)
            if not deaths:
                clients = mortal(clients, fatal, after=fatal % 4 == 0)
            if not killed(federation(make(), clients, folder / "s", rounds=ROUNDS).run):
                break
            deaths += 1
        assert deaths == 1
        program = make()
        job = federation(program, {}, folder / "s", rounds=ROUNDS)
        job.run()
        assert digest(program.tensors) == digest(expected.tensors), f"killed at order {fatal}"
        assert [one.metrics for one in job.rounds] == [one.metrics for one in clean.rounds]


@pytest.mark.long
@pytest.mark.parametrize("fatal", [7, 12])
def test_killed_while_clients_train(fatal: int, tmp_path: Path) -> None:
    budgets = {"b": "block_params<=50%", "c": "block_params<=30%"}

    def job(folder: Path, *, dies: bool = False, finished: bool = False) -> Federation:
        model = encoder()
        clients: dict[str, Any] = training_clients(
            model, ["a", "b", "c"], folder, budgets=budgets, private=("task/*",), moments=True
        )
        if dies:
            clients = mortal(clients, fatal, after=True)
        program = subnet_program(model, private=("task/*",))
        return federation(program, {} if finished else clients, folder / "s", rounds=3, evaluate_every=2)

    whole = job(tmp_path / "whole")
    whole.run()
    assert killed(job(tmp_path / "cut", dies=True).run)
    assert not killed(job(tmp_path / "cut").run)
    again = job(tmp_path / "cut", finished=True)
    again.run()
    assert digest(again.program.tensors) == digest(whole.program.tensors)
    assert [one.scores for one in again.rounds] == [one.scores for one in whole.rounds]
