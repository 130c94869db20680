"""``python -m benchmarks.fedavg.memory CLIENTS``: peak memory of a round with MiniLM in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.fedavg.clients import clients, encoder, lesson
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.local import LocalLink
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import global_tensors
from lissome.engine.train import TrainConfig

TEXTS = 8
BUDGET = "block_params<=50%"
CONFIG = TrainConfig(steps=1, batch=TEXTS, lr=1e-4, schedule="constant")


def main(count: int) -> dict[str, float]:
    """Run a round; return the peak of resident memory before and in it, in bytes."""
    model = encoder(0)
    before = _peak()
    program = SubnetProgram(
        model, global_tensors(model, lesson(0, TEXTS)), planner=Planner(model.space(), SubnetCost(model))
    )
    with tempfile.TemporaryDirectory() as folder:
        made = clients(model, count, Path(folder), CONFIG, seed=0, texts=TEXTS, budget=BUDGET)
        settings = RoundsConfig(rounds=1, clients=count, evaluate_every=0)
        job = Federation(program, LocalLink(made), settings, folder=Path(folder) / "server", identity={})
        rounds = job.run()
    return {"before": before, "peak": _peak(), "answered": rounds[-1].answered, "bytes": job.bytes().message}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
