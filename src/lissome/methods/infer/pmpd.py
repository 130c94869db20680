"""PMPD — read fewer bits of the weights the further a text has gone (Chen et al., ICLR 2025, arXiv 2410.13461).

Problem: a language model writes one token after the other, and each reads all weights; fewer bits are faster, and
worse. H. M. Chen, Tan, Kouris, Lee, Fan, Venieris, "Progressive Mixed-Precision Decoding for Efficient LLM Inference":
an error early in a text is carried through all of it, one near the end is not. So the prompt is read at the most bits,
which costs little because it is bound by arithmetic, then come T tokens at `high` bits and the rest at `low` ones, out
of one file of nested weights and with one cache. T is the smallest of {0, N/3, 2N/3, N} that keeps the quality on texts
that are set aside for such choices.

Differs from the paper, and why:

- Quality is how far every token diverges from what `high` bits alone would say after the same text (teacher-forced
  KL), not a score of whole answers, which hardly moves on short ones.
- Step 0 is the forward of the first new token: T = 0 computes none at `high` bits (the published loop still one).
- Weights are uniform codes with scales per group, head and embedding nested too, instead of tables per row; with
  ``/kmeans`` they are fitted levels, a table for each matrix and precision.
- The scheduler that is learnt from a prompt's keys and values has the paper's form; its labels come from the same
  divergence, its optimizer's settings are fixed, and it is asked once, before the first new token.
"""

# N new tokens, P prompt tokens, V vocabulary

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, option
from lissome.core.errors import ArtifactError, ConfigError, DataError
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan
from lissome.core.metrics import Metric
from lissome.engine.decode.fisher import fisher
from lissome.engine.decode.judge import Judge, Judged
from lissome.engine.decode.phases import NAME as SCHEDULE
from lissome.engine.decode.phases import Phases
from lissome.engine.decode.schedulers import FILE as SCHEDULER
from lissome.engine.decode.schedulers import KINDS, Chance, Learnt, Scheduler, switches, switching
from lissome.engine.decode.teach import teach
from lissome.models.adapters import merged_copy
from lissome.models.model import Model
from lissome.models.nested.file import NAME, NestedFile, open_nested
from lissome.models.nested.make import make
from lissome.ops.nested import layout_named

_LEAST = 10  # texts that a classifier learns from
_PIECE_BYTES = 160 << 20  # of the weights that are quantised at a time, with their errors and codes


class Pmpd(Method):
    """Bits that fall while a text is written, chosen on texts that are set aside."""

    needs: ClassVar[frozenset[str]] = frozenset({"decoder"})
    leaves: ClassVar[frozenset[str]] = frozenset({"nested"})

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Settings of PMPD."""

        layout: str = option(
            "3+1", "bits of each segment of the weights, /64 for groups of 64, /kmeans for fitted levels"
        )
        high: int | None = option(None, "bits of the prompt's neighbours; default all that there are", low=2, high=8)
        low: int | None = option(None, "bits of the rest; default the next fewer ones", low=2, high=8)
        prompt: int = option(32, "tokens of a text that are taken as its prompt", low=1)
        tokens: int = option(96, "new tokens N that a schedule is judged by", low=3)
        texts: int = option(16, "texts it is judged by", low=1)
        kl: float = option(0.02, "divergence from `high` bits that is allowed, in nats per token", low=0.0)
        scheduler: Literal["static", "learnt", "activation", "confidence", "random"] = option(
            "static", "one schedule for all texts, or one for each: learnt from its prompt, or by one of the controls"
        )
        prompts: int = option(128, "texts that the classifier learns from; 1 of 10 is held out", low=10)
        fisher: int = option(0, "calibration texts whose gradients weigh the errors of weights; the paper's 100", low=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            self.bits()

        def bits(self) -> tuple[int, int]:
            """High and low bits.

            Raises:
                ConfigError: When the layout has not two such precisions.
            """
            known = layout_named(self.layout).precisions
            high = known[-1] if self.high is None else self.high
            below = [bits for bits in known if bits < high]
            low = self.low if self.low is not None else below[-1] if below else 0
            if high not in known or low not in below:
                listed = ", ".join(map(str, known))
                raise ConfigError(
                    f"high and low bits must be two of the layout's {listed}, the high ones more; got {high} and {low}."
                )
            return high, low

    config: Config

    @property
    def follows_budget(self) -> bool:
        """Never: how far bits fall is bounded by `kl`."""
        return False

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict memory: the model, its nested weights, and what is quantised at a time.

        Raises:
            DataError: When the job's windows are too short for a prompt.
        """
        self._check(card.windows[1])
        params = card.figures["params"]
        layout = layout_named(self.config.layout)
        parts = {
            "weights": 4 * params * (2 if self.config.fisher else 1),
            "nested": params * (layout.bits + 2 + 64 / layout.group) / 8,
            "pieces": float(_PIECE_BYTES),
            "logits": 4.0 * card.vocabulary * (self.config.tokens + 1) * 3,
        }
        return Plan(figures={}, peak_memory=sum(parts.values()), memory_parts=parts)

    def run(self, model: Model, context: Context) -> Outcome:
        """Write the nested weights and choose the schedule; the model itself stays as it is.

        Raises:
            UnsupportedModelError: When the engine does not run the model.
            DataError: When the windows are too short for a prompt.
        """
        windows = context.data.selection[: self.config.texts]
        self._check(windows.shape[1])
        file = self._weights(model, context)
        prompts = [window[: self.config.prompt].tolist() for window in windows]
        high, low = self.config.bits()
        found = search(file, prompts, high=high, low=low, tokens=self.config.tokens, limit=self.config.kl)
        chosen = found[-1]
        fields: dict[str, Any] = {
            "schedule": str(chosen.phases),
            "tokens": self.config.tokens,
            "texts": len(prompts),
            "tried": [one.to_json() for one in found],
        }
        files: dict[str, bytes | Path] = {NAME: file.path}
        word = self.config.scheduler
        if word != "static":
            files[SCHEDULER] = path = context.folder / SCHEDULER
            windows = context.data.recovery[: self.config.prompts]
            found_by = self._learn(file, windows, path, context)
            fields |= {"schedule": word, "static": str(chosen.phases), word: found_by}
        files[SCHEDULE] = (json.dumps(fields, indent=2) + "\n").encode()
        text = f"written at {chosen.phases} bits: {chosen.kl:.4f} nats per token from {high} bits alone"
        if word != "static":
            text = f"every text decides ({word}) after how many of {self.config.tokens} tokens {high} bits become {low}"
        return Outcome(
            kind="policy",
            value=model,
            metrics=(Metric(name="kl", value=chosen.kl, unit="nats", better="lower", n=len(prompts)),),
            details={**fields, "ended": f"{text}; lissome generate reads it so"},
            files=files,
        )

    def _learn(self, file: NestedFile, windows: Any, path: Path, context: Context) -> dict[str, float]:
        """Make the scheduler and say what it does on prompts that it did not see, beside a random one."""
        self._check(windows.shape[1])
        if len(windows) < _LEAST:
            raise DataError(
                f"a scheduler learns from {_LEAST} texts at least, there are {len(windows)}; give more text."
            )
        high, low = self.config.bits()
        prompts = [window[: self.config.prompt].tolist() for window in windows]
        judge = Judge(file, prompts, tokens=self.config.tokens, prefill=max(file.layout.precisions), high=high)
        table = judge.table(low)
        labels = (table <= self.config.kl).argmax(1)  # the last class diverges by nothing
        seen = len(prompts) - max(1, len(prompts) // 10)
        prior = np.bincount(labels[:seen], minlength=len(switches(1))).astype(np.float32) / seen
        numbers = (judge.prefill, high, low, self.config.tokens)
        weights: dict[str, Any] = {"prior": prior} if self.config.scheduler == Chance.word else {}
        if issubclass(KINDS[self.config.scheduler], Learnt):
            heads = max(layer.attention.heads for layer in file.spec.layers if layer.attention is not None)
            attends = heads if self.config.scheduler == Learnt.word else None
            weights = teach(judge.features()[:seen], labels[:seen].tolist(), heads=attends, seed=context.seed)
        made: Scheduler = KINDS[self.config.scheduler](*numbers, weights=weights)
        made.save(path)
        held = Judge(file, prompts[seen:], tokens=self.config.tokens, prefill=judge.prefill, high=high)
        bits = held.decided(made)
        average = np.array([made.phases(label).average(self.config.tokens - 1) for label in range(len(prior))])
        return {
            "held_out": float(len(bits)),
            "bits": float(np.mean(bits)),
            "kl": float(held.divergences(bits)[0].mean()),
            "random_bits": float(average @ prior),
            "random_kl": float((table[seen:] @ prior).mean()),
        }

    def _check(self, length: int) -> None:
        if length < self.config.prompt:
            raise DataError(
                f"the texts have {length} tokens, prompts shall have {self.config.prompt}; set prompt lower."
            )

    def _weights(self, model: Model, context: Context) -> NestedFile:
        """The file of an interrupted run when it is whole, else a new one."""
        path = context.folder / NAME
        if path.exists():
            try:
                return open_nested(path)
            except ArtifactError:
                path.unlink()
        plain = merged_copy(model)
        texts = context.data.calibration[: self.config.fisher]
        importance = fisher(plain, texts) if len(texts) else None
        return open_nested(
            make(plain, path, layout=layout_named(self.config.layout), importance=importance, events=context.events)
        )


def search(
    file: NestedFile, prompts: Sequence[Sequence[int]], *, high: int, low: int, tokens: int, limit: float
) -> list[Judged]:
    """Find the smallest T of {0, N/3, 2N/3, N} whose mean divergence is within a limit.

    Args:
        file: The weights.
        prompts: Token ids of texts' beginnings.
        high: Bits before T.
        low: Bits from T on.
        tokens: N.
        limit: Nats per token.

    Returns:
        What was tried, in order; the last one is the choice. N, which is `high` bits alone, always holds.
    """
    judge, found = Judge(file, prompts, tokens=tokens, prefill=max(file.layout.precisions), high=high), []
    for switch in switches(tokens)[:-1]:
        found.append(judge.judge(switching(judge.prefill, high, low, switch, tokens), switch))
        if found[-1].kl <= limit:
            return found
    return [*found, Judged(Phases(judge.prefill, ((high, None),)), tokens, 0.0, 1.0, float(high))]
