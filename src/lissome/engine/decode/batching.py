"""Many texts at once: one thread steps all of them together, so that weights are read once for all.

A token's result depends on nothing else in its batch, so every text is the one that `write` gives alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from lissome.core.errors import ConfigError, DataError
from lissome.engine.decode.decoder import Decoder, Floats
from lissome.engine.decode.session import Session, advance
from lissome.engine.decode.writing import Order, Piece, Writer
from lissome.models.nested.text import TextCodec

Listener = Callable[[Piece], None]


class Busy(Exception):  # noqa: N818  # nothing went wrong
    """As many orders wait as may."""


class Job:
    """An order that is being written, or waits for it.

    Attributes:
        order: The order.
        listener: Called in the writing thread with every piece, the last one included, and never after it.
        cancelled: Whether nobody wants it any more.
        error: What went wrong, when its last piece says so.
    """

    def __init__(self, order: Order, listener: Listener) -> None:
        self.order, self.listener = order, listener
        self.cancelled = False
        self.error: Exception | None = None
        self.writer: Writer | None = None
        self.logits: Floats | None = None

    def cancel(self) -> None:
        """Stop before the next token; what is written already stays written."""
        self.cancelled = True


class Batcher:
    """Writes orders with one decoder, several at a time.

    Prompts are read a piece at a time between the steps of the others, so that a long one holds nobody up for long. A
    sequence keeps what it read, and an order that begins the same way is given to it.

    Args:
        decoder: Its cache is shared out evenly.
        codec: Its tokenizer.
        slots: Texts at a time. Default 4: on a CPU the step of four costs little more than that of one.
        queue: Orders that may wait beyond those. Default 32.

    Raises:
        ConfigError: When there are not 1 to 64 slots, or the cache is too small for them.
    """

    def __init__(self, decoder: Decoder, codec: TextCodec, *, slots: int = 4, queue: int = 32) -> None:
        if not 1 <= slots <= min(64, decoder.settings.cells // 2):
            raise ConfigError(f"texts at a time must be 1 to 64 and have two cells each, got {slots}.")
        if queue < 0:
            raise ConfigError(f"the queue must hold 0 orders or more, got {queue}.")
        self.codec, self.decoder, self._queue = codec, decoder, queue
        self.context = decoder.settings.cells // slots
        self._free = [Session(decoder, slot, keep=0) for slot in range(slots)]
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lissome-batcher", daemon=True)
        self._thread.start()

    def submit(self, order: Order, listener: Listener) -> Job:
        """Let an order be written as soon as there is a place.

        Raises:
            Busy: When too many wait already, or the batcher was closed.
            DataError: When the prompt is empty, or too long to write anything.
        """
        room = self.context - len(order.prompt)
        if not order.prompt or room < 1:
            raise DataError(f"the prompt has {len(order.prompt)} tokens; it may have 1 to {self.context - 1}.")
        job = Job(replace(order, most=min(order.most, room)), listener)  # no text takes the cells of others
        with self._wake:
            self._waiting = deque(one for one in self._waiting if not one.cancelled)
            if self._closed or len(self._waiting) >= self._queue + len(self._free):
                raise Busy
            self._waiting.append(job)
            self._wake.notify()
        return job

    @property
    def active(self) -> int:
        """Orders that are being written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Orders that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop writing; every order that is not finished ends as cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            try:
                self._round()
            except Exception as error:  # noqa: BLE001  (the thread serves all: it must go on)
                for job in list(self._active):
                    self._fail(job, error)
        for job in [*self._active, *self._waiting]:
            self._finish(job, Piece("", 0, "cancelled"))

    def _wait(self) -> bool:
        """Wait for work; false when there will be none."""
        with self._wake:
            while not self._closed and not self._active and not self._waiting:
                self._wake.wait()
            while not self._closed and self._free and self._waiting:
                self._begin(self._waiting.popleft())
            return not self._closed

    def _begin(self, job: Job) -> None:
        if job.cancelled:
            job.listener(Piece("", 0, "cancelled"))
            return
        order = job.order
        bits = self.decoder.file.layout.bits if order.policy is None else order.policy.prefill
        session = max(self._free, key=lambda one: (one.shares(order.prompt, lambda _: bits), -one.length))
        self._free.remove(session)
        self._active.append(job)
        try:
            job.writer = Writer(session, self.codec, order)
        except Exception as error:  # noqa: BLE001  (what is wrong with one order is its own matter)
            self._free.append(session)
            self._fail(job, error)

    def _round(self) -> None:
        """One step of every text, and a piece of one prompt."""
        for job in [job for job in self._active if job.cancelled]:
            self._finish(job, Piece("", 0, "cancelled"))
        ready: list[tuple[Job, Writer]] = []
        reading: tuple[Job, Writer] | None = None
        for job in list(self._active):
            assert job.writer is not None
            if job.logits is None:
                reading = reading or (job, job.writer)
            elif self._take(job, job.writer, job.logits):
                ready.append((job, job.writer))
        if reading is not None:
            self._read(*reading)
        if ready:
            writers = [writer for _, writer in ready]
            found = advance(
                [writer.session for writer in writers],
                [writer.token for writer in writers],
                [writer.bits for writer in writers],
            )
            for (job, _), logits in zip(ready, found, strict=True):
                job.logits = logits

    def _read(self, job: Job, writer: Writer) -> None:
        """Compute a piece of a prompt."""
        try:
            job.logits = writer.session.work()
        except Exception as error:  # noqa: BLE001
            self._fail(job, error)

    def _take(self, job: Job, writer: Writer, logits: Floats) -> bool:
        """Choose a token; whether the text goes on."""
        try:
            piece = writer.take(logits)
        except Exception as error:  # noqa: BLE001
            self._fail(job, error)
            return False
        if piece.finish:
            self._finish(job, piece)
            return False
        job.listener(piece)
        return True

    def _fail(self, job: Job, error: Exception) -> None:
        job.error = error
        if job.writer is not None:
            job.writer.session.forget()  # what a failed step left in the cache is not known
        self._finish(job, Piece("", 0, "error"))

    def _finish(self, job: Job, piece: Piece) -> None:
        """Take a job's last piece to its listener; its sequence is free."""
        if job in self._active:
            self._active.remove(job)
            if job.writer is not None:
                self._free.append(job.writer.session)
        tokens = piece.tokens or (0 if job.writer is None else job.writer.tokens)
        job.listener(replace(piece, tokens=tokens))
