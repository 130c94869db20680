"""One sequence that grows: continues a prompt token by token, and computes no prefix twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lissome.core.errors import ConfigError, DataError, NumericsError
from lissome.engine.decode.decoder import Decoder, Floats
from lissome.ops.kernels import native

Schedule = Callable[[int], int]
"""Bits that the token at an absolute position is computed with; a function of nothing else."""
_BATCH = 256  # tokens of a prompt at a time: no result depends on it, memory does


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from logits.

    Attributes:
        temperature: Logits are divided by it. Default 0: the most likely token.
        top_p: Only the fewest most likely tokens whose share reaches it.
        top_k: At most so many tokens; 0 for all.
        seed: A text is a pure function of weights, prompt, schedule and seed; each position has a number of its own.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not 0 <= self.top_k < 1 << 31 or not 0 <= self.seed < 1 << 64:
            raise ConfigError(
                f"top_k must be a number of 31 bits and seed one of 64 bits, got {self.top_k!s:.40}, {self.seed!s:.40}."
            )


class Session:
    """A sequence of a decoder, with the tokens whose keys and values the cache has.

    Args:
        decoder: A decoder of all layers.
        sequence: Which of its sequences.
        overflow: When the cache is full: ``"stop"`` (default) ends the text; ``"slide"`` forgets the older half of what
            follows the first `keep` positions, and goes on. Positions keep their numbers.
        keep: First positions that sliding leaves, because models rely on them. Default 4.
    """

    def __init__(
        self, decoder: Decoder, sequence: int = 0, *, overflow: Literal["stop", "slide"] = "stop", keep: int = 4
    ) -> None:
        if not 0 <= keep < decoder.settings.cells // 2:
            raise ConfigError(f"keep must be less than half of the {decoder.settings.cells} cells, got {keep}.")
        self.decoder, self.sequence, self.overflow, self.keep = decoder, sequence, overflow, keep
        self.computed = 0  # tokens computed so far, for those who want to know what the cache saved
        self._known: list[tuple[int, int]] = []  # (token, bits) by position
        self._wanted: list[tuple[int, int]] = []  # the same for what it shall become
        self._slid = False

    def forget(self) -> None:
        """Empty the sequence."""
        self.decoder.seq_rm(self.sequence)
        self._known, self._slid = [], False

    @property
    def length(self) -> int:
        """Tokens that it consists of."""
        return len(self._known)

    @property
    def tokens(self) -> list[int]:
        """The tokens themselves."""
        return [token for token, _ in self._known]

    def shares(self, tokens: Sequence[int], schedule: Schedule) -> int:
        """Return how many of the first tokens need not be computed: the cache has them, computed with the same bits."""
        same, most = 0, 0 if self._slid else min(len(tokens) - 1, len(self._known))
        while same < most and (tokens[same], schedule(same)) == self._known[same]:
            same += 1
        return self.decoder.stays(same, len(self._known))

    def start(self, tokens: Sequence[int], schedule: Schedule) -> None:
        """Let the sequence become these tokens; `work` computes them.

        Raises:
            DataError: When there are no tokens, or more than the cache holds.
        """
        if not tokens or len(tokens) > self.decoder.settings.cells:
            raise DataError(f"a prompt must have 1 to {self.decoder.settings.cells} tokens, got {len(tokens)}.")
        same = self.shares(tokens, schedule)
        self.decoder.seq_rm(self.sequence, same)
        del self._known[same:]
        self._slid = False
        self._wanted = [(int(token), schedule(at)) for at, token in enumerate(tokens)]

    def work(self) -> Floats | None:
        """Compute a piece of what was started; once all is done, returns the logits after it, float32[V]."""
        logits = self._run(self._next_batch(self._wanted))
        return logits if len(self._known) == len(self._wanted) else None

    def feed(self, tokens: Sequence[int], schedule: Schedule) -> Floats:
        """Make the sequence consist of these tokens and return the logits after the last one, float32[V].

        What the cache has of them already, computed with the same bits, is not computed again.

        Raises:
            DataError: When there are no tokens, or more than the cache holds.
        """
        self.start(tokens, schedule)
        logits = None
        while logits is None:
            logits = self.work()
        return logits

    def generate(
        self,
        prompt: Sequence[int],
        most: int,
        *,
        schedule: Schedule | None = None,
        sampling: Sampling | None = None,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """Yield tokens that continue a prompt; a token of `stop` ends the text and is not yielded.

        Args:
            prompt: Token ids.
            most: Tokens at most.
            schedule: Bits by absolute position (default: all bits everywhere).
            sampling: How tokens are chosen (default: the most likely one).
            stop: Tokens that end the text.

        Raises:
            DataError: When the prompt is empty, or longer than the cache.
            NumericsError: When logits are no numbers.
        """
        bits = self.decoder.file.layout.bits
        schedule, sampling = schedule or (lambda _: bits), sampling or Sampling()
        logits = self.feed(prompt, schedule)
        for count in range(most):
            token = choose(logits, sampling, len(self._known))
            if token in stop:
                return
            yield token
            if count + 1 == most or not self._room():
                return
            at = len(self._known)
            logits = self._run([(token, schedule(at))])

    def _next_batch(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The next tokens that have the same bits."""
        start = len(self._known)
        end = start + 1
        while end < min(len(wanted), start + _BATCH) and wanted[end][1] == wanted[start][1]:
            end += 1
        return list(wanted[start:end])

    def _run(self, batch: list[tuple[int, int]]) -> Floats:
        at = len(self._known)
        tokens, positions = [token for token, _ in batch], range(at, at + len(batch))
        logits: Floats = self.decoder.forward(tokens, positions, self.sequence, batch[0][1])[0]
        self.computed += len(batch)
        self._known += batch
        return logits

    def took(self, token: int, bits: int) -> None:
        """Note that a token at the end was computed by `advance`."""
        self._known.append((token, bits))
        self.computed += 1

    def _room(self) -> bool:
        """Whether there is a cell for one more token; makes room where that is wanted."""
        if self.decoder.free > 0:
            return True
        if self.overflow == "stop":
            return False
        held = self.decoder.seq_first(self.sequence, self.keep)
        self.decoder.seq_rm(self.sequence, self.keep, held + (len(self._known) - held) // 2)
        self._slid = True
        return self.decoder.free > 0


def advance(sessions: Sequence[Session], tokens: Sequence[int], bits: Sequence[int]) -> list[Floats]:
    """Add one token to each of several sequences of one decoder; weights are read once for all with the same bits.

    Args:
        sessions: Different sequences.
        tokens: The token of each.
        bits: What each is computed with.

    Returns:
        The logits after each, float32[V].
    """
    found: dict[int, Floats] = {}
    for precision in sorted(set(bits)):
        rows = [at for at, own in enumerate(bits) if own == precision]
        logits = sessions[rows[0]].decoder.forward(
            [tokens[at] for at in rows],
            [sessions[at].length for at in rows],
            [sessions[at].sequence for at in rows],
            precision,
            wanted=range(len(rows)),
        )
        for row, at in enumerate(rows):
            sessions[at].took(tokens[at], precision)
            found[at] = logits[row]
    return [found[at] for at in range(len(sessions))]


def choose(logits: Floats, sampling: Sampling, position: int) -> int:
    """Choose the token of a position.

    Raises:
        NumericsError: When no logit is a number.
    """
    if sampling.temperature == 0:
        token = native.required().argmax(logits)
    else:
        token = native.required().draw(
            logits, sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, position
        )
    if token < 0:
        raise NumericsError("the model's logits are NaN; its weights are damaged.")
    return int(token)
