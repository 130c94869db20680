"""The loop of a search: propose, evaluate, write down, until the trials are spent; then choose, and report once.

A search that is killed goes on where it was. With one process it then finds what an undisturbed one finds, because
every proposal follows from the seed and from what was seen; with several it depends on who was faster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from lissome.core.config import MethodConfig, option
from lissome.core.errors import LissomeError, NumericsError
from lissome.core.events import EventStream, Stage
from lissome.engine.search import samplers
from lissome.engine.search.found import Found, Point
from lissome.engine.search.history import History, Seen
from lissome.engine.search.ledger import Ledger, Memory, Trial, distinct
from lissome.engine.search.moves import every
from lissome.engine.search.problem import Evaluate, Problem
from lissome.engine.search.samplers import Options, Proposal
from lissome.models.space import Subnet

_ASKED = 8  # proposals that may have been tried before, until one is changed by hand
_CHANGED = 200  # changes by hand, until a small Space is gone through one by one
_PAUSE = 0.2  # seconds until a process without work looks again


@dataclass(frozen=True, kw_only=True)
class SearchConfig(MethodConfig):
    """How a search goes about it."""

    trials: int = option(100, "Subnets to evaluate, by all processes together", low=1)
    sampler: str = option("nsga2", "who proposes: nsga2, tpe, random, climb or ensemble")
    population: int = option(0, "Subnets of a generation; 0 is a fifth of the trials, 10 to 50", low=0)
    compared: int = option(12, "Subnets of the front to compare on the selection split", low=1)
    heartbeat: int = option(15, "seconds between signs of life where processes share a database", low=1)

    def generation(self) -> int:
        """Subnets of a generation."""
        return self.population or min(50, max(10, self.trials // 5))


def search(
    problem: Problem,
    config: SearchConfig | None = None,
    *,
    seed: int = 0,
    study: Path | str | None = None,
    events: EventStream | None = None,
) -> Found:
    """Search, choose and report.

    Args:
        problem: What is searched.
        config: How.
        seed: Seed of all proposals.
        study: Where trials are written down: a file for SQLite, or the URL of a database; None for memory alone. The
            same call again continues. Further processes join in with `work`.
        events: Where progress goes: a stage ``search`` counted in trials, and a stage ``compare``.

    Returns:
        Every Subnet that was evaluated, the front, and the choice.

    Raises:
        SubnetError: When the Space leaves nothing to choose.
        BudgetUnmetError: When no Subnet can hold a bound; names the range that can be reached.
        UnknownNameError: When there is no sampler of that name.
        ArtifactError: When the study is damaged, locked, or of another search.
    """
    config, events = config or SearchConfig(), events or EventStream()
    with _opened(problem, config, seed, study) as ledger:
        _Process(problem, config, seed, ledger, events).run()
        found = _found(problem, config, seed, distinct(ledger.trials()))
        return _compare(problem, config, found, ledger, events)


def work(
    problem: Problem,
    config: SearchConfig,
    *,
    study: Path | str,
    seed: int = 0,
    events: EventStream | None = None,
) -> None:
    """Join a search as one more process, until its trials are spent; arguments and errors as in `search`."""
    with _opened(problem, config, seed, study) as ledger:
        _Process(problem, config, seed, ledger, events or EventStream()).run()


@contextlib.contextmanager
def _opened(problem: Problem, config: SearchConfig, seed: int, study: Path | str | None) -> Iterator[Ledger]:
    """Open the ledger; what cannot be searched is refused before."""
    samplers.check(config.sampler)
    problem.check()
    if study is None:
        yield Memory()
        return
    from lissome.engine.search._connection import file_of
    from lissome.engine.search.database import NAME, Database

    key = {**problem.identity(), "seed": seed, "sampler": config.sampler, "population": config.population}
    where = file_of(study)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = NAME if isinstance(where, Path) else f"{NAME}-{digest}"  # a server holds many
    database = Database(where, problem.space, problem.goal, key, name=name, heartbeat=config.heartbeat)
    with contextlib.closing(database):
        yield database


class _Process:
    """One process of a search."""

    def __init__(self, problem: Problem, config: SearchConfig, seed: int, ledger: Ledger, events: EventStream) -> None:
        self._problem, self._config, self._seed, self._ledger, self._events = problem, config, seed, ledger, events
        self._history = History(problem.space, problem.goal)
        self._known: dict[Subnet, Mapping[str, float]] = {}
        self._trials: list[Trial] = []
        self._over = False

    def run(self) -> None:
        """Work until the trials are spent."""
        with self._ledger.alone():
            self._begin()
        with self._events.stage("search", self._config.trials, done=self._spent()) as stage:
            while not self._over:
                with self._ledger.alone():
                    trial = self._next()
                if trial is not None:
                    self._evaluate(trial)
                elif not self._over:
                    time.sleep(_PAUSE)  # others are at the rest
                self._report(stage, trial)

    def _begin(self) -> None:
        """Settle what all processes share, and write down the Subnets to start from."""
        population = self._ledger.noted("population") or self._config.generation()
        if self._ledger.noted("population") is None:
            self._ledger.note("population", population)
        options = Options(self._problem.space, self._problem.goal, population)
        self._sampler = samplers.make(self._config.sampler, options)
        self._look()
        for subnet in self._problem.beginning():
            if subnet not in self._history.tried:
                self._ledger.add(subnet, "start", self._sampler.adopt(self._history))
        self._look()

    def _look(self) -> None:
        """Take over what the ledger holds by now."""
        self._trials = distinct(self._ledger.trials())
        for trial in self._trials:
            self._history.tried.add(trial.subnet)
            if trial.state == "done" and trial.subnet not in self._known:
                self._known[trial.subnet] = trial.figures
                self._history.add(
                    Seen(
                        number=trial.number, subnet=trial.subnet, figures=trial.figures, by=trial.by,
                        notes=trial.notes, seconds=trial.seconds,
                    )
                )  # fmt: skip

    def _spent(self) -> int:
        return min(self._config.trials, sum(trial.state in {"done", "failed"} for trial in self._trials))

    def _next(self) -> Trial | None:
        """Take a trial that waits, or write down a new one and take it; None when there is nothing to do for now."""
        self._look()
        self._over = self._spent() >= self._config.trials
        if self._over:
            return None
        under_way = any(trial.state in {"waiting", "running"} for trial in self._trials)
        claimed = self._ledger.claim() if under_way else None
        if claimed is not None or len(self._trials) >= self._config.trials:
            return claimed
        proposal = self._propose()
        if proposal is None:
            self._over = not under_way
            if self._over:
                self._events.message(f"all {len(self._trials)} Subnets of the Space were evaluated")
            return None
        self._ledger.add(proposal.subnet, proposal.by, proposal.notes)
        return self._ledger.claim(rescue=False)

    def _propose(self) -> Proposal | None:
        """Return a Subnet that was not tried; None when there is none left in a small Space."""
        space, tried = self._problem.space, self._history.tried
        proposal = None
        for attempt in range(_ASKED):
            proposal = self._sampler.propose(self._history, self._rng(attempt))
            if proposal.subnet not in tried:
                return proposal
        assert proposal is not None
        subnet, rng = proposal.subnet, self._rng("change")
        for _ in range(_CHANGED):
            subnet = space.neighbour(subnet, rng)
            if subnet not in tried:
                return replace(proposal, subnet=subnet)
        left = next((subnet for subnet in every(space) if subnet not in tried), None)
        return None if left is None else Proposal(left, "rest", self._sampler.adopt(self._history))

    def _rng(self, attempt: object) -> Random:
        """A generator that follows from the seed and the number of the proposal."""
        others = any(trial.state == "running" for trial in self._trials)
        me = f"/{platform.node()}/{os.getpid()}" if others else ""  # who looks at the same moment draws another
        return Random(f"{self._seed}/{len(self._trials)}/{attempt}{me}")

    def _evaluate(self, trial: Trial) -> None:
        """Take the figures of a claimed trial and write them down; whatever goes wrong, it is not lost."""
        start = time.perf_counter()
        try:
            with self._ledger.working(trial):
                figures = self._known.get(trial.subnet) or self._problem.figures(trial.subnet)
        except NumericsError as error:
            self._ledger.fail(trial, " ".join(str(error).split()))
            return
        except BaseException:
            with contextlib.suppress(LissomeError):  # what happened before matters more
                self._ledger.give_back(trial)
            raise
        self._ledger.finish(trial, figures, time.perf_counter() - start)

    def _report(self, stage: Stage, trial: Trial | None) -> None:
        self._look()
        more = self._spent() - stage.step
        if more > 0:
            figures = self._known.get(trial.subnet, {}) if trial is not None else {}
            metrics = {name: figures[name] for name in self._problem.goal.names if name in figures}
            stage.advance(more, message="", **{**metrics, "front": float(len(self._history.best))})


def _found(problem: Problem, config: SearchConfig, seed: int, trials: Sequence[Trial]) -> Found:
    points = [
        Point(
            number=trial.number, choices=tuple(trial.subnet[axis.name] for axis in problem.space.axes),
            figures=trial.figures, by=trial.by, seconds=trial.seconds,
        )
        for trial in trials
        if trial.state == "done"
    ]  # fmt: skip
    return Found(
        space=problem.space,
        goal=problem.goal,
        points=tuple(points),
        original=problem.original,
        provenance=problem.provenance,
        splits=problem.splits,
        failed=dict(Counter(trial.error for trial in trials if trial.state == "failed")),
        sampler=config.sampler,
        seed=seed,
    ).sorted()


def _compare(problem: Problem, config: SearchConfig, found: Found, ledger: Ledger, events: EventStream) -> Found:
    """Compare the front on the selection split, choose, and report the choice on the test split."""
    full = [place for place in range(len(found.points)) if found.subnet(place) == problem.space.full]
    if problem.selection is not None and found.front:
        places = list(dict.fromkeys([*_candidates(found, config.compared), *full]))
        room = config.compared
        while places and room > 0:  # again where a bound on quality that the search held does not hold here
            found = _taken(found, "selection", problem.selection, places, ledger, events).sorted()
            room -= len(places)
            places = [place for place in _candidates(found, room) if not found.points[place].selection]
    if problem.test is not None and found.chosen is not None:
        places = list(dict.fromkeys([found.chosen, *full]))
        found = _taken(found, "test", problem.test, places, ledger, events)
    return found


def _candidates(found: Found, count: int) -> list[int]:
    """Places of the front to compare: the best first objectives when one will be chosen, else spread over the front."""
    front = found.front
    if found.chosen is not None or len(front) <= count:
        return list(front[:count])
    return [front[round(index * (len(front) - 1) / max(1, count - 1))] for index in range(count)]


def _taken(
    found: Found, split: Any, evaluate: Evaluate, places: Sequence[int], ledger: Ledger, events: EventStream
) -> Found:
    """Return it with figures of a split for some points; each is written down when it is known."""
    known: dict[str, dict[str, float]] = ledger.noted(split) or {}
    points = list(found.points)
    with events.stage("compare" if split == "selection" else "report", len(places)) as stage:
        for place in places:
            number = str(points[place].number)
            if number not in known:
                known[number] = {name: float(value) for name, value in evaluate(found.subnet(place)).items()}
                ledger.note(split, known)
            figures = known[number]
            point = points[place]
            points[place] = replace(point, selection=figures) if split == "selection" else replace(point, test=figures)
            stage.advance(1, message="", **figures)
    return replace(found, points=tuple(points))
