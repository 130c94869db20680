"""One federation twice: by our loop with the plain mean, and by Flower's own FedAvg, on the same app and grid."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fedavg.clients import clients, encoder, lesson
from lissome.engine.federate.client import Worker
from lissome.engine.federate.flower.app import client_app
from lissome.engine.federate.flower.link import FlowerLink
from lissome.engine.federate.merge import Mean
from lissome.engine.federate.program import Phase, Program
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.training import global_tensors
from lissome.engine.train import TrainConfig
from lissome.testing.grid import LocalGrid

CLIENTS, ROUNDS, STEPS, BATCH = 4, 3, 8, 16
# Plain steps in float32: rounding is not amplified, so that what is compared is the averaging.
CONFIG = TrainConfig(steps=STEPS, batch=BATCH, lr=0.02, optimizer="sgd", schedule="constant", precision="fp32")

Tensors = Mapping[str, Tensor]
Clients = Mapping[str, Callable[[], Worker]]


def compared(seed: int) -> dict[str, Any]:
    """Return the largest difference of any final number, the largest change from the start, and both CPU seconds.

    The order in which the two run alternates with the seed.
    """
    model = encoder(seed)
    start = global_tensors(model, lesson(0, BATCH))
    spent: dict[str, float] = {}
    final: dict[str, Tensors] = {}
    arms = {"ours": _ours, "flower": _flower}
    for name in sorted(arms, reverse=bool(seed % 2)):
        with tempfile.TemporaryDirectory() as folder:
            made = clients(model, CLIENTS, Path(folder), CONFIG, seed=seed, texts=STEPS * BATCH)
            begun = time.process_time()
            final[name] = arms[name](start, made, Path(folder))
            spent[name] = time.process_time() - begun
    return {
        "difference": _farthest(final["ours"], final["flower"]), "change": _farthest(final["ours"], start),
        "cpu_seconds": spent, "parameters": sum(value.numel() for value in start.values()),
    }  # fmt: skip


def _ours(start: Tensors, made: Clients, folder: Path) -> Tensors:
    program = Program({name: value.clone() for name, value in start.items()}, phases=(Phase(merger=Mean),))
    settings = RoundsConfig(rounds=ROUNDS, clients=CLIENTS, evaluate_every=0)
    Federation(program, FlowerLink(_grid(made)), settings, folder=folder / "server", identity={}).run()
    return program.tensors


def _flower(start: Tensors, made: Clients, _folder: Path) -> Tensors:
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    logging.getLogger("flwr").setLevel(logging.ERROR)
    arrays = ArrayRecord({name: Array(value.numpy()) for name, value in start.items()})
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    result = strategy.start(grid=_grid(made), initial_arrays=arrays, num_rounds=ROUNDS)
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in result.arrays.items()}


def _grid(made: Clients) -> Any:
    def worker_for(context: Any) -> tuple[str, Worker]:
        name = str(context.node_config["name"])
        return name, made[name]()

    return LocalGrid(client_app(worker_for), [{"name": name} for name in made])


def _farthest(one: Tensors, other: Tensors) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
