"""The verbs besides `fit` and `generate`: plan, measure, evaluate, export, inspect, and taking a step of a curve."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from lissome.core.config import check_seed
from lissome.core.errors import ArtifactError, ExportError, SubnetError, UnknownNameError, unknown_name
from lissome.core.events import EventStream
from lissome.core.manifest import CURVE, read_curve, read_manifest, verify_files
from lissome.core.registry import MethodInfo, methods, public_files
from lissome.cost.counted import Counter
from lissome.cost.device import Device
from lissome.cost.measured import Target
from lissome.cost.measured import compare as time_pair
from lissome.cost.measured import measure as time_one
from lissome.cost.passes import new_table
from lissome.cost.peak import peak_memory
from lissome.engine.decode.packed import accelerated
from lissome.engine.evaluate import evaluate as score
from lissome.engine.evaluate import versions
from lissome.models.adapters import load_adapters, merged_copy, rank_space, remove_lora
from lissome.models.adapters.folder import SUPER
from lissome.models.adapters.prompts import prompt_of
from lissome.models.artifact import save_model
from lissome.models.binding import extract, reorder
from lissome.models.example import described, example
from lissome.models.integers import grids
from lissome.models.labels import answers_by_spans, labels_of
from lissome.models.model import Model
from lissome.models.nested.folder import nested_folder
from lissome.models.packed import kernels_of
from lissome.models.space import Space
from lissome.models.sparse import sparsity
from lissome.ops.kernels.native import choice as kernel_choice
from lissome.pipeline import decoding
from lissome.pipeline.base import base_of
from lissome.pipeline.compare import (
    class_notes,
    counted_figures,
    file_figure,
    origin_notes,
    paired_scores,
    paired_timings,
    quiet,
    rows,
    sparse_notes,
    timing_figures,
    timing_notes,
)
from lissome.pipeline.fitting import ORDERS
from lissome.pipeline.job import prepare
from lissome.pipeline.judging import score_examples
from lissome.pipeline.loading import load
from lissome.pipeline.nested_scoring import evaluate_nested
from lissome.pipeline.nested_timing import measure_nested
from lissome.pipeline.places import check_export_place, check_extract_place, check_table_place
from lissome.pipeline.reports import InspectReport, PlanReport, TableReport

if TYPE_CHECKING:
    from lissome.export._report import ExportReport


def plan(model: Any = None, *, max_memory: float | None = None, **options: Any) -> PlanReport:
    """Say what `fit` would do with the same arguments, without doing it.

    Args:
        model: As in `fit`.
        max_memory: As in `fit`.
        options: The other arguments of `fit` except `out`; and `device`, a latency table of another machine
            (``lissome bench --save-table``) to plan for.

    Raises:
        LissomeError: As `fit`, for all that can be known before the work.
    """
    from lissome.cost.memory import require_memory

    report = prepare(model, **options).plan()
    require_memory(max_memory, report.peak_memory)
    return report


def measure(
    target: Any, against: Any = None, *, save_table: Path | None = None, events: EventStream | None = None
) -> TableReport:
    """Time a model, beside another one in turns when it is given; count and weigh both.

    Args:
        target: Anything `load` reads.
        against: The original to compare with.
        save_table: Where to write a latency table of `target` on this machine, for `plan --device` elsewhere.
        events: Where progress is reported.

    Raises:
        LissomeError: When a model cannot be read, or no one request suits both.
    """
    start, stream = time.monotonic(), quiet(events)
    if nested_folder(target) is not None or nested_folder(against) is not None:
        return measure_nested(target, against, save_table=save_table, events=stream)
    if save_table is not None:
        check_table_place(Path(save_table))
    model = load(target, events=stream)
    base, kernels = None, None
    with peak_memory() as peak:
        if against is None:
            (own,) = counted_figures(model)
            own |= file_figure(model, own)
            entrant, kernels = _entrant(model, plain=save_table is not None)
            table = rows((model.name,), (own | timing_figures(time_one(entrant, events=stream)),))
        else:
            base = load(against, events=stream)
            theirs, own = counted_figures(base, model)
            theirs, own = theirs | file_figure(base, theirs), own | file_figure(model, own)
            entrant, kernels = _entrant(model, plain=save_table is not None)
            first, second = paired_timings(time_pair(_entrant(base)[0], entrant, events=stream))
            table = rows((base.name, model.name), (theirs | first, own | second))
    if save_table is not None:
        new_table(model, events=stream).save(Path(save_table))
    notes = (
        *origin_notes(model, base),
        *((kernels,) if kernels else sparse_notes(model)),
        *timing_notes(model),
        f"peak memory of the measurement: {peak.above / 2**20:.0f} MiB above what was loaded",
    )
    return TableReport(rows=table, notes=notes, versions=versions(), seconds=time.monotonic() - start)


def _entrant(model: Model, *, plain: bool = False) -> tuple[Target, str | None]:
    """What times a model: kernels for zeros, where its folder says so, and what they are."""
    kernels = None if plain else kernels_of(model)
    return (model, None) if kernels is None else accelerated(model, kernels)


def evaluate(  # noqa: PLR0913  the options of the command line, all by name
    target: Any,
    against: Any = None,
    *,
    text: str | Path | None = None,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    events: EventStream | None = None,
) -> TableReport:
    """Score a model on held-out text, choice tasks or labelled examples, paired with another one when it is given.

    Args:
        target: Anything `load` reads.
        against: The original to compare with.
        text: A file or a `datasets` id (default: the test part of the shipped text, unless tasks are named).
        tasks: Names of choice tasks, e.g. ``("piqa",)``.
        data: For a model that learnt classes, masks or answers: labelled texts or images, images with masks, or
            questions. Of a source that keeps some for tests, those are taken; of others all.
        limit: Questions per task.
        seed: Seed of the draw of questions.
        events: Where progress is reported.

    Raises:
        LissomeError: When a model, a text or a task cannot be used.
    """
    check_seed(seed)
    start, stream = time.monotonic(), quiet(events)
    if not tasks and data is None and (nested_folder(target) is not None or nested_folder(against) is not None):
        return evaluate_nested(target, against, text=text, seed=seed, events=stream)
    model = load(target, events=stream)
    base = None if against is None else load(against, events=stream)
    if data is not None or labels_of(model) or model.anatomy.task == "image" or answers_by_spans(model):
        report = score_examples(model, base, data, seed=seed, events=stream)
    else:
        chosen = text if text is not None else None if tasks else "shipped"
        report = score(model, baseline=base, text=chosen, tasks=tuple(tasks), limit=limit, seed=seed, events=stream)
    first, second = paired_scores(report)
    table = rows((model.name,), (second,)) if base is None else rows((base.name, model.name), (first, second))
    notes = (*origin_notes(model, base), *class_notes(report))
    return TableReport(rows=table, notes=notes, versions=versions(), seconds=time.monotonic() - start)


def export(
    target: Any,
    to: str,
    out: Path | str,
    *,
    type: str | None = None,
    pad: bool = False,
    events: EventStream | None = None,
) -> ExportReport:
    """Write a model in another format.

    Args:
        target: Anything `load` reads.
        to: Name of the format; each is one file of `lissome.export`.
        out: File or folder to write.
        type: Number type, for formats that have several.
        pad: Fill uneven blocks up with zeros where the format cannot say their sizes.
        events: Where progress is reported.

    Raises:
        UnknownNameError: When there is no such format.
        ConfigError: When `out` cannot be written, is the model itself, or a file that lissome did not write.
        ExportError: When the format cannot express the model.
    """
    formats = {info.name: info.module for info in public_files("lissome.export")}
    if to not in formats:
        raise UnknownNameError(unknown_name("export format", to, formats))
    options = {"type": type} if type is not None else {}
    check_export_place(target, Path(out))
    model = load(target, events=events)
    if prompt_of(model) is not None:
        raise ExportError(
            f"{model.name} has virtual tokens, which no format holds; its folder opens with lissome.load."
        )
    merged, share = merged_copy(model), sparsity(model.module)
    report: ExportReport = importlib.import_module(formats[to]).export(
        merged, Path(out), pad=pad, events=events, **options
    )
    notes = ["adapters are merged into the weights"] if merged is not model else []
    notes += ["zeros are written out: this format does not compress them"] if share else []
    notes += ["integers are written out as the numbers that they stand for"] if grids(model.module) else []
    return replace(report, notes=(*report.notes, *notes))


def inspect(target: Any, *, events: EventStream | None = None) -> InspectReport:
    """Say what is in a model.

    Raises:
        UnsupportedModelError: When its parts are not understood.
    """
    folder = nested_folder(target)
    if folder is not None:
        return decoding.inspect(folder)
    model = load(target, events=events)
    counter, space = Counter(model), model.space()
    counts = counter.count()
    return InspectReport(
        name=model.name,
        kind="model",
        facts={
            "architecture": model.anatomy.architecture,
            "family": model.anatomy.family.name,
            "task": model.anatomy.task,
            "source": None if model.source.path is None else str(model.source.path),
            "sha256": model.source.sha256,
            "hidden": model.anatomy.hidden,
            "vocabulary": model.anatomy.vocabulary,
            "embedding_params": counts.embedding_params,
            "cache_bytes": counts.cache_bytes,
            "axes": len(space.axes),
            **_facts_of_recording(model, space),
            "layers": model.anatomy.layers(),
            "tags": list(model.manifest.tags) if model.manifest else ["dense"],
            **{f"zeros of {of}": f"{share:.1%}" for of, share in sparsity(model.module).items()},
            **({"labels": list(labels_of(model))} if labels_of(model) else {}),
            **({"integer layers": len(grids(model.module))} if grids(model.module) else {}),
        },
        figures=counts.figures(),
    )


def _facts_of_recording(model: Model, space: Space) -> dict[str, Any]:
    """What was found in a network that was read from a recording, and why the rest of it cannot change."""
    if not model.anatomy.inputs:
        return {}
    return {
        "input": described(example(model)),
        "space": {axis.name: list(axis.choices) for axis in space.axes},
        "rigid": dict(model.anatomy.rigid),
    }


def inspect_device(*, events: EventStream | None = None) -> InspectReport:
    """Measure what this machine can do: speed, memory bandwidth, and which kernels it gets, and why."""
    quiet(events).message("measuring this machine, about three seconds")
    device, kernels = Device.here(calibrate=True), kernel_choice()
    facts = {
        **device.to_mapping(),
        "fingerprint": device.fingerprint,
        "kernels": kernels.name,
        "kernels_why": kernels.why,
        "instruction_sets": [
            f"{level.name} ({level.why if not level.usable else 'usable'})" for level in kernels.levels
        ],
    }
    return InspectReport(name=device.name, kind="device", facts=facts, figures={})


def extract_step(artifact: Path | str, step: int, out: Path | str, *, events: EventStream | None = None) -> Path:
    """Cut the model of an earlier step of an artifact's curve out of its base.

    Args:
        artifact: A folder that `fit` made.
        step: Which accepted step; 0 is the original.
        out: Where the model goes.
        events: Where progress is reported.

    Raises:
        ArtifactError: When the folder has no curve of one model from its base on, or its curve, its orders or its
            base are not what they were.
        SubnetError: When there is no such step.
    """
    folder = Path(artifact)
    check_extract_place(folder, Path(out))
    manifest = read_manifest(folder)
    steps = {name: record for name, record in manifest.files.items() if name in (CURVE, ORDERS)}
    verify_files(folder, replace(manifest, files=steps))  # without its order, a step would be another model
    points = {point.step: point for point in read_curve(folder)}
    if not points or manifest.space is None:
        raise ArtifactError(f"{folder} holds no curve of steps; only results of removal do.")
    if "elastic" in manifest.tags:
        raise ArtifactError(f"{folder} is a super-network, not one model's curve; cut with: lissome extract {folder}")
    if step not in points:
        raise SubnetError(f"there is no step {step}; {folder} has steps 0 to {max(points)}.")
    cut = replace(
        manifest,
        name=f"{manifest.base.name} after step {step} of {folder.name}",
        subnet=points[step].subnet,
        lineage=tuple(replace(one, after=()) for one in manifest.lineage),
    )
    if (folder / SUPER).is_dir():
        chosen = _with_ranks(load(folder, events=events), folder / SUPER, points[step].subnet)
        return save_model(chosen, Path(out), manifest=cut)
    if len(manifest.lineage) > 1:
        before = ", ".join(one.method for one in manifest.lineage[:-1])
        raise ArtifactError(
            f"the curve of {folder} starts at what {before} made of its base, which is not kept; fit step by step, "
            "each into a folder of its own, to extract from the last."
        )
    base = merged_copy(base_of(folder, manifest.base, events))  # as removal does
    if (folder / ORDERS).exists():
        reorder(base, {name: order.long() for name, order in load_file(folder / ORDERS).items()})
    space = Space.from_json(manifest.space)
    if not {axis.name for axis in space.axes} <= base.anatomy.owners.keys():
        raise ArtifactError(f"the adapters of {folder} were merged into its weights; fit again with another choice.")
    small: Model = extract(base, points[step].subnet, space=space)
    return save_model(small, Path(out), manifest=replace(cut, layers=tuple(small.anatomy.layers())))


def _with_ranks(model: Model, folder: Path, subnet: Mapping[str, int]) -> Model:
    """Give a model other ranks of the adapters that were trained for all of them."""
    remove_lora(model)
    load_adapters(model, folder)
    chosen: Model = extract(model, subnet, space=rank_space(model))
    return chosen


def list_methods() -> list[MethodInfo]:
    """All methods: name, family, summary, module."""
    return list(methods().values())
