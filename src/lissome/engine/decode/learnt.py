"""A scheduler that was learnt: from a prompt's keys and values it says after how many tokens bits fall (PMPD).

Chen et al. 2025 (arXiv 2410.13461): learnt queries attend to the last layer's keys, the mean over its heads; what they
find in its values goes through two small linear layers, whose largest output is the class: T of {0, N/3, 2N/3, N}.
"""

# T positions, E head size, H query heads, C = 4 classes

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lissome.core.errors import ArtifactError
from lissome.engine.decode.decoder import Floats
from lissome.engine.decode.phases import Phases
from lissome.engine.decode.session import Session

FILE, WORD = "scheduler.safetensors", "learnt"
"""Name of the file beside nested weights, and what a schedule says to be decided by it."""
_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class Learnt:
    """A classifier of prompts.

    Attributes:
        weights: ``queries`` [H, H, E], ``norm.weight`` and ``norm.bias`` [HE], ``inner.weight`` [HE, HE],
            ``inner.bias`` [HE], ``outer.weight`` [C, HE], ``outer.bias`` [C].
        prefill: Bits of prompts.
        high: Bits before T.
        low: Bits from T on.
        tokens: N.
    """

    weights: dict[str, Floats]
    prefill: int
    high: int
    low: int
    tokens: int
    NAMES: ClassVar[tuple[str, ...]] = (
        "queries", "norm.weight", "norm.bias", "inner.weight", "inner.bias", "outer.weight", "outer.bias",
    )  # fmt: skip

    def classify(self, keys: Floats, values: Floats) -> Floats:
        """Return the outputs for a prompt's keys and values, float32[T, E] each: float32[C]."""
        given, queries = self.weights, self.weights["queries"]
        scores = queries @ keys.T / np.sqrt(np.float32(keys.shape[1]))  # [H, H, T]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        found = ((shares / shares.sum(-1, keepdims=True)) @ values).mean(1).reshape(-1)  # [HE]
        normal = (found - found.mean()) / np.sqrt(found.var() + _EPS) * given["norm.weight"] + given["norm.bias"]
        inner = np.maximum(given["inner.weight"] @ normal + given["inner.bias"], 0)
        outputs: Floats = given["outer.weight"] @ inner + given["outer.bias"]
        return outputs

    def decide(self, session: Session) -> Phases:
        """Return the schedule of a sequence that consists of a prompt."""
        outputs = self.classify(*session.decoder.mean_cache(session.sequence))
        return self.phases(int(outputs.argmax()))

    def phases(self, label: int) -> Phases:
        """Return the schedule of a class."""
        return switching(self.prefill, self.high, self.low, switches(self.tokens)[label], self.tokens)

    def require(self, precisions: tuple[int, ...]) -> Learnt:
        """Return it, when weights have its precisions.

        Raises:
            ConfigError: Names one that they have not.
        """
        self.phases(1).require(precisions)
        return self

    def __str__(self) -> str:
        return WORD

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        facts = {name: getattr(self, name) for name in ("prefill", "high", "low", "tokens")}
        arrays = {name: np.ascontiguousarray(self.weights[name], np.float32) for name in self.NAMES}
        save_file(arrays, path, metadata={"scheduler": json.dumps(facts)})

    @classmethod
    def read(cls, path: Path) -> Learnt:
        """Read what `save` wrote.

        Raises:
            ArtifactError: When it is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as opened:
                facts = json.loads((opened.metadata() or {})["scheduler"])
                weights = {name: opened.get_tensor(name) for name in cls.NAMES}
            numbers = [facts[name] for name in ("prefill", "high", "low", "tokens")]
            if not all(type(number) is int for number in numbers) or not cls._fit(weights):
                raise ValueError("sizes or numbers do not fit")
            return cls(weights, *numbers)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is no learnt scheduler ({error!s:.80}); restore or remake it.") from error

    @staticmethod
    def _fit(weights: dict[str, Floats]) -> bool:
        shape = weights["queries"].shape
        if len(shape) != 3:
            return False
        wide = shape[0] * shape[2]
        sizes = [(wide,), (wide,), (wide, wide), (wide,), (4, wide), (4,)]
        others = [weights[name].shape for name in Learnt.NAMES[1:]]
        return others == sizes and all(bool(np.isfinite(one).all()) for one in weights.values())


def switches(tokens: int) -> tuple[int, int, int, int]:
    """Return the classes: T of {0, N/3, 2N/3, N}."""
    return 0, tokens // 3, 2 * (tokens // 3), tokens


def switching(prefill: int, high: int, low: int, switch: int, tokens: int) -> Phases:
    """High bits for `switch` new tokens, then low ones; never, when `switch` is N."""
    if switch >= tokens:
        return Phases(prefill, ((high, None),))
    return Phases(prefill, ((high, switch), (low, None)) if switch else ((low, None),))
