"""Texts written alone and beside others are the same, whatever comes and goes meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from lissome.core.errors import ConfigError, DataError
from lissome.engine.decode import Decoder, Order, Piece, Sampling, Session, write
from lissome.engine.decode.batching import Batcher, Busy, Job
from lissome.engine.decode.phases import Phases
from lissome.models.nested.folder import NestedFolder
from lissome.models.nested.make import make_folder
from lissome.ops.kernels import native
from tests.export.toys import model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> NestedFolder:
    model = model_of("llama", tokenizer=True)
    return NestedFolder.open(make_folder(model, tmp_path_factory.mktemp("nested") / "toy"))


def orders(count: int) -> list[Order]:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 260, 40).tolist()
    found = []
    for at in range(count):
        own = rng.integers(0, 260, int(rng.integers(1, 60))).tolist()
        found.append(
            Order(
                prompt=tuple(shared[: 20 * (at % 3)] + own),
                most=int(rng.integers(1, 20)),
                sampling=Sampling(temperature=float(at % 2), seed=at),
                policy=(None, Phases.parse("4:5,3"), Phases.parse("3"))[at % 3],
                stop=("a", "\x15") if at % 4 == 0 else (),
            )
        )
    return found


def alone(folder: NestedFolder, order: Order) -> list[Piece]:
    return list(write(Session(Decoder(folder.file)), folder.text, order))


class Listener:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.done = threading.Event()

    def __call__(self, piece: Piece) -> None:
        assert not self.done.is_set(), "nothing follows the last piece"
        self.pieces.append(piece)
        if piece.finish:
            self.done.set()


def batcher(folder: NestedFolder, **more: Any) -> Batcher:
    return Batcher(Decoder.open(folder.path, cells=512), folder.text, **more)


def submit(to: Batcher, order: Order) -> tuple[Job, Listener]:
    listener = Listener()
    return to.submit(order, listener), listener


def test_a_text_is_its_tokens(folder: NestedFolder) -> None:
    order = Order(prompt=(5, 6, 7), most=9)
    pieces = alone(folder, order)
    ids = list(Session(Decoder(folder.file)).generate([5, 6, 7], 9, stop=folder.text.ends))
    assert "".join(piece.text for piece in pieces) == folder.text.decode(ids)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].tokens, pieces[-1].finish) == (9, "length")


def test_a_cache_ends_its_own_text_and_no_other(folder: NestedFolder) -> None:
    long = Order(prompt=(5, 6, 7), most=100)
    pieces = list(write(Session(Decoder.open(folder.path, cells=16)), folder.text, long))
    assert (pieces[-1].tokens, pieces[-1].finish) == (14, "length")
    many = Batcher(Decoder.open(folder.path, cells=48), folder.text, slots=2)
    running = [submit(many, long)[1] for _ in range(2)]
    for listener in running:
        assert listener.done.wait(60)
        assert (listener.pieces[-1].tokens, listener.pieces[-1].finish) == (21, "length")
    many.close()


def test_stop_texts(folder: NestedFolder) -> None:
    order = Order(prompt=(5, 6, 7), most=40)
    whole = "".join(piece.text for piece in alone(folder, order))
    stop = whole[7:9]
    pieces = alone(folder, Order(prompt=(5, 6, 7), most=40, stop=(stop,)))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


def test_many_at_once_are_each_alone(folder: NestedFolder) -> None:
    given = orders(30)
    wanted = [alone(folder, order) for order in given]
    many = batcher(folder, slots=3, queue=40)
    running = [submit(many, order) for order in given]
    for (_, listener), pieces in zip(running, wanted, strict=True):
        assert listener.done.wait(60)
        assert listener.pieces == pieces
    again = [submit(many, order) for order in given]
    for (_, listener), pieces in zip(again, wanted, strict=True):
        assert listener.done.wait(60)
        assert listener.pieces == pieces
    assert (many.active, many.waiting) == (0, 0)
    many.close()


def test_a_prefix_is_read_once(folder: NestedFolder) -> None:
    many = batcher(folder, slots=2)
    long = tuple(range(5, 100))
    for tail in (1, 2, 3):
        _, listener = submit(many, Order(prompt=(*long, tail), most=2))
        assert listener.done.wait(60)
    assert sum(session.computed for session in many._free) == 96 + 1 + 2 * (1 + 1)
    many.close()


def test_cancelled_orders_make_room(folder: NestedFolder) -> None:
    many = batcher(folder, slots=1, queue=2)
    block = threading.Event()
    seen = Listener()

    def slow(piece: Piece) -> None:
        seen(piece)
        block.wait(60)

    first = many.submit(Order(prompt=(5, 6), most=200), slow)
    while not seen.pieces:
        block.wait(0.001)
    waiting = [submit(many, Order(prompt=(5, 6), most=2)) for _ in range(2)]
    with pytest.raises(Busy):
        submit(many, Order(prompt=(5, 6), most=2))
    first.cancel()
    waiting[0][0].cancel()
    last, listener = submit(many, Order(prompt=(9, 9), most=3))
    block.set()
    assert seen.done.wait(60)
    assert seen.pieces[-1].finish == "cancelled"
    assert len(seen.pieces) < 10
    assert waiting[1][1].done.wait(60)
    assert listener.done.wait(60)
    assert listener.pieces == alone(folder, last.order)
    many.close()


def test_what_goes_wrong_stays_with_its_order(folder: NestedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    many = batcher(folder, slots=2)
    job, listener = submit(many, Order(prompt=(5, 100_000), most=5))
    assert listener.done.wait(60)
    assert listener.pieces == [Piece("", 0, "error")]
    assert "beyond the model's 320" in str(job.error)
    for wrong in ((), tuple(range(256))):
        with pytest.raises(DataError, match="1 to 255"):
            submit(many, Order(prompt=wrong, most=5))
    forward, calls = many.decoder.forward, []

    def broken(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no more")
        return forward(*args, **more)

    monkeypatch.setattr(many.decoder, "forward", broken)
    job, listener = submit(many, Order(prompt=(5, 6), most=9))
    assert listener.done.wait(60)
    assert listener.pieces[-1].finish == "error"
    assert isinstance(job.error, MemoryError)
    _, listener = submit(many, Order(prompt=(5, 6), most=9))
    assert listener.done.wait(60)
    assert listener.pieces == alone(folder, Order(prompt=(5, 6), most=9))
    many.close()


def test_closing_ends_all(folder: NestedFolder) -> None:
    many = batcher(folder, slots=1)
    listeners = [submit(many, Order(prompt=(5, 6), most=200))[1] for _ in range(3)]
    many.close()
    assert all(listener.done.is_set() for listener in listeners)
    assert listeners[-1].pieces[-1].finish == "cancelled"
    with pytest.raises(Busy):
        submit(many, Order(prompt=(5, 6), most=2))


def test_refusals(folder: NestedFolder) -> None:
    for wrong in ({"slots": 0}, {"slots": 65}, {"slots": 300}, {"queue": -1}):
        with pytest.raises(ConfigError):
            batcher(folder, **wrong)
