"""The main job: load, measure, plan, run the methods, measure again, check the budget, save."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes

from lissome.core.budget import Bounds, Term, Verdict
from lissome.core.config import check_seed
from lissome.core.events import EventStream
from lissome.core.files import json_text, read_json, write_json
from lissome.core.manifest import CURVE, Manifest, Step, read_manifest
from lissome.core.method import Context, Outcome, OutcomeKind
from lissome.cost.measured import compare as time_pair
from lissome.cost.memory import require_memory
from lissome.cost.oracle import SubnetCost
from lissome.cost.peak import give_back, peak_memory
from lissome.data.text import TextSplits
from lissome.engine.evaluate import Report, evaluate, evaluate_examples, evaluate_labels, versions
from lissome.engine.objective import LabelSplits
from lissome.engine.spans import Spans, SpanSplits
from lissome.models.artifact import WEIGHTS, save_model
from lissome.models.model import Model
from lissome.models.paging import park, spill
from lissome.pipeline.base import made_from
from lissome.pipeline.compare import (
    against,
    class_notes,
    counted_figures,
    figures_of,
    file_figure,
    paired_scores,
    paired_timings,
    quiet,
    rows,
    sparse_notes,
    timing_notes,
    values,
)
from lissome.pipeline.elsewhere import beside_the_file
from lissome.pipeline.job import MEASURED, Job, prepare
from lissome.pipeline.recipe import RecipeStep
from lissome.pipeline.reports import Figure, FitReport, Row, TableReport
from lissome.pipeline.run import RESULT, RunFolder, check_place

ORDERS = "orders.safetensors"
"""The order of channels and heads in which the curve's Subnets are leading slices."""

_CONFIRM_ROUNDS = 3  # the method only needs to know whether it may stop; the table is timed with more


@dataclass(frozen=True)
class _Result:
    """What the steps gave."""

    model: Model
    outcome: Outcome
    steps: tuple[Step, ...]
    kinds: tuple[OutcomeKind, ...]


def fit(  # noqa: PLR0913  the options of the command line, all by name
    model: Any = None,
    *,
    method: str | None = None,
    recipe: Path | None = None,
    budget: Bounds | None = None,
    data: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    max_memory: float | None = None,
    out: Path | str,
    events: EventStream | None = None,
) -> FitReport:
    """Make a model smaller and faster, to a budget, and measure the result; the same call again continues.

    Args:
        model: Anything `lissome.load` reads (default: the demo model, smollm2-135m).
        method: The one method to run (default: multipruner).
        recipe: A TOML file of several methods, instead of `method`.
        budget: Bounds such as ``"latency=85%"``, a `Budget`, or several of either (default: that bound, or what the
            recipe says).
        data: Text for calibration and test: a file or a `datasets` id (default: the shipped text).
        settings: ``key=value`` settings of the method.
        seed: The one source of randomness.
        max_memory: Bytes that the job may take above the imported libraries.
        out: Output folder; it becomes the artifact.
        events: Where progress is reported.

    Raises:
        LissomeError: One of the tree in `lissome.core.errors`; nothing half-written is left as if whole.
    """
    start, stream = time.monotonic(), quiet(events)
    check_seed(seed)
    check_place(Path(out))
    job = prepare(
        model, method=method, recipe=recipe, budget=budget, data=data, settings=settings, seed=seed, events=stream,
        ends="model",
    )  # fmt: skip
    folder = RunFolder(Path(out), job.identity())
    done = folder.finished()
    if done is not None:
        stream.message(f"{out} is finished; this is its stored result")
        return read_report(folder.out)
    plan = job.plan()
    require_memory(max_memory, plan.peak_memory)
    with folder.locked():
        result = _run_steps(job, folder, stream)
        table = _measure(job, result, folder, stream, start)
        _stage(job, result, table, folder)
        folder.publish()
    return read_report(folder.out)


def _run_steps(job: Job, folder: RunFolder, events: EventStream) -> _Result:
    model, steps, kinds, outcome = job.model, [], list[OutcomeKind](), None
    for index, step in enumerate(job.recipe.steps):
        started = time.monotonic()
        with peak_memory() as peak:
            outcome = step.method(step.config).run(model, _context(job, folder, index, step, events))
        model = outcome.value
        kinds.append(outcome.kind)
        give_back()
        steps.append(lineage(job, step, outcome, time.monotonic() - started, float(peak.above)))
    assert outcome is not None
    spilled = spill(model, folder.state / WEIGHTS)
    give_back()  # what held the weights before they were mapped
    return _Result(spilled, outcome, tuple(steps), tuple(kinds))


def _context(job: Job, folder: RunFolder, index: int, step: RecipeStep, events: EventStream) -> Context:
    return context_of(job, folder.step(index, step.name), events, confirm=_confirm(job, folder, events))


def context_of(job: Job, folder: Path, events: EventStream, **more: Any) -> Context:
    """Return what the methods of a job are given; `folder` is of one step."""
    return Context(
        budget=job.budget,
        original=job.original,
        seed=job.seed,
        events=events,
        folder=folder,
        data=job.data.for_methods(),
        cost=job.cost,
        tags=job.tags,
        **more,
    )


def _confirm(job: Job, folder: RunFolder, events: EventStream) -> Callable[[Model], Mapping[str, float]]:
    """Measure a cut model beside the original; what was measured is kept, so that a continued job decides the same."""
    relative = {term.name for term in job.budget.terms if term.relative}
    wanted = job.budget.names & MEASURED
    store = folder.state / "confirmed.json"

    def confirm(model: Model) -> Mapping[str, float]:
        if not wanted:
            return {}
        known = read_json(store) if store.exists() else {}
        key = json.dumps(model.anatomy.layers())
        if key not in known:
            timed = time_pair(job.model, model, rounds=_CONFIRM_ROUNDS, events=events)
            measured = timed.other.figures()
            known[key] = {
                name: job.original[name] * timed.ratios[name].value if name in relative else measured[name]
                for name in sorted(wanted)
            }
            write_json(store, known)
        return dict(known[key])

    return confirm


def lineage(job: Job, step: RecipeStep, outcome: Outcome, seconds: float, peak: float) -> Step:
    """Return what an artifact says of a step: its settings, what it saw, and what it took."""
    return Step(
        method=step.name,
        config=step.config.to_mapping(),
        seed=job.seed,
        data=job.data.fingerprint,
        after=outcome.metrics,
        seconds=seconds,
        peak_memory=peak,
        versions=versions(),
        details=dict(outcome.details),
    )


def _measure(job: Job, result: _Result, folder: RunFolder, events: EventStream, start: float) -> TableReport:
    """Time original and result in turns, score both on the same held-out text, and hold the budget against it."""
    small = result.model
    ended = [str(step.details["ended"]) for step in result.steps if "ended" in step.details]
    if all(kind == "policy" for kind in result.kinds) and not job.budget:
        return _unchanged(job, small, ended, start)
    timed = time_pair(job.model, small, events=events)
    _release(job.model, small)
    scored = _score(job, small, events)
    times, scores = paired_timings(timed), paired_scores(scored)
    counted = counted_figures(job.model, small)
    held = [_predicted(job, model) for model in (job.model, small)]
    _release(job.model, small)
    elsewhere = beside_the_file(job.model, small, folder.state, events)
    base = counted[0] | file_figure(job.model, counted[0]) | held[0] | times[0] | scores[0]
    sized = counted[1] | elsewhere.sized if "file" in base else counted[1]
    other = against(sized | held[1] | times[1] | scores[1], base)
    return TableReport(
        rows=(*rows((job.model.name, "result"), (base, other)), *elsewhere.rows),
        verdicts=job.budget.check(_held(job, base, other), values(base)),
        notes=(*sparse_notes(small), *class_notes(scored), *timing_notes(small), *ended, *elsewhere.notes),
        versions=versions(),
        seconds=time.monotonic() - start,
    )


def _unchanged(job: Job, model: Model, ended: Sequence[str], start: float) -> TableReport:
    """The table of a job that leaves the model as it was: nothing of it is worth being measured twice."""
    counted = counted_figures(job.model, model)
    base = counted[0] | file_figure(job.model, counted[0])
    return TableReport(
        rows=rows((job.model.name, "result"), (base, against(counted[1], base))),
        notes=(*ended, "the model itself is as it was; give a budget to have it measured all the same"),
        versions=versions(),
        seconds=time.monotonic() - start,
    )


def _predicted(job: Job, model: Model) -> dict[str, Figure]:
    """Bounded figures of a model that are neither counted nor measured: the memory of a run."""
    if "memory" not in job.budget.names:
        return {}
    return figures_of({"memory": SubnetCost(model).figures(model.space().full)["memory"]}, "predicted")


def _score(job: Job, small: Model, events: EventStream) -> Report:
    """Score original and result on held-out text or texts; a head that has learnt nothing has no score."""
    if isinstance(job.data, LabelSplits):
        base = None if job.untrained else job.model
        return evaluate_labels(small, job.data.test, baseline=base, seed=job.seed, events=events)
    if isinstance(job.data, SpanSplits):
        base, judge, count = None if job.untrained else job.model, Spans(job.data), len(job.data.test)
        return evaluate_examples(
            small, lambda one: judge.each(one, "test"), count=count, facts={"count": count, "of": "questions"},
            baseline=base, seed=job.seed, events=events,
        )  # fmt: skip
    assert isinstance(job.data, TextSplits)  # no method makes a smaller model of images yet
    return evaluate(small, baseline=job.model, text=job.data, seed=job.seed, events=events, release=_release)


def _release(*models: Model) -> None:
    """Give the memory of models back that are not needed for now."""
    for model in models:
        park(model)
    give_back()


def _held(job: Job, base: Mapping[str, Figure], other: Mapping[str, Figure]) -> dict[str, float]:
    """Figures to hold against the budget: for a relative bound the original's value times the paired ratio."""
    got = values(other)
    for term in job.budget.terms:
        ratio = other[term.name].ratio if term.name in other else None
        if term.relative and ratio is not None:
            got[term.name] = base[term.name].metric.value * ratio
    return got


def _stage(job: Job, result: _Result, table: TableReport, folder: RunFolder) -> None:
    """Put the artifact together: weights, manifest, curve, the order of channels, the result table, the recipe."""
    small, outcome = result.model, result.outcome
    last = replace(result.steps[-1], after=tuple(figure.metric for figure in table.rows[1].figures.values()))
    before = tuple(figure.metric for figure in table.rows[0].figures.values())
    manifest = Manifest(
        name=f"{job.model.name} {f'at {job.budget}' if job.budget else 'after ' + result.steps[-1].method}",
        base=made_from(job.model),
        tags=tuple(sorted(job.recipe.check(job.tags, job.budget) - job.model.anatomy.tags)),
        space=outcome.space,
        subnet=outcome.details.get("subnet"),
        layers=tuple(small.anatomy.layers()),
        lineage=(replace(result.steps[0], before=before), *result.steps[1:-1], last)
        if len(result.steps) > 1
        else (replace(last, before=before),),
    )
    answer = {**table.to_json(), "job": job.identity(), "data": job.data.describe()}
    extras: dict[str, bytes | Path] = {
        RESULT: json_text(answer, RESULT).encode(),
        CURVE: "".join(json_text(point.to_json(), CURVE) + "\n" for point in outcome.curve).encode(),
        "recipe.toml": replace(job.recipe, budget=tuple(str(term) for term in job.budget.terms)).to_toml().encode(),
    }
    extras |= outcome.files
    if outcome.tensors:
        extras[ORDERS] = safetensors_bytes(
            {name: tensor.int().contiguous() for name, tensor in outcome.tensors.items()}
        )
    save_model(small, folder.staged, manifest=manifest, extras=extras)


def read_report(out: Path) -> FitReport:
    """Read the stored result of a finished job.

    Raises:
        ArtifactError: When the folder is damaged.
    """
    fields, manifest = read_json(out / RESULT), read_manifest(out)
    return FitReport(
        out=out,
        sha256=manifest.files[WEIGHTS].sha256,
        rows=tuple(Row.from_json(row) for row in fields["rows"]),
        verdicts=tuple(Verdict(Term.parse(one["term"]), one["limit"], one["got"]) for one in fields["verdicts"]),
        notes=tuple(fields["notes"]),
        versions=fields["versions"],
        seconds=fields["seconds"],
    )
