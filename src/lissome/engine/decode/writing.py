"""Texts instead of tokens: an order is written piece by piece, alone or beside others, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lissome.core.errors import DataError
from lissome.engine.decode.decoder import Floats
from lissome.engine.decode.phases import Phases, Policy, Steps
from lissome.engine.decode.session import Sampling, Session, advance, choose
from lissome.models.nested.text import TextCodec, TextStream

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What shall be written.

    Attributes:
        prompt: Token ids to continue.
        most: New tokens at most, at least 1; fewer where the cache is full before.
        sampling: How they are chosen.
        policy: Decides the bits (default: all bits everywhere).
        stop: Texts that end the answer, and do not appear in it.
        continues: Whether it shall stand right behind the prompt, where a space may belong between them; else it is an
            answer of its own (default).
    """

    prompt: tuple[int, ...]
    most: int
    sampling: Sampling = field(default_factory=Sampling)
    policy: Policy | None = None
    stop: tuple[str, ...] = ()
    continues: bool = False


@dataclass(frozen=True)
class Piece:
    """What one token added.

    Attributes:
        text: New text; often empty, while a character or a stop text is not whole.
        tokens: New tokens so far, without one that ended the text.
        finish: Why this piece is the last: ``"stop"``, ``"length"``, ``"cancelled"`` or ``"error"``; None before.
        bits: What the token before it was computed with.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    bits: int | None = None


class Writer:
    """One order on one sequence: first its prompt, by `Session.work`, then a token for each logits.

    Args:
        session: The sequence.
        codec: The model's tokenizer.
        order: What to write.

    Raises:
        DataError: When the prompt is empty, longer than the cache, or has tokens that the model does not know.
    """

    def __init__(self, session: Session, codec: TextCodec, order: Order) -> None:
        vocabulary, bits = session.decoder.spec.vocabulary, session.decoder.file.layout.bits
        if order.prompt and not 0 <= min(order.prompt) <= max(order.prompt) < vocabulary:
            raise DataError(f"the prompt has tokens beyond the model's {vocabulary}; the tokenizer is another model's.")
        self.session, self._codec, self._order = session, codec, order
        room = session.decoder.settings.cells - len(order.prompt)
        self._most = min(order.most, room + 1)  # the last token is written, and never computed
        self._policy = order.policy or Phases(bits, ((bits, None),))
        self._phases: Steps | None = None
        self._stream = TextStream(codec, order.stop, order.prompt if order.continues else ())
        self.tokens, self.token = 0, -1
        session.start(order.prompt, lambda _: self._policy.prefill)

    @property
    def bits(self) -> int:
        """What the token that comes next in the sequence is computed with."""
        step = self.session.length - len(self._order.prompt)
        if step < 0:
            return self._policy.prefill
        if self._phases is None:
            self._phases = self._policy.decide(self.session)
        return self._phases.bits(step)

    def take(self, logits: Floats) -> Piece:
        """Choose the next token; it is in `token` until `advance` has computed it.

        Raises:
            NumericsError: When logits are no numbers.
        """
        if self._phases is not None:
            self._phases.see(logits)
        token, bits = choose(logits, self._order.sampling, self.session.length), self._last
        if token in self._codec.ends:
            return Piece(self._stream.end(), self.tokens, "stop", bits)
        self.tokens, self.token = self.tokens + 1, token
        text = self._stream.add(token)
        if not self._stream.stopped and self.tokens == self._most:
            text += self._stream.end()
            return Piece(text, self.tokens, "stop" if self._stream.stopped else "length", bits)
        return Piece(text, self.tokens, "stop" if self._stream.stopped else None, bits)

    @property
    def _last(self) -> int:
        """What the last token of the sequence was computed with."""
        step = self.session.length - 1 - len(self._order.prompt)
        return self._policy.prefill if step < 0 or self._phases is None else self._phases.bits(step)


def write(session: Session, codec: TextCodec, order: Order) -> Iterator[Piece]:
    """Yield a text piece by piece, one for each token; the last one says why it is the last.

    Raises:
        DataError: When the prompt is empty, longer than the cache, or has tokens that the model does not know.
        NumericsError: When logits are no numbers.
    """
    writer, logits = Writer(session, codec, order), None
    while logits is None:
        logits = session.work()
    while True:
        piece = writer.take(logits)
        yield piece
        if piece.finish:
            return
        (logits,) = advance([session], [writer.token], [writer.bits])
