"""A job before it starts: everything it needs, resolved and checked, and what it is expected to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lissome import __version__
from lissome.core.budget import TERMS, Bounds, Budget
from lissome.core.config import check_seed
from lissome.core.errors import ConfigError, DataError, UnsupportedModelError
from lissome.core.events import EventStream
from lissome.core.method import ModelCard, OutcomeKind, Plan
from lissome.core.seeds import derive
from lissome.cost.duration import measuring_seconds, speeds_here
from lissome.cost.memory import kept_weights
from lissome.cost.oracle import SubnetCost
from lissome.cost.passes import Table, read_table, table_here
from lissome.data.images import read_images
from lissome.data.labelled import read_labelled
from lissome.data.masks import read_masks
from lissome.data.questions import holds_questions, read_questions
from lissome.data.sources import check_source
from lissome.data.text import TextSplits, WindowPlan, text_splits
from lissome.engine.objective import LabelSplits, label_splits
from lissome.engine.pictures import ImageSplits, image_splits
from lissome.engine.segments import SegmentSplits, segment_splits
from lissome.engine.spans import SpanSplits, span_splits
from lissome.models.adapters.elastic import linear_shapes
from lissome.models.anatomy import TASKS
from lissome.models.labels import answers_by_spans, labels_of, with_answers, with_image_labels, with_labels
from lissome.models.model import Model
from lissome.pipeline.compare import sparse_notes
from lissome.pipeline.loading import load, weights_of
from lissome.pipeline.recipe import Recipe
from lissome.pipeline.reports import PlanReport

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BUDGET = ("latency=85%",)
MEASURED = frozenset({"latency", "prefill", "decode"})
"""Terms that a job predicts with a latency table and confirms by measurement."""
WINDOWS = WindowPlan(length=256, calibration=4, selection=8, test=40, recovery=1024)
"""1,024 tokens to choose by, from four places in the text; 10,240 to judge by."""
SEARCHED = replace(WINDOWS, selection=16)
"""As many again for a search to look at."""


Data = TextSplits | LabelSplits | SpanSplits | ImageSplits | SegmentSplits


@dataclass(frozen=True, kw_only=True)
class Job:
    """A resolved job.

    Attributes:
        model: The original.
        recipe: Methods in order.
        budget: The bounds.
        data: The text, or the labelled texts or images, all splits.
        seed: The one source of randomness.
        table: Latency table of this (or the given) device; None when the budget needs none.
        untrained: Whether the model has a new head, which has learnt nothing yet.
    """

    model: Model
    recipe: Recipe
    budget: Budget
    data: Data
    seed: int
    table: Table | None
    untrained: bool = False

    @cached_property
    def cost(self) -> SubnetCost:
        """Figures of any Subnet of the original."""
        return SubnetCost(self.model, table=self.table)

    @cached_property
    def original(self) -> dict[str, float]:
        """Figures of the original by budget term."""
        return self.cost.figures(self.model.space().full)

    @cached_property
    def tags(self) -> frozenset[str]:
        """State of the original, which the `needs` of methods speak of."""
        return tags_of(self.model) | ({"untrained"} if self.untrained else set())

    @cached_property
    def card(self) -> ModelCard:
        """Facts for the plans."""
        return ModelCard(
            name=self.model.name,
            family=self.model.anatomy.family.name,
            architecture=self.model.anatomy.architecture,
            tags=self.tags,
            figures=self.original,
            reachable=self.cost.reachable(self.model.space()),
            hidden=self.model.anatomy.hidden,
            layers=len(self.model.anatomy.blocks),
            vocabulary=self.model.anatomy.vocabulary,
            windows=_windows(self.data),
            linears=linear_shapes(self.model),
        )

    def identity(self) -> dict[str, Any]:
        """What makes this job itself: the same command continues, another is refused."""
        return {
            "lissome": __version__,
            "model": weights_of(self.model),
            "recipe": self.recipe.to_json(),
            "budget": str(self.budget),
            "seed": self.seed,
            "data": self.data.fingerprint,
        }

    def plan(self) -> PlanReport:
        """Check the order and predict result and cost, without touching a weight.

        Raises:
            OrderError: When the methods' order cannot work.
            BudgetError: When a bound cannot be followed or reached.
        """
        tags = self.recipe.check(self.tags, self.budget)
        plans: list[Plan] = [step.method(step.config).plan(self.card, self.budget) for step in self.recipe.steps]
        worst = max(plans, key=lambda plan: plan.peak_memory)
        seconds = [plan.seconds for plan in plans if plan.seconds is not None]
        predicted, at_most = _merged(plans)
        return PlanReport(
            model=self.model.name,
            recipe=self.recipe.to_json(),
            budget=str(self.budget),
            original=self.original,
            predicted=predicted,
            at_most=tuple(sorted(at_most)),
            reachable=self.card.reachable,
            provenance={name: self.cost.provenance(name) for name in self.original},
            peak_memory=worst.peak_memory,
            memory_parts=worst.memory_parts,
            seconds=sum(seconds) + self._measuring(predicted) if len(seconds) == len(plans) else None,
            tags=tuple(sorted(tags)),
            notes=(*self._zeros(), *(note for plan in plans for note in plan.notes)),
        )

    def _zeros(self) -> tuple[str, ...]:
        """What zeros and integers of the original do and do not do; methods that leave zeros say it themselves."""
        spoken = any("sparse" in step.method.leaves for step in self.recipe.steps)
        return () if spoken else sparse_notes(self.model)

    def _measuring(self, predicted: Mapping[str, float]) -> float:
        kept = kept_weights(self.card, predicted)
        return measuring_seconds(
            self.card,
            speeds_here(),
            tokens=self.data.test.numel()
            if not isinstance(self.data, ImageSplits | SegmentSplits)
            else len(self.data.test),
            kept=kept,
        )


def _merged(plans: Sequence[Plan]) -> tuple[dict[str, float], frozenset[str]]:
    """Expected figures after all steps: each expects them of the original, so that together they go at least as far."""
    figures: dict[str, float] = {}
    several: set[str] = set()
    for plan in plans:
        several |= figures.keys() & plan.figures.keys()
        for name, value in plan.figures.items():
            better = min if TERMS[name].better == "lower" else max
            figures[name] = better(value, figures.get(name, value))
    return figures, frozenset(several.union(*(plan.at_most for plan in plans)))


def tags_of(model: Model) -> frozenset[str]:
    """State of a model: what its manifest says (dense without one), and what its anatomy is."""
    known = frozenset(model.manifest.tags) if model.manifest else frozenset({"dense"})
    return known | model.anatomy.tags


def prepare(  # noqa: PLR0913  the options of the command line, all by name
    model: Any = None,
    *,
    method: str | None = None,
    recipe: Path | None = None,
    budget: Bounds | None = None,
    data: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: Path | None = None,
    events: EventStream | None = None,
    ends: OutcomeKind | None = None,
) -> Job:
    """Resolve what a user asked for; arguments as in `lissome.pipeline.plan`.

    `ends` is what the methods must make; None for anything.

    Raises:
        LissomeError: For anything that cannot be understood, read or followed.
    """
    check_seed(seed)
    if recipe is not None and (method is not None or settings):
        raise ConfigError("give either a recipe or a method with settings, not both.")
    steps = Recipe.read(Path(recipe)) if recipe is not None else Recipe.of(method, settings)
    if ends is not None:
        steps.require(ends)
    bounds = _bounds(budget, steps)
    loaded = load(DEFAULT_MODEL if model is None else model, events=events)
    steps.check(tags_of(loaded), bounds)
    ready, splits = data_for(loaded, data, seed=seed, searched=steps.makes == "space")
    table = None
    if device is not None:
        table = read_table(Path(device))
    elif bounds.names & MEASURED:
        table = table_here(ready, events=events)
    return Job(
        model=ready, recipe=steps, budget=bounds, data=splits, seed=seed, table=table, untrained=ready is not loaded
    )


def _bounds(given: Bounds | None, recipe: Recipe) -> Budget:
    """The budget that was given, else the recipe's, else the default where one is needed."""
    if given is not None:
        return Budget.parse(given)
    written = recipe.budget or (DEFAULT_BUDGET if recipe.follows_budget else ())
    return Budget.parse(written) if written else Budget()


def _windows(data: Data) -> tuple[int, int]:
    """Number and length of what calibration looks at; an image counts as one."""
    seen = data.calibration
    return (seen.shape[0], seen.shape[1]) if isinstance(seen, Tensor) else (len(seen), 1)


def data_for(model: Model, source: str | Path | None, *, seed: int, searched: bool = False) -> tuple[Model, Data]:
    """Read the data of a job: text for what has a perplexity, labelled texts for an encoder, labelled images.

    Args:
        model: The model.
        source: A file, a folder or a `datasets` id; None is the text that ships, which says nothing of classes.
        seed: Of the windows, and of a new head.
        searched: Whether there is to be a split for a search too.

    Returns:
        The model, with a new head where the classes are new to it; and the data.

    Raises:
        DataError: When the data cannot be used, or none is given where classes are to be learnt.
        UnsupportedModelError: When the model reads something else.
    """
    check_source(source)
    task = model.anatomy.task
    if task == "causal-lm":
        return model, text_splits(model, source, SEARCHED if searched else WINDOWS, seed=seed)
    if task not in {"encoder", "image"}:
        raise UnsupportedModelError(f"{model.name} is {TASKS[task]}; jobs have data for text and for images alone.")
    what = "an encoder" if task == "encoder" else "a network of images"
    if source is None:
        kind = "labelled texts, or questions" if task == "encoder" else "labelled images"
        raise DataError(f"{model.name} is {what}: what it is to learn are {kind}; give them with --data.")
    if "input_points" in model.anatomy.inputs:
        return model, segment_splits(model, read_masks(source))
    if task == "image":
        images = read_images(source)
        with_head = with_image_labels(model, images.classes, seed=derive(seed, "head"))
        return with_head, image_splits(with_head, images)
    if answers_by_spans(model) or holds_questions(source):
        ready = model if answers_by_spans(model) else with_answers(model, seed=derive(seed, "head"))
        return ready, span_splits(ready, read_questions(source))
    known = labels_of(model)
    found = read_labelled(source, classes=known)
    if len(set(found.labels)) < 2:
        raise DataError(f"{found.name} has texts of one class alone; at least two classes are needed.")
    ready = model if known else with_labels(model, found.classes, seed=derive(seed, "head"))
    return ready, label_splits(ready, found, searched=searched)
