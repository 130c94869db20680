"""Models side by side: counted, timed in turns, and scored on the same held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lissome.core.budget import TERMS, figure
from lissome.core.events import EventStream
from lissome.core.metrics import Metric, Provenance
from lissome.cost.counted import Counter
from lissome.cost.measured import Comparison, Timing, asked
from lissome.cost.sparsity import FEW, integer_note, sparse_note, unmarked_note
from lissome.engine.evaluate import Report
from lissome.models.integers import grids
from lissome.models.model import Model
from lissome.models.sparse import masks, sparsity
from lissome.pipeline.reports import Figure, Row

_SAME = 0.01  # a file of nearly the same size says nothing new


def counted_metric(name: str, value: float, provenance: Provenance = "counted") -> Metric:
    """A budget term as a metric."""
    kind = TERMS[name]
    return Metric(name=name, value=value, unit=kind.unit, better=kind.better, provenance=provenance)


def figures_of(values: Mapping[str, float], provenance: Provenance = "counted") -> dict[str, Figure]:
    """Plain values by budget term as figures without comparison."""
    return {name: Figure(metric=counted_metric(name, value, provenance)) for name, value in values.items()}


def file_figure(model: Model, counted: Mapping[str, Figure]) -> dict[str, Figure]:
    """Bytes of the file or files that a model was read from, where they are not those that it would be saved as."""
    path, weights = model.source.path, model.source.weights
    if path is None or not weights:
        return {}
    files = (path,) if path.is_file() else weights
    size = sum(file.stat().st_size for file in files)
    return file_sized(size) if abs(size / counted["disk"].metric.value - 1) > _SAME else {}


def file_sized(size: float) -> dict[str, Figure]:
    """So many bytes of a model's file, as a figure."""
    return {"file": Figure(metric=Metric(name="file", value=float(size), unit="bytes", provenance="counted"))}


def counted_figures(*models: Model) -> list[dict[str, Figure]]:
    """Counted figures of models; where one has compressed weights, also what all would take with them written out."""
    counts = [Counter(model).count() for model in models]
    found = [figures_of(one.figures()) for one in counts]
    if any(masks(model.module) or grids(model.module) for model in models):
        for figures, one in zip(found, counts, strict=True):
            size = Metric(name="dense_disk", value=float(one.dense_disk), unit="bytes", provenance="counted")
            figures["dense_disk"] = Figure(metric=size)
    return found


def sparse_notes(model: Model) -> tuple[str, ...]:
    """Say what zeros and integers do and do not do: a line for each, none for a model without them."""
    shares, placed = sparsity(model.module), grids(model.module)
    notes = []
    if shares:
        counts = Counter(model).count()
        notes.append(sparse_note(shares, (figure("disk", counts.disk), figure("disk", counts.dense_disk))))
    elif (share := _unmarked_zeros(model)) >= FEW:  # fewer are not worth it, and what rounding to four bits leaves
        notes.append(unmarked_note(share))
    if placed:
        notes.append(integer_note(len(placed), sorted({grid.bits for grid in placed.values()})))
    return tuple(notes)


def _unmarked_zeros(model: Model) -> float:
    """Share of zeros in the matrices of the blocks."""
    inside = {name for branch in model.anatomy.branches for name in branch.parameters if name.endswith(".weight")}
    found = [value for name, value in model.module.named_parameters() if name in inside and value.dim() == 2]
    return sum(int((weight == 0).sum()) for weight in found) / max(1, sum(weight.numel() for weight in found))


def timing_notes(model: Model) -> tuple[str, ...]:
    """Say what was timed of a model that writes no tokens; of others everybody knows."""
    return () if model.anatomy.task == "causal-lm" else (f"latency is of {asked(model)}",)


def origin_notes(model: Model, base: Model | None) -> tuple[str, ...]:
    """Say so when a model is compared with another than the one it was made from, as far as its manifest tells."""
    if base is None or model.manifest is None or base.source.sha256 is None:
        return ()
    made_from = model.manifest.base
    kin = {base.source.sha256, base.manifest.base.sha256 if base.manifest is not None else None}
    if made_from.sha256 is None or made_from.sha256 in kin or base.source.sha256 == model.source.sha256:
        return ()
    return (f"{model.name} was made from {made_from.name}, not from {base.name}: they differ in more than compression",)


def class_notes(report: Report) -> tuple[str, ...]:
    """Say how many texts an accuracy is of, and what guessing reaches; nothing of a report on text."""
    facts = report.provenance.get("data")
    if facts is None:
        return ()
    if "most_frequent" not in facts:
        return (f"figures on {facts['count']} {facts['of']}",)
    place, share = facts["most_frequent"]
    return (f"accuracy on {facts['texts']} texts; always saying {facts['labels'][place]!r} is right in {share:.1%}",)


def against(figures: Mapping[str, Figure], base: Mapping[str, Figure]) -> dict[str, Figure]:
    """Fill in the ratio to the original where no paired one is known."""
    return {
        name: replace(figure, ratio=figure.metric.value / base[name].metric.value)
        if figure.ratio is None and name in base and base[name].metric.value
        else figure
        for name, figure in figures.items()
    }


def timing_figures(timing: Timing) -> dict[str, Figure]:
    """Latency, prefill and decode of one model."""
    return {metric.name: Figure(metric=metric) for metric in timing.metrics}


def paired_timings(comparison: Comparison) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Figures of two models that were timed in turns; those of the second with paired ratios."""
    other = {
        metric.name: Figure(
            metric=metric,
            ratio=comparison.ratios[metric.name].value,
            ratio_low=comparison.ratios[metric.name].low,
            ratio_high=comparison.ratios[metric.name].high,
        )
        for metric in comparison.other.metrics
    }
    return timing_figures(comparison.base), other


def paired_scores(report: Report) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Figures of a baseline and a model from one evaluation; those of the model with paired ratios."""
    base = {metric.name: Figure(metric=metric) for metric in report.baseline}
    differences = {metric.name: metric for metric in report.differences}
    scored: dict[str, Figure] = {}
    for metric in report.metrics:
        ratio = differences.get("ppl_ratio") if metric.name == "ppl" else None
        scored[metric.name] = (
            Figure(metric=metric, ratio=ratio.value, ratio_low=ratio.low, ratio_high=ratio.high)
            if ratio is not None
            else Figure(metric=metric)
        )
    for name in ("kl", "agreement"):
        if name in differences:
            scored[name] = Figure(metric=differences[name])
    return base, scored


def rows(names: Sequence[str], figures: Sequence[Mapping[str, Figure]]) -> tuple[Row, ...]:
    """Rows of a table, the first of which is the original."""
    return tuple(
        Row(name=name, figures=dict(one) if index == 0 else against(one, figures[0]))
        for index, (name, one) in enumerate(zip(names, figures, strict=True))
    )


def quiet(events: EventStream | None) -> EventStream:
    """The given stream, or one that nobody listens to."""
    return events or EventStream()


def values(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Plain values by metric name."""
    return {name: figure.metric.value for name, figure in figures.items()}
