"""What objectives of separate examples have in common: labelled texts and images, masks, answers in a text.

Their examples are dealt out for four purposes; a step of training sees some of them; every figure is a mean over them.
"""

# N examples

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from lissome.engine.search.found import SPLITS, Split
from lissome.engine.train import TrainConfig
from lissome.models.model import Model

_WARMUP = 0.05
_PURPOSES = ("recovery", *SPLITS)


class Some(Protocol):
    """Examples of which some can be taken."""

    def __len__(self) -> int:
        """Return their number."""

    def some(self, indices: Sequence[int], /) -> Self:
        """Return those at some positions."""


Rows = TypeVar("Rows", bound=Some)


@dataclass(frozen=True, eq=False, kw_only=True)
class ExampleSplits(Generic[Rows]):
    """Examples for every purpose; satisfies `lissome.core.protocols.Splits`, its windows being examples.

    Attributes:
        recovery: For training; statistics and calibration take theirs from them too.
        selection: For choosing between results.
        test: Held out; none in what a method sees.
        source: What the user called them.
        fingerprint: Hash of the examples as the model reads them, and of the split.
        search: What a search looks at; None where nothing is searched.
        classes: Names of the classes; none where there are no classes.
    """

    recovery: Rows
    selection: Rows
    test: Rows
    source: str
    fingerprint: str
    search: Rows | None = None
    classes: tuple[str, ...] = ()

    noun: ClassVar[str] = "examples"

    @classmethod
    def judging(cls, test: Rows, *, source: str, classes: tuple[str, ...] = ()) -> Self:
        """Return splits with which a model is judged and nothing is learnt."""
        none = test.some(())
        return cls(recovery=none, selection=none, test=test, source=source, fingerprint="", classes=classes)

    @property
    def calibration(self) -> Any:
        """What calibration may look at."""
        return self.recovery

    def for_methods(self) -> Self:
        """Return the splits without the test examples: what is not there cannot leak."""
        return replace(self, test=self.test.some(()))

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts for a manifest or report."""
        counts = {name: len(part) for name in _PURPOSES if (part := getattr(self, name)) is not None}
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"source": self.source, self.noun: counts, **classes, "fingerprint": self.fingerprint}


class OfExamples(ABC):
    """Base of objectives of separate examples; a subclass says how each of them is learnt and judged."""

    data: Any
    size: ClassVar[int]
    """Examples of a step of training, where nobody says how many."""
    names: ClassVar[tuple[str, ...]]
    """Names of the figures of `each`, in their order."""

    @abstractmethod
    def each(self, model: Model, split: Split) -> dict[str, Tensor]:
        """Return figures of every example of a split by name, Tensor[N], the most important first; ``loss`` is one.

        Raises:
            NumericsError: When the model gives NaN or infinity.
        """

    def figures(self, model: Model, split: Split) -> dict[str, float]:
        """Return the means of `each`."""
        return {name: float(values.double().mean()) for name, values in self.each(model, split).items()}

    def training(self, *, steps: int, lr: float, batch: int | None, max_seconds: float | None) -> TrainConfig:
        """Settings of the training loop; `batch` counts examples."""
        size = min(self.size if batch is None else batch, len(self.data.recovery))
        return TrainConfig(steps=steps, lr=lr, batch=size, warmup=round(_WARMUP * steps), max_seconds=max_seconds)

    @property
    def splits(self) -> Mapping[str, str]:
        """What each split is that there is."""
        parts = {name: getattr(self.data, name) for name in SPLITS}
        return {name: f"{len(part)} {self.data.noun}" for name, part in parts.items() if part is not None and len(part)}

    @property
    def selects(self) -> bool:
        """Whether there are examples to choose by."""
        return len(self.data.selection) > 0

    def loss(self, model: Model) -> float:
        """Mean loss on the examples to choose by."""
        return self.figures(model, "selection")["loss"]

    def quality(self, loss: float) -> Mapping[str, float]:
        """The loss itself."""
        return {"loss": loss}

    def spread(self, count: int) -> Any:
        """Return so many of the training examples, evenly from all of them: what calibration looks at."""
        size = len(self.data.recovery)
        chosen = range(size) if count >= size else [index * size // count for index in range(count)]
        return self.data.recovery.some(chosen)
