"""Two processes train what one process trains, and sharded tensors survive a checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lissome

JOB = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Task
from lissome.engine.sharded import full, full_state, like
from lissome.engine.train import TrainConfig, train
torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
data = list(torch.randn(50, 8))
loss = lambda model, batch: (model(batch.examples) - batch.examples).square().mean(-1)
steps, batch = int(sys.argv[2]), int(sys.argv[3])
config = TrainConfig(steps=steps, batch=batch, schedule="constant", precision="fp32", checkpoint_steps=2)
result = train(Task(module=module, loss=loss, data=data), config, seed=3, checkpoint=Checkpoint(Path(sys.argv[1]), {}))
if torch.distributed.is_initialized():
    other = fully_shard(nn.Linear(8, 6), mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    whole = torch.arange(48.0).view(6, 8)
    shard = like(whole, other.weight)
    assert isinstance(shard, DTensor) and shard.to_local().shape == (3, 8)
    assert torch.equal(full(shard), whole)
    assert full_state(other)["weight"].shape == (6, 8)
    torch.distributed.destroy_process_group()
weights = [round(float(value), 6) for name, value in module.state_dict().items() for value in value.flatten()]
print("result " + json.dumps([result.losses, weights]), flush=True)
"""

SANDWICH = """
import json, sys
from pathlib import Path
import torch
from torch.nn.functional import cross_entropy
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.elastic import Elastic, taught_loss
from lissome.engine.hooks import Task
from lissome.engine.paths import Sandwich
from lissome.engine.train import TrainConfig, train
from lissome.testing.networks import network_model
torch.set_num_threads(1)
model, teacher = network_model("transformer"), network_model("transformer", seed=1)  # without statistics of batches
images = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
data = [{"image": image, "label": at % 3} for at, image in enumerate(images)]
forward = lambda module, batch: module(batch.examples["image"])
judge = lambda logits, batch: cross_entropy(logits, batch.examples["label"], reduction="none")
steps, batch = int(sys.argv[2]), int(sys.argv[3])
config = TrainConfig(
    steps=steps, batch=batch, schedule="constant", precision="fp32", checkpoint_steps=2, optimizer="sgd", lr=0.1
)
result = train(
    Task(module=model.module, loss=taught_loss(forward, judge, teacher.module, share=0.5), data=data), config, seed=3,
    hooks=Elastic(model, Sandwich(model.space())), checkpoint=Checkpoint(Path(sys.argv[1]), {}),
)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
weights = [round(float(value), 6) for value in model.module.state_dict().values() for value in value.flatten()]
print("result " + json.dumps([result.losses, weights]), flush=True)
"""


def start(world: int, *arguments: str, job: str = JOB) -> list[str]:
    """Run the job in `world` processes; return what each found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    source = str(Path(lissome.__file__).parents[1])
    common = {**os.environ, "PYTHONPATH": source, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**common, **(own | address if world > 1 else {})}
        command = [sys.executable, "-c", job, *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [next(line for line in output.splitlines() if line.startswith("result ")) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("job", [JOB, SANDWICH], ids=["whole", "sandwich"])
def test_two_processes_equal_one(job: str, tmp_path: Path) -> None:
    """Of a sandwich too, whose last path, at which gradients are exchanged, leaves out what the first one used."""
    (alone,) = start(1, str(tmp_path / "one"), "6", "4", job=job)
    start(2, str(tmp_path / "two"), "4", "2", job=job)
    first, second = start(2, str(tmp_path / "two"), "6", "2", job=job)  # continues after step 4
    assert first == second
    losses, weights = json.loads(alone.removeprefix("result "))
    other_losses, other_weights = json.loads(first.removeprefix("result "))
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert other_weights == pytest.approx(weights, abs=1e-5)
