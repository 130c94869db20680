"""`search`: the trade-off of a super-network, or of any language model as it is, between quality and cost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lissome import __version__
from lissome.core.budget import Budget
from lissome.core.config import check_seed
from lissome.core.errors import ArtifactError, ConfigError, DataError, LissomeError, UnsupportedModelError, unknown_name
from lissome.core.events import EventStream
from lissome.core.files import check_writable
from lissome.core.typed import as_json, from_json
from lissome.cost.oracle import SubnetCost
from lissome.data.text import TextSplits, text_splits
from lissome.engine.objective import Classes, NextToken, Objective, objective_of
from lissome.engine.paths import kind_of
from lissome.engine.search import Found, Goal, Problem, SearchConfig, samplers, work
from lissome.engine.search import search as search_problem
from lissome.engine.search.found import Split
from lissome.engine.search.goal import check_figures
from lissome.engine.search.subject import Masked, MaskedText, problem_of
from lissome.engine.segments import Segments
from lissome.engine.spans import Spans
from lissome.engine.supermethod import BETWEEN
from lissome.models.adapters import merged_copy
from lissome.models.anatomy import TASKS
from lissome.models.labels import answers_by_spans
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.models.zoo import place_of
from lissome.pipeline.compare import quiet
from lissome.pipeline.job import WINDOWS, data_for
from lissome.pipeline.latencies import HERE, TIMED, WHOLE, Latency, Wish, times_of, timing
from lissome.pipeline.loading import load, weights_of
from lissome.pipeline.reports import SearchReport
from lissome.pipeline.supernets import is_elastic, keep_found, read_elastic, space_of

STUDY, FOUND = "study.db", "found.json"
"""Files of a search's folder: every trial as it was made, and the result."""

_JOIN = f"import sys; from {__name__} import join; join(sys.argv[1])"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks of a search, JSON-able, so that further processes can be given the same.

    Attributes:
        target: An elastic artifact, or anything else that `load` reads.
        out: Folder of the search.
        budget: Bounds.
        objectives: Figures to make better, the most important first; none: the model's quality (perplexity, or
            accuracy), then what the budget bounds.
        settings: ``key=value`` of `SearchConfig`.
        trials: Subnets to evaluate.
        sampler: Who proposes.
        data: Text, as in `fit`.
        device: A latency table, or timed sub-networks, of the device to search for.
        latency: How latency comes about: from a table, from a regression on a few timed ones, or measured each time;
            ``auto`` is a table for a language model, and a regression for any other.
        check: Sub-networks to time, to see how well a predicted latency ranks them.
        correct: Sub-networks to time here, which correct the times of `device`.
        study: Where trials are written down (default: a file in `out`).
        seed: The one source of randomness.
    """

    target: str
    out: str
    budget: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    trials: int = 100
    sampler: str = "nsga2"
    data: str | None = None
    device: str | None = None
    latency: str = "auto"
    check: int = 0
    correct: int = 0
    study: str | None = None
    seed: int = 0

    @property
    def config(self) -> SearchConfig:
        """How the search goes about it."""
        return SearchConfig.from_assignments(self.settings, {"trials": self.trials, "sampler": self.sampler})

    @property
    def place(self) -> Path | str:
        """Where trials are written down."""
        return self.study or Path(self.out) / STUDY


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    model: Model
    problem: Problem
    config: SearchConfig
    notes: tuple[str, ...] = field(default=())
    examples: Sequence[Any] = ()


def search(
    target: Any,
    *,
    out: Path | str,
    workers: int = 1,
    into: Any = None,
    events: EventStream | None = None,
    **asked: Any,
) -> SearchReport:
    """Search a super-network, or a language model as it is, for Subnets that are good and cost little.

    The same call again continues. Trials are an Optuna study in the folder; ``found.json`` there holds every Subnet
    that was evaluated, the front and the choice. A super-network keeps it too, for `extract_for`.

    Args:
        target: An elastic artifact, or anything else that `load` reads.
        out: Folder of the search.
        workers: Processes that share the trials.
        into: For a super-network of a module of a class of the user's own, the whole module.
        events: Where progress is reported.
        asked: The other fields of `Asked`.

    Raises:
        LissomeError: When something asked for is not known, cannot be reached, or cannot be used.
    """
    start, stream = time.monotonic(), quiet(events)
    if workers > 1 and (into is not None or not isinstance(target, str | Path)):
        raise ConfigError("several processes each load the model by its name; give a name or a folder, or one worker.")
    known = {one.name for one in fields(Asked)}
    for name in asked.keys() - known:
        raise ConfigError(unknown_name("argument of search", name, known))
    given = Asked(target=str(target), out=str(out), **{key: value for key, value in asked.items() if value is not None})
    _check(given)
    prepared = _prepare(given, target, stream, into)
    with _others(given, workers - 1, stream):
        found = search_problem(prepared.problem, prepared.config, seed=given.seed, study=given.place, events=stream)
    found.save(Path(out) / FOUND)
    if is_elastic(given.target):
        keep_found(Path(given.target), prepared.model, found, prepared.examples)
    return _report(given, prepared, found, time.monotonic() - start)


def join(text: str) -> None:
    """Work on a search as one more process.

    Args:
        text: What was asked, as JSON of `Asked`.
    """
    asked = from_json(Asked, json.loads(text), "search")
    prepared = _prepare(asked, asked.target, EventStream())
    work(prepared.problem, prepared.config, study=asked.place, seed=asked.seed)


def _check(asked: Asked) -> None:
    """Refuse what can be refused before a model is loaded."""
    check_seed(asked.seed)
    shipped = place_of(asked.target)
    if is_elastic(shipped) and not Path(asked.target).exists():
        raise ArtifactError(f"{asked.target} ships with lissome and stays as it is; copy {shipped}, and search that.")
    samplers.check(asked.config.sampler)
    ways = get_args(Latency)
    if asked.latency not in ways:
        raise ConfigError(unknown_name("way to latency", asked.latency, ways))
    _check_place(Path(asked.out))
    if is_elastic(asked.target):  # where what is found is put in at the end
        check_writable(Path(asked.target))
    Goal.of(_objectives(asked, "ppl"))


def _check_place(out: Path) -> None:
    """Refuse an output folder that cannot be written, or holds what is not a search's."""
    check_writable(out)
    lies = {file.name for file in out.iterdir()} if out.is_dir() else set[str]()
    if (out.exists() and not out.is_dir()) or (lies and lies.isdisjoint({STUDY, FOUND, WHOLE, TIMED, HERE})):
        raise ConfigError(f"{out} exists and is not the folder of a search; choose another --out.")


def _objectives(asked: Asked, quality: str) -> tuple[str, ...]:
    """What is asked for, else quality and what the budget bounds, else quality and what a forward costs."""
    bounds = Budget.parse(asked.budget) if asked.budget else Budget()
    cost = "params" if quality == "ppl" else "macs"
    return asked.objectives or tuple(dict.fromkeys([quality, *(term.name for term in bounds.terms)])) + (
        () if bounds else (cost,)
    )


def _prepare(asked: Asked, target: Any, events: EventStream, into: Any = None) -> _Prepared:
    """Load what is searched, and make what gives its figures."""
    model = load(target, into=into, events=events)
    if model.anatomy.task != "causal-lm" and not is_elastic(target):
        raise UnsupportedModelError(
            f"{asked.target} is {TASKS[model.anatomy.task]}: only a language model is searched as it is; make a "
            f"super-network first, with: lissome supernet {asked.target} --data X --out S"
        )
    qualities = _qualities(model)
    quality = qualities[0]
    budget = Budget.parse(asked.budget) if asked.budget else Budget()
    names = {*Goal.of(_objectives(asked, quality)).names, *budget.names}
    elastic = is_elastic(target)
    space = space_of(model.manifest, Path(target)) if elastic and model.manifest is not None else model.space()
    # Adapters are merged when a Subnet is cut out: what it costs does not depend on their ranks.
    priced, sizes = merged_copy(model), _without_ranks(space)
    wish = Wish(
        way=asked.latency, device=asked.device, folder=Path(asked.out), seed=asked.seed,
        check=asked.check, correct=asked.correct,
    )  # fmt: skip
    check_figures(sorted(names), {*SubnetCost(priced).figures(sizes.full), *times_of(wish, priced), *qualities})
    latency = timing(wish, priced, sizes, names, events)
    original = {**latency.cost.figures(space.full), **latency.original}
    identity = {"lissome": __version__, "model": weights_of(model), "latency": latency.identity}
    goal = Goal.of(_objectives(asked, quality), budget, original=original)
    if elastic:
        objective, examples, fingerprint = _examples(asked, model, Path(target))
        subject: Masked = Masked(
            model, objective.figures, latency.cost, space=space, splits=objective.splits,
            identity={**identity, "data": fingerprint}, measured=latency.measured, examples=examples,
        )  # fmt: skip
    else:
        splits = text_splits(model, asked.data, WINDOWS, seed=asked.seed) if "ppl" in names else None
        identity["data"], examples = splits.fingerprint if splits else "none", ()
        subject = MaskedText(model, _windows(splits), latency.cost, identity=identity, measured=latency.measured)
    problem = problem_of(subject, goal, original=original, start=_start(model, space) if elastic else None)
    return _Prepared(model=model, problem=problem, config=asked.config, notes=latency.notes, examples=examples)


def _start(model: Model, space: Space) -> tuple[Subnet, ...] | None:
    """What the search of a super-network begins with: beside the usual ones what its method trained on purpose."""
    steps = model.manifest.lineage if model.manifest is not None else ()
    try:
        trained = tuple(space.check(one) for one in (steps[-1].details.get(BETWEEN, ()) if steps else ()))
    except (LissomeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{model.name} names sub-networks that are not of its space ({error}).") from error
    return (space.full, space.smallest, *trained, *space.levels()) if trained else None


def _qualities(model: Model) -> tuple[str, ...]:
    """Names of the figures that say how good a model is, the most important first."""
    if model.anatomy.task == "causal-lm":
        return NextToken.names
    if answers_by_spans(model):
        return Spans.names
    return Segments.names if "input_points" in model.anatomy.inputs else Classes.names


def _examples(asked: Asked, model: Model, place: Path) -> tuple[Objective, Sequence[Any], str]:
    """The examples that a super-network was trained beside: what to judge by, batches for statistics, their hash.

    Raises:
        DataError: When they are others now.
    """
    elastic = read_elastic(place)
    source = asked.data if asked.data is not None else elastic.data
    try:
        _, data = data_for(model, source, seed=elastic.seed, searched=True)
    except DataError as error:
        if asked.data is not None or source is None:
            raise
        raise DataError(f"{error} {place} was trained on {source}; say with --data where that lies now.") from error
    if data.fingerprint != elastic.fingerprint:
        raise DataError(
            f"{source or 'the shipped text'} is not what {place} was trained on (its hash or its splits differ), so "
            "examples of the search may be among those that it learnt; give the same data."
        )
    objective = objective_of(data)
    return objective, objective.batches(elastic.examples), data.fingerprint


def _without_ranks(space: Space) -> Space:
    return replace(space, axes=tuple(axis for axis in space.axes if kind_of(axis) != "rank"))


def _windows(splits: TextSplits | None) -> dict[Split, Tensor]:
    if splits is None:
        return {}
    return {"search": splits.calibration, "selection": splits.selection, "test": splits.test}


@contextlib.contextmanager
def _others(asked: Asked, count: int, events: EventStream) -> Iterator[None]:
    """Let further processes work on the search; what they say goes to files in its folder."""
    command = [sys.executable, "-c", _JOIN, json.dumps(as_json(replace(asked, check=0)))]
    logs = [Path(asked.out) / f"worker-{number}.log" for number in range(1, count + 1)]
    processes = []
    for log in logs:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL))
    try:
        yield
    finally:
        for log, process in zip(logs, processes, strict=True):
            if process.poll():
                events.message(f"a worker ended with code {process.returncode}; {log} says why")
            process.terminate()  # the trials are spent, or this process was stopped; a trial of theirs is not lost
            process.wait()


def _report(asked: Asked, prepared: _Prepared, found: Found, seconds: float) -> SearchReport:
    def point(place: int) -> dict[str, Any]:
        one = found.points[place]
        return {
            "number": one.number, "figures": one.figures, "selection": one.selection, "test": one.test, "by": one.by,
            "subnet": found.subnet(place).to_json(),
        }  # fmt: skip

    whole = [place for place in range(len(found.points)) if found.subnet(place) == found.space.full]
    return SearchReport(
        out=Path(asked.out),
        study=str(asked.place),
        model=prepared.model.name,
        objectives=tuple(map(str, found.goal.objectives)),
        bounds=tuple(map(str, found.goal.bounds)),
        evaluated=len(found.points),
        failed=found.failed,
        front=tuple(point(place) for place in found.front),
        chosen=None if found.chosen is None else point(found.chosen),
        original={**found.original, **(found.points[whole[0]].figures if whole else {})},
        whole=point(whole[0]) if whole else None,
        hypervolume=found.hypervolume(),
        provenance=found.provenance,
        splits=found.splits,
        notes=prepared.notes,
        seconds=seconds,
    )
