"""What claims on federation share: a fleet that learns to tell languages apart, and what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from statistics import mean, median
from time import thread_time
from typing import Any

from benchmarks._arms import Cell
from benchmarks._frame import Inequality, Store
from benchmarks._markdown import Results, environment, inequalities
from benchmarks.shears.texts import declarations
from lissome.core.events import EventStream
from lissome.core.files import write_text
from lissome.core.seeds import derive
from lissome.data.labelled import Labelled
from lissome.data.partition import Partition, deal
from lissome.engine.federate.bound import Bound, cut_model
from lissome.engine.federate.client import with_threads
from lissome.engine.federate.mutual import bound_of
from lissome.engine.federate.norms import OWN
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import Lesson
from lissome.models.space import Subnet
from lissome.pipeline.federating import serve
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.membership import area, each_loss
from lissome.pipeline.silos import Silos, split

LANGUAGES = ("ces", "dan", "deu_1996", "fin", "fra", "hrv", "ita", "nld", "pol", "por_PT", "spa", "swe")
LENGTH, CLIENTS, ALPHA = 32, 10, 0.3
TEXTS = {"train": 80, "validation": 20, "test": 40}
"""Runs of words of each language, at most."""
SEEDS = (0, 1, 2)
JUDGED = 3
"""Rounds between two looks at the global model."""
_PUBLIC = 4  # every fourth text of the validation part judges no setting, so that something is public in trials too

Job = tuple[Cell, Callable[[Path], Cell]]
"""What a cell depends on, and what measures it, given a folder for work in progress."""


def measured(store: Store, jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """Measure the cells that are wanted and not stored yet; one that was interrupted goes on where it stopped."""
    return store.measured(
        (name, partial(store.cell, name, settings, partial(in_scratch, store, name, settings, compute)))
        for name, (settings, compute) in jobs.items()
    )


def in_scratch(store: Store, name: str, settings: Cell, compute: Callable[[Path], Cell]) -> Cell:
    """Measure in a folder that survives a kill, and goes when all is done."""
    folder = store.scratch(name, settings)
    result = compute(folder)
    shutil.rmtree(folder)  # what clients kept is larger than their data
    return result


def judged(
    store: Store,
    facts: Cell,
    jobs: Mapping[str, Job],
    judge: Callable[[dict[str, dict[str, Any]]], list[Inequality]],
) -> list[Inequality]:
    """Measure, judge and publish a claim; nothing is judged when only some cells were wanted."""
    cells = measured(store, jobs)
    if store.pattern is not None:
        return []
    found = judge(cells)
    store.publish("minilm", {"facts": facts, "inequalities": [vars(one) for one in found]}, cells=cells)
    return found


def in_turns(work: Mapping[str, Callable[[], object]], laps: int = 21) -> dict[str, float]:
    """Return the median seconds of each piece of work, done in turns by one thread, after a lap that does not count.

    Of processor time, because other programs of the machine would stretch the clock's for one piece more than for
    another.
    """
    found: dict[str, list[float]] = {name: [] for name in work}
    with with_threads(1):
        for lap in range(laps + 1):
            for name, one in work.items():
                begun = thread_time()
                one()
                found[name] += [thread_time() - begun] if lap else []
    return {name: median(times) for name, times in found.items()}


def page_of(intro: str, results: Results, parts: Sequence[str]) -> str:
    """Return a method's page: what was done, where, the tables, and every inequality."""
    return "\n\n".join([intro, environment(results), *parts, inequalities(results)])


@cache
def texts() -> dict[str, Labelled]:
    """Runs of four words of some languages, dealt by article: nothing tested translates anything learnt."""
    found = {}
    for part, all_of_them in declarations().items():
        kept: list[int] = []
        for language in LANGUAGES:
            own = [at for at, label in enumerate(all_of_them.labels) if all_of_them.classes[label] == language]
            kept += sorted(Random(f"{part}/{language}").sample(own, min(TEXTS[part], len(own))))
        some = all_of_them.some(kept)
        names = [some.classes[label] for label in some.labels]
        labels = tuple(LANGUAGES.index(name) for name in names)
        found[part] = Labelled(some.name, some.texts, labels, LANGUAGES)
    return found


def public_texts(file: Path, *, tuning: bool = False) -> Path:
    """Write runs of words without their languages, that nobody learns from or is judged by; return the file.

    Args:
        file: To be written.
        tuning: As of `job_of`.
    """
    judged_by = {text.lower() for text in _judging(tuning).texts}  # the tokenizer knows no capitals
    rows = [{"text": text} for text in texts()["validation"].texts if text.lower() not in judged_by]
    write_text(file, "\n".join(map(json.dumps, rows)))
    return file


def recipe(
    step: Mapping[str, Any],
    *,
    seed: int,
    rounds: int,
    devices: Sequence[Mapping[str, Any]] = ({},),
    arm: str = "federated",
    model: str = "minilm",
    data: Mapping[str, Any] | None = None,
    **loop: Any,
) -> FederationRecipe:
    """Return the recipe of one arm.

    Args:
        step: Method and settings.
        seed: Of everything.
        rounds: How many.
        devices: Kinds of devices.
        arm: As in any recipe.
        model: As in any recipe.
        data: As in any recipe (default: those of `texts`, which `job_of` puts in).
        loop: Other settings of the loop.
    """
    from lissome.core.config import to_toml

    return FederationRecipe.from_toml(
        to_toml(
            {
                "model": model, "seed": seed, "arm": arm,
                "data": dict(data or {"source": "declarations", "length": LENGTH}),
                "partition": {"scheme": "dirichlet", "clients": CLIENTS, "alpha": ALPHA},
                "federation": {"rounds": rounds, "evaluate_every": rounds, "judge_every": JUDGED, **loop},
                "device": [dict(one) for one in devices],
                "step": [dict(step)],
            }
        )
    )  # fmt: skip


def job_of(made: FederationRecipe, *, tuning: bool = False) -> FederationJob:
    """Return both sides of an arm on the data of `texts`: dealt by the seed, tested on other articles.

    Args:
        made: The arm.
        tuning: Whether settings are chosen by it: clients have only what they would learn from, of which some is held
            out again, and the server has validation texts, so that nothing of what judges in the end is looked at.
    """
    train = texts()["train"]
    dealt = deal(train, made.partition, seed=derive(made.seed, "deal") % 2**32)
    if tuning:
        dealt = _learned(dealt, made)
    job = FederationJob(made)
    silos = Silos(made.data, dealt, LANGUAGES, (train, _judging(tuning)), made.seed)
    vars(job)["silos"] = silos.together() if made.arm == "centralised" else silos
    return job


def _learned(dealt: Partition, made: FederationRecipe) -> Partition:
    """Leave out what each client is judged by."""
    parts = {}
    for name, places in dealt.parts.items():
        _, learned = split(len(places), made.data.held_out, derive(made.seed, "held out", name))
        parts[name] = tuple(places[at] for at in learned)
    return replace(dealt, parts=parts)


def _judging(tuning: bool) -> Labelled:
    """What the server is judged by: texts of other articles, or of yet others while settings are chosen."""
    if not tuning:
        return texts()["test"]
    found = texts()["validation"]
    return found.some([at for at in range(len(found)) if at % _PUBLIC])


def own_scores(
    job: FederationJob,
    folder: Path,
    metric: str = "accuracy",
    *,
    subnets: Mapping[str, Any] | None = None,
    learned: bool = True,
) -> dict[str, dict[str, float]]:
    """Judge what every client kept for itself: on the texts of the server, and on those that it learned from.

    Args:
        job: An arm whose clients keep whole models (``arm = "local"``, or RaFL).
        folder: As of `run`.
        metric: What of a score is stored.
        subnets: Of those who were never asked to train, hence kept nothing.
        learned: Whether to judge it by what it learned from, too.

    Returns:
        By client: ``test``, and perhaps ``train`` and ``told`` (see `told`).
    """
    found = {}
    for name in job.silos.names:
        kept = ClientStore(folder / "clients" / name).before(10**9)
        lesson, own = job.silos.client(name, job.model), kept.facts.get("subnet", (subnets or {}).get(name))
        bound = bound_of(job.model, own, lesson)
        bound.load({key.removeprefix(OWN): value for key, value in kept.tensors.items() if _is_own(bound, key)})
        bound.module.eval()
        found[name] = {"test": job.silos.server(job.model).score(bound.module)[1][metric]}
        if learned:
            found[name] |= {"train": lesson.turned().score(bound.module)[1][metric], **told(lesson, bound)}
    return found


def global_scores(job: FederationJob, federation: Federation) -> dict[str, dict[str, float]]:
    """Judge the global model as `own_scores` judges own ones; what it learned from is each client's part."""
    assert isinstance(federation.program, SubnetProgram)
    bound = federation.program.loaded()
    bound.module.eval()
    test = federation.rounds[-1].metrics["server/accuracy"]
    lessons = {name: job.silos.client(name, job.model) for name in job.silos.names}
    return {
        name: {"test": test, "train": one.turned().score(bound.module)[1]["accuracy"], **told(one, bound)}
        for name, one in lessons.items()
    }


def cut_score(job: FederationJob, program: SubnetProgram, subnet: Subnet) -> float:
    """Return the accuracy of a Subnet of the global model on the server's texts."""
    small, lesson = cut_model(job.model, subnet), job.silos.server(job.model)
    bound = Bound.of(job.model, small, lesson.around(small), subnet)
    bound.load(program.layout_of(subnet).cut(program.tensors))
    bound.module.eval()
    return float(lesson.score(bound.module)[1]["accuracy"])


def told(lesson: Lesson, bound: Bound) -> dict[str, float]:
    """Return how well losses tell what a client learned from its own held-out texts, ½ is guessing; and of how many.

    Both come from the same articles and classes, so that nothing but having been learned from sets them apart.
    """
    if not len(lesson) or not lesson.held:
        return {}
    learned, others = each_loss(lesson, bound), each_loss(lesson.swapped(), bound)
    return {"told": area(learned, others), "learned": len(learned)}


def _is_own(bound: Bound, key: str) -> bool:
    return key.removeprefix(OWN) in bound.parameters


def run(job: FederationJob, folder: Path, names: Sequence[str] = ()) -> tuple[Federation, dict[str, Any]]:
    """Run an arm; a run that was interrupted continues.

    Args:
        job: The arm.
        folder: Of this arm alone.
        names: Clients that take part (default: all).

    Returns:
        The federation, and what a cell stores: accuracy of the global model, mean accuracy of clients (``reached``) and
        bytes of training by round, accuracy of each client at the end, and how often each size was trained.
    """
    federation = serve(job, job.local_link(folder / "clients", names), folder / "server", EventStream())
    last, total = federation.rounds[-1], federation.bytes()
    return federation, {
        "accuracy": [one.metrics.get("server/accuracy") for one in federation.rounds],
        "clients": {name: scores.get("accuracy") for name, scores in last.scores.items()},
        "reached": [_mean_client(one.scores) for one in federation.rounds],
        "evaluated": dict(last.metrics), "payload": total.payload, "message": total.message,
        "spent": _spent(federation), "trained": _trained(federation),
        "examples": {name: len(job.silos.partition.parts[name]) for name in job.silos.names},
    }  # fmt: skip


def _mean_client(scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """Mean accuracy of all clients that were judged; None when nobody was."""
    found = [one["accuracy"] for one in scores.values() if "accuracy" in one]
    return mean(found) if found else None


def _spent(federation: Federation) -> list[int]:
    """Bytes of tensors of the phases that train, both ways, up to the end of each round."""
    found, total = [], 0
    for one in federation.rounds:
        total += sum(federation.bytes(action=action, round=one.number).payload for action in ("train", "score"))
        found.append(total)
    return found


def _trained(federation: Federation) -> dict[str, int]:
    from lissome.pipeline.outcome import histogram

    return histogram(federation.program, federation.rounds)
