"""The decoder engine as something that is timed beside torch models, request by request and token by token."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ConfigError, NumericsError
from lissome.cost.measured import Request
from lissome.cost.timed import Timed
from lissome.engine.decode.decoder import Decoder
from lissome.engine.decode.phases import Phases


@dataclass(frozen=True, eq=False)
class Racer:
    """A sequence of a decoder that answers requests by one schedule; satisfies `lissome.cost.timed.Writing`.

    Attributes:
        decoder: Has room for the request.
        sequence: Which of its sequences.
        phases: Bits.
    """

    decoder: Decoder
    sequence: int
    phases: Phases

    def timed(self, request: Request) -> Timed:
        """Return one that answers such requests.

        Raises:
            ConfigError: When the request has a batch.
        """
        return _Requests(self, request)


class _Requests:
    def __init__(self, racer: Racer, request: Request) -> None:
        if request.batch != 1:
            raise ConfigError(f"the decoder engine is timed with a batch of 1, got {request.batch}.")
        self._racer = racer
        vocabulary = racer.decoder.spec.vocabulary
        self._prompt = np.random.default_rng(0).integers(0, vocabulary, request.prompt).astype(np.int32)
        self._length, self._token = 0, 0

    def prefill(self) -> float:
        """Read the prompt into an emptied sequence; seconds."""
        self._racer.decoder.seq_rm(self._racer.sequence)
        self._length = 0
        return self._forward(self._prompt, self._racer.phases.prefill)

    def step(self) -> float:
        """Add one token; seconds."""
        bits = self._racer.phases.bits(self._length - len(self._prompt))
        return self._forward(np.array([self._token], np.int32), bits)

    def close(self) -> None:
        """The sequence is emptied when the next request begins."""

    def _forward(self, tokens: NDArray[np.int32], bits: int) -> float:
        positions = np.arange(self._length, self._length + len(tokens), dtype=np.int32)
        start = time.perf_counter()
        logits = self._racer.decoder.forward(tokens, positions, self._racer.sequence, bits)[0]
        self._token = int(logits.argmax())
        seconds = time.perf_counter() - start
        self._length += len(tokens)
        if np.isnan(logits[-1]):
            raise NumericsError("what the model gives is NaN; check its weights before timing it.")
        return seconds
