"""Super-networks: making one (`supernet`), and cutting the model for a budget out of one that was searched (`extract`).

An elastic artifact is an artifact like any other (the whole network, its Space in the manifest), and beside it
``elastic.json``: what a search needs. A search adds ``found.json``, every Subnet that was evaluated with the front,
and, for networks with batch norms, the statistics of those that can be taken: so that `extract` needs no data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lissome.core.budget import TERMS, Bounds, Budget
from lissome.core.errors import ArtifactError, BudgetUnmetError, SubnetError, unknown_name
from lissome.core.events import EventStream
from lissome.core.files import atomic_file, json_text, locked, read_json, sha256_file
from lissome.core.manifest import CURVE, MANIFEST, FileRecord, Manifest, Step, read_curve, read_manifest, write_manifest
from lissome.core.method import Outcome
from lissome.core.metrics import Metric
from lissome.core.typed import as_json, from_json
from lissome.cost.counted import Counter
from lissome.cost.peak import peak_memory
from lissome.data.assets import assets
from lissome.engine.evaluate import versions
from lissome.engine.norms import adapted, batch_norms, statistics, take_statistics
from lissome.engine.search import Found, Point
from lissome.engine.search.goal import QUALITIES
from lissome.engine.spaces import combinations
from lissome.models.adapters import adapters, merge_lora
from lissome.models.artifact import WEIGHTS, save_model
from lissome.models.binding import extract as cut
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.models.zoo import place_of
from lissome.pipeline.base import made_from
from lissome.pipeline.compare import quiet
from lissome.pipeline.extracting import extract_within
from lissome.pipeline.fitting import context_of, lineage
from lissome.pipeline.job import Job, prepare
from lissome.pipeline.loading import check_finished, load, unknown_model
from lissome.pipeline.places import check_extract_place
from lissome.pipeline.reports import ExtractReport, SupernetReport
from lissome.pipeline.run import RESULT, RunFolder, check_place

ELASTIC, FOUND, STATISTICS = "elastic.json", "found.json", "statistics.safetensors"
"""Files of an elastic artifact: what a search needs, what it found, statistics of batch norms."""

DEFAULT_METHOD = "bootstrapnas"


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """What an elastic artifact says of itself beside its manifest.

    Attributes:
        method: Name of the method that made it.
        data: What the user called the examples; None for the text that ships.
        fingerprint: Hash of the examples and their split.
        seed: Of the making.
        examples: Examples over which statistics of batch norms are taken again.
    """

    method: str
    data: str | None = None
    fingerprint: str
    seed: int
    examples: int


def supernet(
    model: Any,
    *,
    method: str = DEFAULT_METHOD,
    data: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    out: Path | str,
    events: EventStream | None = None,
) -> SupernetReport:
    """Make a super-network of a model: trained once, it holds a model for every budget; the same call continues.

    Args:
        model: Anything `lissome.load` reads.
        method: Which one makes it.
        data: Labelled images or texts, or text: a file, a folder or a `datasets` id.
        settings: ``key=value`` settings of the method.
        seed: The one source of randomness.
        out: Output folder; it becomes an elastic artifact.
        events: Where progress is reported.

    Raises:
        LissomeError: One of the tree in `lissome.core.errors`; nothing half-written is left as if whole.
    """
    start, stream, place = time.monotonic(), quiet(events), Path(out)
    check_place(place)
    job = prepare(model, method=method, data=data, settings=settings, seed=seed, events=stream, ends="space")
    folder = RunFolder(place, job.identity())
    if folder.finished() is not None:
        stream.message(f"{out} is finished; this is its stored result")
        return read_supernet(place)
    with folder.locked():
        job.recipe.check(job.tags, job.budget)
        (step,), begun = job.recipe.steps, time.monotonic()
        with peak_memory() as peak:
            made = step.method(step.config)
            outcome = made.run(job.model, context_of(job, folder.step(0, step.name), stream))
        done = lineage(job, step, outcome, time.monotonic() - begun, float(peak.above))
        _stage(job, outcome, done, folder, None if data is None else str(data), time.monotonic() - start)
        folder.publish()
    return read_supernet(place)


def _stage(job: Job, outcome: Outcome, step: Step, folder: RunFolder, data: str | None, seconds: float) -> None:
    """Put the artifact together: weights, manifest with the Space, figures of its ends, what a search needs."""
    whole: Model = outcome.value
    manifest = Manifest(
        name=f"{job.model.name} as a super-network by {step.method}",
        base=made_from(job.model),
        tags=tuple(sorted(job.recipe.check(job.tags, job.budget) - whole.anatomy.tags)),
        space=outcome.space,
        layers=tuple(whole.anatomy.layers()),
        lineage=(step,),
    )
    elastic = Elastic(
        method=step.method, data=data, fingerprint=job.data.fingerprint, seed=job.seed,
        examples=int(step.config.get("examples", 512)),
    )  # fmt: skip
    answer = {
        "job": job.identity(), "data": job.data.describe(), "batch_norms": bool(batch_norms(whole.module)),
        "seconds": seconds, "versions": versions(),
    }  # fmt: skip
    extras = {
        ELASTIC: json_text(as_json(elastic), ELASTIC, indent=2).encode(),
        RESULT: json_text(answer, RESULT).encode(),
        CURVE: "".join(json_text(point.to_json(), CURVE) + "\n" for point in outcome.curve).encode(),
        "recipe.toml": job.recipe.to_toml().encode(),
    }
    save_model(whole, folder.staged, manifest=manifest, extras={**extras, **outcome.files})


def read_supernet(place: Path) -> SupernetReport:
    """Read the stored result of a finished super-network.

    Raises:
        ArtifactError: When the folder is damaged.
    """
    fields, manifest, elastic = read_json(place / RESULT), read_manifest(place), read_elastic(place)
    points = tuple(point.to_json() for point in read_curve(place))
    space = space_of(manifest, place)
    return SupernetReport(
        out=place,
        sha256=manifest.files[WEIGHTS].sha256,
        model=manifest.base.name,
        method=elastic.method,
        axes=len(space.axes),
        log10_subnets=math.log10(combinations(space)),
        points=points,
        data=fields["data"],
        batch_norms=fields.get("batch_norms", False),
        seconds=fields["seconds"],
    )


def is_elastic(target: Any) -> bool:
    """Whether something names an elastic artifact."""
    return isinstance(target, str | Path) and (Path(target) / ELASTIC).is_file()


def read_elastic(place: Path) -> Elastic:
    """Read what an elastic artifact says of itself.

    Raises:
        ArtifactError: When it is no elastic artifact, or damaged.
    """
    if not (place / ELASTIC).is_file():
        raise ArtifactError(f"{place} is no super-network; make one with: lissome supernet MODEL --out {place}")
    return from_json(Elastic, read_json(place / ELASTIC), str(place / ELASTIC))


def space_of(manifest: Manifest, place: Path) -> Space:
    """Return the Space of an elastic artifact.

    Raises:
        ArtifactError: When the manifest has none.
    """
    if manifest.space is None:
        raise ArtifactError(f"{place} states no space in its manifest; make the super-network again.")
    return Space.from_json(manifest.space, f"{place}: space")


def keep_found(place: Path, model: Model, found: Found, examples: Sequence[Any]) -> None:
    """Put what a search found into an elastic artifact, with the statistics of batch norms of what can be taken.

    Args:
        place: The artifact.
        model: Its model.
        found: What was found in its Space.
        examples: Batches of training examples.
    """
    statistical, tensors = bool(batch_norms(model.module)), dict[str, Tensor]()
    for index in found.kept if statistical else ():
        with masked(model, found.subnet(index), space=found.space), adapted(model.module, examples):
            seen = statistics(model.module)
        tensors |= {f"{found.points[index].number}/{name}": value.contiguous() for name, value in seen.items()}
    with locked(place / ".found.lock"):  # two searches of one super-network may end at one moment
        manifest = read_manifest(place)
        bare = {name: record for name, record in manifest.files.items() if name not in {FOUND, STATISTICS}}
        write_manifest(place, replace(manifest, files=bare))  # so that a kill between the files leaves no wrong hash
        found.save(place / FOUND)
        kept = [FOUND]
        if statistical:
            with atomic_file(place / STATISTICS) as part:
                save_file(tensors, part)
            kept.append(STATISTICS)
        records = {
            name: FileRecord(bytes=(place / name).stat().st_size, sha256=sha256_file(place / name)) for name in kept
        }
        write_manifest(place, replace(manifest, files=dict(sorted({**bare, **records}.items()))))


def extract_for(
    artifact: Path | str,
    *,
    budget: Bounds | None = None,
    point: int | str | None = None,
    out: Path | str,
    into: Any = None,
    events: EventStream | None = None,
) -> ExtractReport:
    """Cut the model for a budget out of a super-network that was searched; no data is needed.

    Args:
        artifact: A folder that `supernet` made and `search` searched, or the name of one that ships; or an elastic
            model of another kind, of which the largest size within the budget is cut.
        budget: Bounds, as in `fit`, relative to the whole network; the best first objective among what holds is taken.
        point: The point to take instead, by its number; or the ``largest``, ``middle`` or ``smallest``, which need no
            search; where there are batch norms that goes for the largest alone, which has the statistics of the whole.
        out: Where the model goes.
        into: Of a module of a class of the user's own, the whole module.
        events: Where progress is reported.

    Raises:
        ArtifactError: When the folder is no super-network, was not searched, or is damaged.
        BudgetUnmetError: When no point holds the budget; names the range that the points reach.
        SubnetError: When there is no such point, or neither a budget nor a point was given.
    """
    start, place = time.monotonic(), place_of(artifact)
    _check_artifact(str(artifact), place)
    if not is_elastic(place) and point is None:
        bounds = str(Budget.parse(budget)) if budget else ""
        sizes, taken, original = extract_within(place, bounds, out, events=events)
        return ExtractReport(
            out=Path(out), artifact=place, number=None, figures=sizes, test={}, original=original, subnet=taken,
            seconds=time.monotonic() - start,
        )  # fmt: skip
    elastic = read_elastic(place)
    check_extract_place(place, Path(out))
    if isinstance(point, str):
        return _extract_named(place, point, Path(out), into, events or EventStream())
    if not (place / FOUND).is_file():
        raise ArtifactError(f"{place} was not searched yet; give: lissome search {place} --trials 100")
    found = Found.load(place / FOUND)
    model, manifest = load(place, into=into, events=events), read_manifest(place)
    statistical = bool(batch_norms(model.module))
    _check_listed(place, manifest, (FOUND, STATISTICS) if statistical else (FOUND,))
    chosen, index = _chosen(place, found, budget, point, statistical=statistical)
    subnet = found.subnet(index)
    small = cut(model, subnet, space=found.space)
    if batch_norms(small.module):
        prefix = f"{chosen.number}/"
        stored = load_file(place / STATISTICS)
        own = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        take_statistics(small.module, own)
    if adapters(small.module):
        merge_lora(small)
    stated = _of_point(manifest, chosen, found, elastic, small)
    save_model(small, Path(out), manifest=replace(stated, subnet=subnet.to_json()))
    figures = {**chosen.judged, **Counter(small).count().figures()}
    return ExtractReport(
        out=Path(out), artifact=place, number=chosen.number, figures=figures, test=dict(chosen.test),
        original=dict(found.original), subnet=subnet.to_json(), seconds=time.monotonic() - start,
    )  # fmt: skip


def _check_artifact(name: str, place: Path) -> None:
    """Refuse what is no artifact, as the user calls it."""
    if (place / MANIFEST).exists():
        return
    check_finished(place)
    if not place.exists() and name not in assets():
        raise unknown_model(name)
    raise ArtifactError(
        f"{name} has no {MANIFEST}, so it was not trained for many sizes; make a super-network with: "
        f"lissome supernet {name} --out S"
    )


def _check_listed(place: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Refuse what a search found when nothing tells that it is whole, and of this super-network."""
    for name in names:
        if name not in manifest.files:
            raise ArtifactError(
                f"{place} does not list {name}: a search was cut short while it put in what it found; give its "
                f"command again: lissome search {place} …"
            )


def _extract_named(place: Path, name: str, out: Path, into: Any, events: EventStream) -> ExtractReport:
    """Cut out what the making judged by name; of LoNAS the middle is what its paper reports without a search."""
    start, curve = time.monotonic(), read_curve(place)
    named = {one.change: one for one in curve[1:]}
    if name not in named:
        raise SubnetError(unknown_name("point", name, named, "A search's points go by their numbers."))
    model, manifest = load(place, into=into, events=events), read_manifest(place)
    space, point = space_of(manifest, place), named[name]
    if batch_norms(model.module) and dict(point.subnet) != dict(space.full):  # those of the whole are its own
        _refuse_named(place, name)
    small = cut(model, point.subnet, space=space)
    if adapters(small.module):
        merge_lora(small)
    figures: dict[str, float] = {**point.quality, **Counter(small).count().figures()}
    metrics = tuple(
        Metric(name=term, value=value, better=QUALITIES[term]) for term, value in point.quality.items()
    )  # fmt: skip
    stated = _stated(manifest, f"the {name}", read_elastic(place), small, metrics)
    save_model(small, out, manifest=replace(stated, subnet=dict(point.subnet)))
    return ExtractReport(
        out=out, artifact=place, number=None, figures=figures, test={}, original=dict(curve[0].figures),
        subnet=dict(point.subnet), seconds=time.monotonic() - start,
    )  # fmt: skip


def _refuse_named(place: Path, name: str) -> None:
    why, found = f"the {name} of {place} lacks statistics of batch norms, which only a search takes", place / FOUND
    if not found.is_file():
        raise SubnetError(f"{why}; give: lissome search {place} --trials 100")
    kept = Found.load(found)
    numbers = ", ".join(str(kept.points[index].number) for index in kept.kept[:24])
    raise SubnetError(f"{why} of its front; give a --budget, or one of its points with --point: {numbers}.")


def _chosen(
    place: Path, found: Found, budget: Bounds | None, point: int | None, *, statistical: bool
) -> tuple[Point, int]:
    """The point to take, and its place; of a network with batch norms one whose statistics are stored."""
    numbers = {one.number: index for index, one in enumerate(found.points)}
    allowed = [found.points[index].number for index in found.kept] if statistical else list(numbers)
    if not allowed:
        bounds = ", ".join(map(str, found.goal.bounds))
        raise BudgetUnmetError(
            f"the search of {place} found nothing that holds {bounds}; give one with a wider bound, or more --trials."
        )
    if point is not None:
        if point not in allowed:
            shown = ", ".join(map(str, sorted(allowed)[:24]))
            raise SubnetError(f"there is no point {point} to extract from {place}; there are: {shown}.")
        return found.points[numbers[point]], numbers[point]
    if not budget:
        if found.chosen is None or found.points[found.chosen].number not in allowed:
            raise SubnetError(f"{place} has no chosen point; say what to extract, with --budget or --point.")
        return found.points[found.chosen], found.chosen
    kept = tuple(one for one in found.points if one.number in allowed)
    taken = kept[replace(found, points=kept, front=(), chosen=None).choose(Budget.parse(budget))]
    return taken, numbers[taken.number]


def _of_point(manifest: Manifest, point: Point, found: Found, elastic: Elastic, small: Model) -> Manifest:
    """What an extracted model says of itself: the super-network's lineage, and the figures that it was chosen by."""
    better = {objective.name: objective.better for objective in found.goal.objectives}
    figures: Mapping[str, float] = {**point.judged, **point.test}
    metrics = tuple(
        Metric(
            name=name, value=value, unit=TERMS[name].unit if name in TERMS else "",
            better=better.get(name, "lower"), provenance=found.provenance.get(name, "measured"),
        )
        for name, value in figures.items()
    )  # fmt: skip
    return _stated(manifest, f"point {point.number}", elastic, small, metrics)


def _stated(manifest: Manifest, which: str, elastic: Elastic, small: Model, metrics: tuple[Metric, ...]) -> Manifest:
    made = tuple(replace(one, after=metrics) for one in manifest.lineage[-1:])
    return replace(
        manifest,
        name=f"{manifest.base.name}: {which} of a super-network by {elastic.method}",
        tags=tuple(tag for tag in manifest.tags if tag != "elastic"),
        layers=tuple(small.anatomy.layers()),
        lineage=(*manifest.lineage[:-1], *made),
        files={},
    )
