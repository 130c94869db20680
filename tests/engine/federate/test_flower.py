"""Over Flower's Message API: the same tensors as without it, the same bytes, and Flower's own strategies on our app."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.engine.federate.client import Worker
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.link import Outgoing
from lissome.engine.federate.merge import Mean
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.program import TRAIN, Phase, Program
from lissome.engine.federate.rounds import Federation, RoundsConfig
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.training import global_tensors
from tests.engine.federate.fleet import (
    QUICK,
    adders,
    digest,
    encoder,
    federation,
    lesson,
    subnet_program,
    training_clients,
)  # fmt: skip

pytest.importorskip("flwr", reason="needs flwr: pip install 'lissome[federate]'")

from lissome.engine.federate.flower.app import client_app
from lissome.engine.federate.flower.link import FlowerLink, _incoming
from lissome.engine.federate.flower.records import from_records, to_records
from lissome.testing.grid import LocalGrid

Clients = Mapping[str, Callable[[], Worker]]


def grid(clients: Clients) -> Any:
    def worker_for(context: Any) -> tuple[str, Worker]:
        name = str(context.node_config["name"])
        return name, clients[name]()

    return LocalGrid(client_app(worker_for), [{"name": name} for name in sorted(clients, reverse=True)])


def over_flower(program: Program, clients: Clients, folder: Path, **settings: Any) -> Federation:
    config = RoundsConfig(**{"rounds": 2, "evaluate_every": 0, **settings})
    link = FlowerLink(grid(clients))
    return Federation(program, link, config, folder=folder, identity={"federation": "test"})


def test_parcels_survive_and_are_as_large_as_flower_says() -> None:
    tensors = {"a": torch.randn(3, 4), "b|scale": torch.tensor(2.5), "c": torch.tensor([1, 2], dtype=torch.int8)}
    parcel = Parcel(
        kind="train", head={"ticket": "t", "settings": {"lr": 0.5}}, tensors=tensors,
        numbers={"num-examples": 3.0, "loss": 0.25},
    )  # fmt: skip
    records = to_records(parcel)
    found = from_records(records, "train")
    assert found.head == parcel.head
    assert dict(found.numbers) == dict(parcel.numbers)
    for name, value in tensors.items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype
    arrays, numbers = records["arrays"], records["metrics"]
    assert parcel.bytes == arrays.count_bytes() + numbers.count_bytes() + len(parcel.head_text.encode())
    assert parcel.payload == sum(array.numpy().nbytes for array in arrays.values())


@pytest.mark.parametrize("codec", ["raw", "fp16", "delta+top=10%+int8+feedback", "bf16+pack"])
def test_the_same_tensors_and_bytes_with_and_without_flower(codec: str, tmp_path: Path) -> None:
    zeros = {"w": torch.zeros(6, 2), "b": torch.zeros(5)}
    jobs = []
    for name, run in (("local", federation), ("flower", over_flower)):
        phase = Phase(up=Codec.parse(codec))
        folder = tmp_path / name
        job = run(Program(dict(zeros), phases=(phase,)), adders(zeros, 3, folder), folder / "s", evaluate_every=1)
        job.run()
        jobs.append(job)
    assert digest(jobs[0].program.tensors) == digest(jobs[1].program.tensors)
    assert [one.metrics for one in jobs[0].rounds] == [one.metrics for one in jobs[1].rounds]
    for action in ("train", "evaluate"):
        assert jobs[0].bytes(action=action).payload == jobs[1].bytes(action=action).payload
    assert not jobs[1].audit.lines


def test_subnets_train_alike_over_flower(tmp_path: Path) -> None:
    budgets = {"b": "block_params<=50%", "c": "block_params<=25%"}
    found = []
    for name, run in (("local", federation), ("flower", over_flower)):
        model = encoder()
        program = subnet_program(model)
        clients = training_clients(model, ["a", "b", "c"], tmp_path / name, budgets=budgets)
        job = run(program, clients, tmp_path / name / "s")
        job.run()
        found.append((digest(program.tensors), [one.metrics for one in job.rounds]))
    assert found[0] == found[1]


def stock(initial: Mapping[str, Tensor], clients: Clients, rounds: int) -> dict[str, Tensor]:
    """The same app under Flower's own federated averaging."""
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    arrays = ArrayRecord({name: Array(value.numpy()) for name, value in initial.items()})
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    result = strategy.start(grid=grid(clients), initial_arrays=arrays, num_rounds=rounds)
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in result.arrays.items()}


def test_the_plain_mean_is_that_of_flower(tmp_path: Path) -> None:
    """Our loop with the mean merger against Flower's FedAvg: the same app, the same clients, three rounds."""
    zeros = {"w": torch.zeros(6, 2), "b": torch.zeros(5)}
    program = Program(dict(zeros), phases=(Phase(merger=Mean),))
    job = over_flower(program, adders(zeros, 4, tmp_path / "ours"), tmp_path / "ours" / "s", rounds=3)
    job.run()
    theirs = stock(zeros, adders(zeros, 4, tmp_path / "theirs"), 3)
    for name, value in program.tensors.items():
        assert torch.allclose(value, theirs[name], rtol=1e-6, atol=1e-6)


def test_training_under_the_plain_mean_is_that_of_flower(tmp_path: Path) -> None:
    """Clients draw what they do at seed 0, which is what an order of Flower's own strategies stands for."""
    model = encoder()
    initial = global_tensors(model, lesson(0))
    # Adam's first steps are signs of gradients: a last bit would become a whole step where a gradient is nearly zero.
    config = {"config": replace(QUICK, optimizer="sgd", lr=0.05)}
    ours = training_clients(model, ["a", "b"], tmp_path / "ours", **config)
    program = subnet_program(model, phases=(Phase(merger=Mean),))
    over_flower(program, ours, tmp_path / "ours" / "s", rounds=3).run()
    theirs = stock(initial, training_clients(model, ["a", "b"], tmp_path / "theirs", **config), 3)
    for name, value in program.tensors.items():
        assert (value - theirs[name]).abs().max() <= 1e-6, name
    assert max(float((value - initial[name]).abs().max()) for name, value in program.tensors.items()) > 1e-2


def test_an_exception_of_a_node_is_said_in_one_line() -> None:
    order = Outgoing(address="7", ticket="t", parcel=Parcel(kind="train", head={}), largest=0)
    reason = "<class 'lissome.core.errors.DataError'>:<'x.jsonl:1: unknown label 'planets'; known: a, b.'>"
    error = SimpleNamespace(code=2, reason=reason)
    found = _incoming(order, SimpleNamespace(has_error=lambda: True, error=error))
    assert found.error == "x.jsonl:1: unknown label 'planets'; known: a, b."
    error = SimpleNamespace(code=3, reason="gone\nfor good")
    found = _incoming(order, SimpleNamespace(has_error=lambda: True, error=error))
    assert (found.error, found.lost) == ("Flower's error 3: for good", True)


def test_a_node_that_fails_is_written_down(tmp_path: Path) -> None:
    zeros = {"w": torch.zeros(2)}
    clients: dict[str, Any] = adders(zeros, 3, tmp_path)

    class Broken:
        def __init__(self, inner: Callable[[], Worker]) -> None:
            self._inner = inner

        def check_size(self, size: int) -> None:
            self._inner().check_size(size)

        def handle(self, parcel: Parcel) -> Parcel:
            if OrderHead.from_json(parcel.head).action != "profile":
                raise RuntimeError("out of battery")
            return self._inner().handle(parcel)

    clients["a1"] = lambda inner=clients["a1"]: Broken(inner)
    job = over_flower(Program(dict(zeros), phases=(TRAIN,)), clients, tmp_path / "s", rounds=1)
    job.run()
    assert job.rounds[1].answered == 2
    (line,) = job.audit.lines
    assert (line["event"], line["client"]) == ("failed", "a1")
    assert "out of battery" in str(line["reason"])


def npy(shape: str, numbers: bytes = bytes(64), dtype: str = "<f4") -> bytes:
    """An array as NumPy writes it, with a header that may say anything."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + numbers


def records_of(data: bytes) -> Any:
    from flwr.app import Array, ArrayRecord, RecordDict

    return RecordDict({"arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", data)})})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no array at all", "magic"), (npy("(16,)")[:-4], "60 bytes came"), (npy("(1000000000000,)"), "64 bytes came"),
        (npy("(-4, -4)"), "cannot be read"), (npy("(8,)", dtype="|O"), "objects"), (npy("(16,)", dtype=">f4"), "read"),
        (npy("(16,)").replace(b"NUMPY\x01", b"NUMPY\x03"), "as NumPy does"),
    ],
)  # fmt: skip
def test_arrays_that_say_what_is_not_so_take_no_memory(data: bytes, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(FederationError, match=words):
        from_records(records_of(data), "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert from_records(records_of(npy("(4, 4)")), "train").tensors["w"].tolist() == [[0.0] * 4] * 4


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)])
def test_arrays_of_every_shape_and_order_are_read(shape: tuple[int, ...]) -> None:
    from flwr.app import Array, ArrayRecord, RecordDict

    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    both = ArrayRecord({"c": Array(numbers), "f": Array(np.array(numbers, order="F"))})
    found = from_records(RecordDict({"arrays": both}), "train").tensors
    assert np.array_equal(found["c"].numpy(), numbers)
    assert np.array_equal(found["f"].numpy(), numbers)
    assert found["f"].is_contiguous()


def test_an_answer_that_is_too_large_is_not_decoded() -> None:
    order = Outgoing(address="7", ticket="t", parcel=Parcel(kind="train", head={}), largest=1 << 20)
    content = records_of(npy("(5000000,)", bytes(20_000_000)))
    metadata = SimpleNamespace(message_type="train")
    tracemalloc.start()
    found = _incoming(order, SimpleNamespace(has_error=lambda: False, content=content, metadata=metadata))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.broken
    assert found.parcel is None
    assert "20000128 bytes, at most 1048576" in found.error
    assert peak < 1 << 20


@pytest.mark.parametrize("data", [b"no array at all", npy("(5000000,)", bytes(20_000_000))])
def test_who_sends_what_cannot_be_read_is_asked_no_more(data: bytes, tmp_path: Path) -> None:
    zeros = {"w": torch.zeros(2)}
    clients = adders(zeros, 3, tmp_path)
    link = FlowerLink(grid(clients))
    pull = link._grid.pull_messages

    def spoilt(identities: Any) -> Any:
        found = pull(identities)
        for reply in found:
            if reply.metadata.src_node_id == 1001 and "arrays" in reply.content:  # a2, nodes are in reversed order
                reply.content["arrays"] = records_of(data)["arrays"]
        return found

    link._grid.pull_messages = spoilt
    config = RoundsConfig(rounds=4, evaluate_every=0, strikes=2)
    job = Federation(Program(zeros), link, config, folder=tmp_path / "server", identity={})
    assert [len(one.clients) for one in job.run()[1:]] == [3, 3, 2, 2]
    assert [(line["event"], line["client"]) for line in job.audit.lines] == [
        ("rejected", "a2"), ("rejected", "a2"), ("banned", "a2")
    ]  # fmt: skip


def test_an_order_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    zeros = {"w": torch.zeros(5000)}
    clients = adders(zeros, 2, tmp_path)
    clients["a1"] = partial(Worker, clients["a1"]()._program, ClientStore(tmp_path / "a1"), largest=10_000)
    job = over_flower(Program(zeros), clients, tmp_path / "server", rounds=1)
    assert job.run()[1].answered == 1
    (line,) = job.audit.lines
    assert (line["event"], line["client"]) == ("failed", "a1")
    assert re.match(r"Flower's error .* the order has 20\d{3} bytes, this client takes 10000", str(line["reason"]))


def test_records_that_are_none_of_ours(tmp_path: Path) -> None:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    bad = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"no array at all")
    with pytest.raises(FederationError, match="cannot be read"):
        from_records(RecordDict({"arrays": ArrayRecord({"w": bad})}), "train")
    with pytest.raises(FederationError, match="cannot be read"):
        from_records(RecordDict({"config": ConfigRecord({"lissome": "{"})}), "train")
