"""What high bits alone write and say, with which schedules are compared, token for token after the same text."""

# N new tokens, P prompt tokens, E head size, C classes, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lissome.engine.decode.decoder import Decoder, DecoderSettings, Floats
from lissome.engine.decode.phases import Phases, Policy
from lissome.engine.decode.schedulers import switches, switching
from lissome.engine.decode.session import Session
from lissome.models.nested.file import NestedFile


@dataclass(frozen=True)
class Judged:
    """A schedule and what it does.

    Attributes:
        phases: The schedule.
        switch: T.
        kl: Mean divergence from high bits alone, nats per token.
        agreement: Share of tokens whose likeliest successor is the same.
        bits: Mean bits of the steps that were judged.
    """

    phases: Phases
    switch: int
    kl: float
    agreement: float
    bits: float

    def to_json(self) -> dict[str, float | str]:
        """Return it as JSON-able fields."""
        return {**vars(self), "phases": str(self.phases)}


class Judge:
    """Texts of high bits alone, after which other bits are asked for the same next tokens.

    Args:
        file: The weights.
        prompts: Token ids of texts' beginnings.
        tokens: New tokens N of each text.
        prefill: Bits of the prompts.
        high: Bits of the new tokens.
        threads: Threads (default 0: all that the process may use).
    """

    def __init__(
        self,
        file: NestedFile,
        prompts: Sequence[Sequence[int]],
        *,
        tokens: int,
        prefill: int,
        high: int,
        threads: int = 0,
    ) -> None:
        longest = max(map(len, prompts))
        self._decoder = Decoder(file, DecoderSettings(cells=longest + tokens, threads=threads))
        self.prefill, self.tokens = prefill, tokens
        self._prompts = [list(prompt) for prompt in prompts]
        self._alone = alone = Phases(prefill, ((high, None),))
        self.texts = [
            list(Session(self._decoder, keep=0).generate(prompt, tokens, schedule=alone.after(len(prompt))))
            for prompt in self._prompts
        ]
        self._read: list[int] | None = None  # the prompt that the cache begins with
        self._decoder.seq_rm(0)

    def divergences(self, bits: Sequence[int] | Sequence[Sequence[int]]) -> tuple[Floats, NDArray[np.bool_]]:
        """Compare other bits with high ones after the same tokens.

        Args:
            bits: Of each step, N − 1: nobody computes the last new token; for all texts, or for each one. They may
                rise, as those of a control do.

        Returns:
            Nats and whether the likeliest token is the same, [texts, N − 1].
        """
        return self.compared([bits])[0]

    def compared(
        self, ways: Sequence[Sequence[int] | Sequence[Sequence[int]]]
    ) -> list[tuple[Floats, NDArray[np.bool_]]]:
        """Compare several schedules, each as in `divergences`; what high bits say is computed once for all of them."""
        each = [[way] * len(self.texts) if isinstance(way[0], int) else way for way in ways]
        pairs = [
            self._of(prompt, text, [tuple(way[at]) for way in each])  # type: ignore[arg-type]
            for at, (prompt, text) in enumerate(zip(self._prompts, self.texts, strict=True))
        ]
        columns = zip(*pairs, strict=True)
        return [(np.stack([kl for kl, _ in one]), np.stack([same for _, same in one])) for one in columns]

    def judge(self, phases: Phases, switch: int) -> Judged:
        """Judge a schedule."""
        steps = self.tokens - 1
        kl, same = self.divergences([phases.bits(step) for step in range(steps)])
        return Judged(phases, switch, float(kl.mean()), float(same.mean()), phases.average(steps))

    def table(self, low: int) -> Floats:
        """Return the divergence of every text for every class of T, float[texts, C]; that of N is 0."""
        high = self._alone.bits(0)
        ways = [switching(self.prefill, high, low, switch, self.tokens) for switch in switches(self.tokens)[:-1]]
        found = self.compared([[way.bits(step) for step in range(self.tokens - 1)] for way in ways])
        return np.stack([*(kl.mean(1) for kl, _ in found), np.zeros(len(self.texts))], 1)

    def decided(self, policy: Policy) -> list[list[int]]:
        """Return the bits that a policy gives the steps of every text: [texts][N − 1].

        Bits never rise, so what a policy sees until they fall is what high bits say.
        """
        found, count = [], self.tokens - 1
        for prompt, text in zip(self._prompts, self.texts, strict=True):
            self._decoder.seq_rm(0)
            session = Session(self._decoder, keep=0)
            session.feed(prompt, lambda _: self.prefill)
            steps, bits = policy.decide(session), []
            session.forget()
            self._read = None
            if isinstance(steps, Phases):  # which look at nothing that is said
                found.append([steps.bits(step) for step in range(count)])
                continue
            said = self._logits(prompt, text, [self._alone.bits(0)] * count)
            for step in range(count):
                bits.append(steps.bits(step))
                steps.see(said[step])
            found.append(bits)
        return found

    def features(self) -> list[tuple[Floats, Floats]]:
        """Return what a classifier sees of every prompt: keys and values of the last layer, float32[P, E] each."""
        found = []
        for prompt in self._prompts:
            self._decoder.seq_rm(0)
            self._decoder.forward(prompt, range(len(prompt)), 0, self.prefill)
            found.append(self._decoder.mean_cache())
        self._decoder.seq_rm(0)
        self._read = None
        return found

    def _of(
        self, prompt: list[int], text: list[int], ways: Sequence[tuple[int, ...]]
    ) -> list[tuple[Floats, NDArray[np.bool_]]]:
        """Compare every way with high bits on one text; the same way is computed once, high bits diverge by nothing."""
        high = tuple(self._alone.bits(step) for step in range(len(ways[0])))
        own = log_softmax(self._logits(prompt, text, high))
        share, first = np.exp(own), own.argmax(-1)
        found = {high: (np.zeros(len(own), own.dtype), np.ones(len(own), np.bool_))}
        for way in dict.fromkeys(ways):
            if way not in found:
                other = log_softmax(self._logits(prompt, text, way))
                found[way] = ((share * (own - other)).sum(-1), first == other.argmax(-1))
        return [found[way] for way in ways]

    def _logits(self, prompt: list[int], text: list[int], bits: Sequence[int]) -> Floats:
        """Logits after each new token but the last, [N − 1, V]; tokens with the same bits in one batch."""
        self._decoder.seq_rm(0, len(prompt))
        if self._decoder.seq_last(0) != len(prompt) - 1 or self._read != prompt:
            self._decoder.seq_rm(0)
            self._decoder.forward(prompt, range(len(prompt)), 0, self.prefill)
            self._read = prompt
        pieces, first = [], 0
        while first < len(bits):
            last = first + 1
            while last < len(bits) and bits[last] == bits[first]:
                last += 1
            at = range(len(prompt) + first, len(prompt) + last)
            pieces.append(self._decoder.forward(text[first:last], at, 0, bits[first], wanted=range(last - first)))
            first = last
        return np.concatenate(pieces)


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of probabilities, [..., V]."""
    shifted = logits - logits.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
