"""What a method is: one published system, one file, one class, one Config.

The life of a run: the pipeline reads `needs` and `leaves` of all methods and refuses an impossible order;
`plan` predicts cost without touching a weight; `run` does the work through engine loops, reporting to the event
stream and checkpointing in its own folder; what comes out is an `Outcome`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig
from lissome.core.events import EventStream
from lissome.core.metrics import Metric
from lissome.core.typed import as_json, from_json

if TYPE_CHECKING:
    from lissome.core.protocols import CostOracle, Splits

OutcomeKind = Literal["model", "space", "policy", "device", "weights", "certificate"]


@dataclass(frozen=True)
class LinearShape:
    """One linear layer of the blocks.

    Attributes:
        outputs: Rows of its weight.
        inputs: Columns of its weight.
        group: Label of the group that an elastic adapter on it belongs to by default; None where there is none.
        transposed: Whether its weight is stored as [inputs, outputs].
    """

    outputs: int
    inputs: int
    group: str | None = None
    transposed: bool = False

    @property
    def stored(self) -> tuple[int, int]:
        """Shape of its weight."""
        return (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a plan may know: facts about a model, no weights.

    Attributes:
        name: How the user called it.
        family: Anatomy family, e.g. ``"decoder"``.
        architecture: The `model_type` of its configuration.
        tags: State of the model that `needs`/`leaves` speak of, e.g. ``{"dense", "decoder"}``.
        figures: Counted and measured figures by budget term, in the terms' units.
        reachable: Smallest figures that structure removal can reach, by budget term.
        hidden: Residual width.
        layers: Number of blocks.
        vocabulary: Number of tokens.
        windows: Shape of the job's calibration windows [n, T].
        linears: Every linear layer of the blocks that the model calls, by name.
    """

    name: str
    family: str
    architecture: str
    tags: frozenset[str]
    figures: Mapping[str, float]
    reachable: Mapping[str, float]
    hidden: int
    layers: int
    vocabulary: int
    windows: tuple[int, int] = (4, 256)
    linears: Mapping[str, LinearShape] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a method expects to happen.

    Attributes:
        figures: Predicted figures of the result by budget term.
        at_most: Those of them that are only bounds: a cost will be there or below, a speed there or above.
        peak_memory: Predicted peak resident bytes above the imported libraries.
        memory_parts: What that peak is made of, in bytes.
        seconds: Predicted run time, or None when it cannot be known.
        notes: Lines for a person.
    """

    figures: Mapping[str, float]
    peak_memory: float
    memory_parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    at_most: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run is given besides the model.

    Attributes:
        budget: The bounds of the whole job.
        original: Figures of the original model by budget term, for relative bounds.
        seed: The one source of randomness.
        events: Where progress is reported.
        folder: A folder of this step alone, for checkpoints; it survives a kill.
        data: Calibration, selection and recovery text (the test split is not reachable from a method).
        cost: Predicts the budget's terms for any Subnet of the model.
        memory_limit: Bytes that cached activations may take before they are spilled to `folder`.
        confirm: Measures a finished model and returns figures of the budget's predicted terms (empty when all are
            counted); a method whose prediction was too kind goes on from there.
        tags: State of the model, which `needs` and `leaves` speak of.
    """

    budget: Budget
    original: Mapping[str, float]
    seed: int
    events: EventStream
    folder: Path
    data: Splits
    cost: CostOracle
    memory_limit: int = 256 << 20
    confirm: Callable[[Any], Mapping[str, float]] = lambda _: {}
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One intermediate result of a run, small enough to store for every accepted step.

    Attributes:
        step: Number of accepted changes so far (0 is the original).
        change: What was changed last, e.g. ``"layers.3.mlp.width 1536->1408"``.
        subnet: The Subnet as JSON, of the Space in the manifest.
        figures: Counted or predicted figures by budget term.
        quality: Numbers on the calibration or selection text, e.g. ``{"ppl": 31.2}``.
    """

    step: int
    change: str
    subnet: Mapping[str, int]
    figures: Mapping[str, float]
    quality: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the point as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields

    @classmethod
    def from_json(cls, fields: Any, where: str = "curve point") -> CurvePoint:
        """Rebuild a point from `to_json`.

        Raises:
            ArtifactError: When a field is unknown, missing or of another type.
        """
        return from_json(cls, fields, where)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a run.

    Attributes:
        kind: What `value` is.
        value: The model, space, policy … itself.
        metrics: Numbers that the method measured on its own way.
        curve: Every accepted step, from the original to the result.
        space: The Space that the curve's Subnets belong to, as JSON.
        details: Anything else worth keeping in the lineage (JSON-able).
        tensors: Tensors worth keeping beside the weights, by name (an order of channels, say).
        files: Files worth keeping in the artifact, by path, one folder deep at most (adapters of all sizes, say), as
            bytes, or as where they lie.
    """

    kind: OutcomeKind
    value: Any
    metrics: tuple[Metric, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    space: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes | Path] = field(default_factory=dict)


class Method(abc.ABC):
    """Base of all methods. The file's name is the method's name; its docstring's first line is the summary."""

    needs: ClassVar[frozenset[str]] = frozenset()
    leaves: ClassVar[frozenset[str]] = frozenset()
    removes: ClassVar[frozenset[str]] = frozenset()
    budget_terms: ClassVar[frozenset[str]] = frozenset()
    makes: ClassVar[OutcomeKind] = "model"
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    def follows_budget(self) -> bool:
        """Whether the budget decides how far it goes; False when its settings do, and no budget is needed."""
        return True

    @abc.abstractmethod
    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the result and its cost without touching a weight, in under a second."""

    @abc.abstractmethod
    def run(self, model: Any, context: Context) -> Outcome:
        """Do the work; continue from `context.folder` when a former run was interrupted."""


def expected_figures(card: ModelCard, budget: Budget) -> dict[str, float]:
    """Return what a method that follows the budget will stay within, in the terms' units.

    A bound that the original meets already expects no change; one that keeps a figure from getting better than that
    (``params>=50%``) says nothing of how far to go, and is left out.

    Raises:
        BudgetUnmetError: When a bound lies outside what can be reached; names the term and the range.
    """
    budget.require_reachable(card.reachable, card.figures, card.figures)
    figures = {}
    for term in budget.terms:
        lower = term.kind.better == "lower"
        if (term.op == "<=") == lower:
            nearest = min if lower else max
            figures[term.name] = nearest(term.limit(card.figures), card.figures[term.name])
    return figures
