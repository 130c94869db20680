"""Schedulers that look at a text before bits fall: the one that is learnt, and those it must be compared with (PMPD).

Chen et al. 2025 (arXiv 2410.13461): learnt queries attend to the last layer's keys, the mean over its heads; what they
find in its values goes through two small linear layers, whose largest output is the class: T of {0, N/3, 2N/3, N}.
Their ablations: layers on activations without that attention, chance, and a threshold of confidence.
"""

# T positions, E head size, H query heads, C = 4 classes, V vocabulary

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np

from lissome.core.errors import ArtifactError, ConfigError, unknown_name
from lissome.engine.decode.decoder import Floats
from lissome.engine.decode.phases import Phases, Steps
from lissome.engine.decode.session import Session

FILE = "scheduler.safetensors"
"""Name of the file beside nested weights."""
_EPS = 1e-5
_NUMBERS = ("prefill", "high", "low", "tokens")


@dataclass(frozen=True, eq=False)
class Scheduler(abc.ABC):
    """Decides for every text after how many new tokens its bits fall.

    Attributes:
        prefill: Bits of prompts.
        high: Bits before T.
        low: Bits from T on.
        tokens: N.
        weights: What it was taught, by name.
    """

    prefill: int
    high: int
    low: int
    tokens: int
    weights: Mapping[str, Floats] = field(default_factory=dict)
    word: ClassVar[str]

    @abc.abstractmethod
    def decide(self, session: Session) -> Steps:
        """Return the bits of a sequence that consists of a prompt."""

    def phases(self, label: int) -> Phases:
        """Return the schedule of a class."""
        return switching(self.prefill, self.high, self.low, switches(self.tokens)[label], self.tokens)

    @property
    def size(self) -> int | None:
        """Numbers of a head of the last layer that it reads, E; None when it reads none."""
        return None

    def require(self, precisions: tuple[int, ...], size: int | None) -> Scheduler:
        """Return it, when weights have its precisions, and heads of `size` numbers in the last layer with an attention.

        Raises:
            ConfigError: Names what they have not.
        """
        for label in range(len(switches(self.tokens))):
            self.phases(label).require(precisions)
        if self.size not in (None, size):
            raise ConfigError(
                f"the {self} scheduler is another model's: it reads heads of {self.size} numbers, these weights' "
                f"last ones have {size or 'none'}."
            )
        return self

    def fits(self) -> bool:
        """Whether its weights have the sizes that it reads."""
        return not self.weights

    def __str__(self) -> str:
        return self.word

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        facts = {"kind": self.word, **{name: getattr(self, name) for name in _NUMBERS}}
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in self.weights.items()}
        save_file(arrays, path, metadata={"scheduler": json.dumps(facts)})


class Learnt(Scheduler):
    """A classifier of a prompt's keys and values, by attention to them.

    Its weights: ``queries`` [H, H, E], ``norm.weight`` and ``norm.bias`` [HE], ``inner.weight`` [HE, HE],
    ``inner.bias`` [HE], ``outer.weight`` [C, HE], ``outer.bias`` [C].
    """

    word = "learnt"

    def classify(self, keys: Floats, values: Floats) -> Floats:
        """Return the outputs for a prompt's keys and values, float32[T, E] each: float32[C]."""
        given, found = self.weights, self.found(keys, values)
        normal = (found - found.mean()) / np.sqrt(found.var() + _EPS) * given["norm.weight"] + given["norm.bias"]
        inner = np.maximum(given["inner.weight"] @ normal + given["inner.bias"], 0)
        outputs: Floats = given["outer.weight"] @ inner + given["outer.bias"]
        return outputs

    def found(self, keys: Floats, values: Floats) -> Floats:
        """Return what the layers see of them, float32[HE]."""
        queries = self.weights["queries"]
        scores = queries @ keys.T / np.sqrt(np.float32(keys.shape[1]))  # [H, H, T]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        found: Floats = ((shares / shares.sum(-1, keepdims=True)) @ values).mean(1).reshape(-1)
        return found

    def decide(self, session: Session) -> Phases:
        """Ask the classifier."""
        outputs = self.classify(*session.decoder.mean_cache(session.sequence))
        return self.phases(int(outputs.argmax()))

    @property
    def size(self) -> int | None:
        """Numbers of a head that it reads, E."""
        return int(self.weights["queries"].shape[-1])

    def fits(self) -> bool:
        """Whether its weights have the sizes that it reads."""
        shape = self.weights["queries"].shape
        return len(shape) == 3 and self._layers_fit(shape[0] * shape[2])

    def _layers_fit(self, wide: int) -> bool:
        sizes = [(wide,), (wide,), (wide, wide), (wide,), (4, wide), (4,)]
        names = ("norm.weight", "norm.bias", "inner.weight", "inner.bias", "outer.weight", "outer.bias")
        arrays = [self.weights[name] for name in names]
        return [one.shape for one in arrays] == sizes and all(bool(np.isfinite(one).all()) for one in arrays)


class Activation(Learnt):
    """A control: the same layers on the last layer's values as they are, their mean and the last one [2E]."""

    word = "activation"

    def found(self, keys: Floats, values: Floats) -> Floats:
        """Return what the layers see, float32[2E]."""
        return pooled(values)

    @property
    def size(self) -> int | None:
        """Numbers of a head that it reads, E."""
        return self.weights["norm.weight"].size // 2

    def fits(self) -> bool:
        """Whether its weights have the sizes that it reads."""
        return self._layers_fit(self.weights["norm.weight"].size)


class Chance(Scheduler):
    """A control: a class drawn by its share among texts, ``prior`` [C]; the same text gets the same one."""

    word = "random"

    def decide(self, session: Session) -> Phases:
        """Draw a class."""
        digest = sha256(np.asarray(session.tokens, np.int64).tobytes()).digest()
        number = int.from_bytes(digest[:8], "little") / (1 << 64)
        shares = np.cumsum(self.weights["prior"]) / self.weights["prior"].sum()
        return self.phases(min(int(np.searchsorted(shares, number, side="right")), len(shares) - 1))

    def fits(self) -> bool:
        """Whether there is a share for every class."""
        prior = self.weights["prior"]
        return prior.shape == (4,) and bool((prior >= 0).all()) and 0 < float(prior.sum()) < float("inf")


class Confidence(Scheduler):
    """A control: bits fall once the likeliest token is surer than the mean of the first ten by one standard deviation.

    Where that is above 1 they never fall.
    """

    word = "confidence"
    first: ClassVar[int] = 10
    """Steps that the threshold is made of."""

    def decide(self, session: Session) -> Steps:
        """Begin to watch."""
        return _Watching(self.high, self.low, self.first)


class _Watching:
    """The bits of one text, decided while it is written."""

    def __init__(self, high: int, low: int, first: int) -> None:
        self._high, self._low, self._first = high, low, first
        self._seen: list[float] = []
        self._switch: int | None = None  # T, once it is known

    def bits(self, step: int) -> int:
        return self._high if self._switch is None or step < self._switch else self._low

    def see(self, logits: Floats) -> None:
        if self._switch is not None:
            return
        sure = float(1 / np.exp(logits - logits.max()).sum())
        if len(self._seen) >= self._first:
            start = np.array(self._seen[: self._first])
            if sure > start.mean() + start.std():
                self._switch = len(self._seen) + 1
        self._seen.append(sure)


KINDS: dict[str, type[Scheduler]] = {kind.word: kind for kind in (Learnt, Activation, Confidence, Chance)}
"""What a schedule may say to be decided by."""


def read_scheduler(path: Path) -> Scheduler:
    """Read what `Scheduler.save` wrote.

    Raises:
        ArtifactError: When it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            facts = json.loads((opened.metadata() or {})["scheduler"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
        prefill, high, low, tokens = numbers = [facts[name] for name in _NUMBERS]
        word = facts.get("kind", Learnt.word)
        if word not in KINDS:
            raise ValueError(unknown_name("scheduler", word, KINDS))
        found = KINDS[word](prefill, high, low, tokens, weights)
        if not all(type(number) is int for number in numbers) or not found.fits():
            raise ValueError("sizes or numbers do not fit")
        return found
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
        raise ArtifactError(f"{path} is no scheduler ({error!s:.80}); restore or remake it.") from error


def pooled(values: Floats) -> Floats:
    """Return the mean of values [T, E] and the last one, float32[2E]."""
    return np.concatenate([values.mean(0), values[-1]])


def switches(tokens: int) -> tuple[int, int, int, int]:
    """Return the classes: T of {0, N/3, 2N/3, N}."""
    return 0, tokens // 3, 2 * (tokens // 3), tokens


def switching(prefill: int, high: int, low: int, switch: int, tokens: int) -> Phases:
    """High bits for `switch` new tokens, then low ones; never, when `switch` is N."""
    if switch >= tokens:
        return Phases(prefill, ((high, None),))
    return Phases(prefill, ((high, switch), (low, None)) if switch else ((low, None),))
