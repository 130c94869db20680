"""Trials in a database: an Optuna study that several processes search together, and that its dashboard opens.

A trial is written down with its Subnet before anybody works on it, and whoever works on it keeps a heartbeat. When that
stops, the next process that looks for work marks the trial as failed and writes it down again (Optuna's own way), so
that a killed process loses time but no trial. Of a study in a file, a process of the same machine sees at once that
another one is gone, and does its trial again before any new one: a search that is killed and continued at once finds
what an undisturbed one finds. Two things differ from what Optuna's loop would do. The parameters of a trial, which it
would write one by one, are written together: with 150 axes that takes a third of the time. And in an SQLite file, which
has no row locks, a lock on a file beside it keeps two processes from taking one trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json as _json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from lissome.core.errors import ArtifactError
from lissome.core.files import locked
from lissome.engine.alive import identity, machine, runs
from lissome.engine.search._connection import connect, damaged, guarded, shown
from lissome.engine.search._optuna import distributions_of, quiet
from lissome.engine.search.goal import Goal
from lissome.engine.search.ledger import State, Trial
from lissome.models.space import Space, Subnet

NAME = "search"
"""Name of the study in a file, which holds one."""

_OURS = "lissome"  # before the names of attributes that are not figures
_WORKER = f"{_OURS}:worker"  # the machine and the process that has a trial
_FIXED, _FIRST, _AGAIN, _CONSTRAINTS = "fixed_params", "failed_trial", "retry_history", "constraints"  # Optuna's names
_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.FAIL: "failed",
}


class Database:
    """A ledger that several processes share.

    Args:
        where: A file for SQLite, or the URL of another database (``postgresql://…``, ``mysql+pymysql://…``).
        space: The Space.
        goal: What is searched for.
        key: What identifies the search, JSON-able; a study that was begun under another one is refused.
        name: Name of the study.
        heartbeat: Seconds between signs of life; a trial is taken over after four of them were missed.
        patience: Seconds to wait for a locked SQLite file.

    Raises:
        ArtifactError: When the study is damaged, locked, or of another search.
        ConfigError: When the URL is not one.
        MissingExtraError: When the database's driver is not installed.
    """

    def __init__(
        self,
        where: Path | str,
        space: Space,
        goal: Goal,
        key: Mapping[str, Any],
        *,
        name: str = NAME,
        heartbeat: int = 15,
        patience: float = 60.0,
    ) -> None:
        self._file = where if isinstance(where, Path) else None
        self._shown = shown(where)
        self._space, self._goal, self._heartbeat, self._patience = space, goal, heartbeat, patience
        self._distributions = distributions_of(space)
        self._finished: dict[int, Trial] = {}
        self._ids: dict[int, int] = {}
        with guarded(self._shown), self.alone():
            self._backend = connect(where, heartbeat=heartbeat, patience=patience)
            ways = {"lower": StudyDirection.MINIMIZE, "higher": StudyDirection.MAXIMIZE}
            directions = [ways[objective.better] for objective in goal.objectives]
            self._study = optuna.create_study(
                storage=self._backend, study_name=name, directions=directions, load_if_exists=True
            )
            self._storage = self._study._storage  # the same, with finished trials cached
            self._id = self._storage.get_study_id_from_name(name)
            self._check(json.loads(json.dumps(dict(key))))

    def close(self) -> None:
        """Close all connections."""
        self._backend.remove_session()
        self._backend.engine.dispose()

    def trials(self) -> list[Trial]:
        """Return all trials by number; of one that was repeated, how it stands now."""
        with guarded(self._shown):
            found: dict[int, Trial] = {}
            for frozen in self._study.get_trials(deepcopy=False):
                if _FIXED in frozen.system_attrs:
                    trial = self._read(frozen)
                    if trial.number not in found or found[trial.number].state != "done":
                        found[trial.number] = trial
            return sorted(found.values(), key=lambda trial: trial.number)

    def alone(self) -> AbstractContextManager[Any]:
        """Return a context in which no other process looks, proposes or claims; a server's row locks must do."""
        if self._file is None:
            return contextlib.nullcontext()
        return locked(self._file.with_name(f"{self._file.name}.lock"), patience=self._patience)

    def add(self, subnet: Mapping[str, int], by: str, notes: Mapping[str, Any]) -> None:
        """Write down a trial that waits."""
        fixed = {name: subnet[name] for name in self._distributions}
        with guarded(self._shown):
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING, system_attrs={**notes, _FIXED: fixed}, user_attrs={f"{_OURS}:by": by}
                )
            )

    def claim(self, *, rescue: bool = True) -> Trial | None:
        """Take the first trial that waits, also one that a dead process left behind; None when there is none."""
        with guarded(self._shown):
            if rescue:
                self._rescue()
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            for frozen in sorted(waiting, key=_first_number):
                known = self._storage.get_trial_id_from_study_id_trial_number(self._id, frozen.number)
                # The sign of life comes first: from the moment on that it runs, it can be taken over.
                self._backend.record_heartbeat(known)
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self._storage.set_trial_state_values(known, TrialState.RUNNING):
                        self._storage.set_trial_user_attr(known, _WORKER, [machine(), *identity(os.getpid())])
                        trial = self._read(frozen)
                        self._ids[trial.number] = known
                        return trial
        return None

    @contextlib.contextmanager
    def working(self, trial: Trial) -> Iterator[None]:
        """Give signs of life of a claimed trial."""
        stop = threading.Event()
        known = self._ids[trial.number]
        thread = threading.Thread(target=self._beat, args=(known, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def finish(self, trial: Trial, figures: Mapping[str, float], seconds: float) -> None:
        """Write down the figures of a claimed trial; when another process has it now, nothing."""

        def end(stored: FrozenTrial, open_trial: optuna.Trial) -> None:
            excesses = self._goal.excesses(figures)
            for name, excess in excesses.items():
                if name not in stored.constraints:
                    open_trial.set_constraint(name, excess)
            if excesses:  # the list without names is what the dashboard judges by
                self._storage.set_trial_system_attr(self._ids[trial.number], _CONSTRAINTS, list(excesses.values()))
            signs = [1 if one.better == "lower" else -1 for one in self._goal.objectives]
            values = zip(signs, self._goal.values(figures), strict=True)
            self._study.tell(open_trial, [sign * value for sign, value in values])

        self._end(trial, end, {**figures, f"{_OURS}:seconds": seconds})

    def fail(self, trial: Trial, error: str) -> None:
        """Write down that a claimed trial has no figures, and why."""
        self._end(trial, lambda _, open_trial: self._fail(open_trial), {f"{_OURS}:error": error})

    def give_back(self, trial: Trial) -> None:
        """Let a claimed trial wait again."""

        def end(stored: FrozenTrial, open_trial: optuna.Trial) -> None:
            self._fail(open_trial)
            self._repeat(stored)

        self._end(trial, end, {})

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON-able value beside the trials."""
        with guarded(self._shown):
            self._study.set_user_attr(f"{_OURS}:{name}", value)

    def noted(self, name: str) -> Any:
        """Return such a value; None when there is none."""
        with guarded(self._shown):
            return self._study.user_attrs.get(f"{_OURS}:{name}")

    def _check(self, key: dict[str, Any]) -> None:
        """Write the key into a new study; refuse one of another key."""
        stored = self._study.user_attrs.get(_OURS)
        if stored is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(_OURS, {"key": key})
            self._study.set_user_attr(f"{_OURS}:space", self._space.to_json())
            self._study.set_metric_names(list(self._goal.names))
            return
        theirs = (stored or {}).get("key", {})
        for name in sorted({*key, *theirs}):
            if key.get(name) != theirs.get(name):
                raise ArtifactError(
                    f"{self._shown} holds another search ({name} was {_short(theirs.get(name))}, now "
                    f"{_short(key.get(name))}); give its command again, or another place for this one."
                )

    def _read(self, frozen: FrozenTrial) -> Trial:
        if frozen.number in self._finished:
            return self._finished[frozen.number]
        mine = {
            name: value for name, value in frozen.user_attrs.items() if name.startswith(f"{_OURS}:")
        }  # the rest are figures
        notes = {
            name: value
            for name, value in frozen.system_attrs.items()
            if name not in {_FIXED, _FIRST, _AGAIN} and not name.startswith(_CONSTRAINTS)
        }
        error = mine.get(f"{_OURS}:error", "")
        state = _STATES[frozen.state]
        trial = Trial(
            number=_first_number(frozen),
            subnet=self._subnet(frozen),
            state=state if state != "failed" or error else "waiting",  # failed without a reason: it will be repeated
            by=mine.get(f"{_OURS}:by", ""),
            notes=notes,
            figures={name: value for name, value in frozen.user_attrs.items() if name not in mine},
            seconds=mine.get(f"{_OURS}:seconds", 0.0),
            error=error,
        )
        if frozen.state.is_finished():
            self._finished[frozen.number] = trial
        return trial

    def _subnet(self, frozen: FrozenTrial) -> Subnet:
        """The Subnet of a trial; a study in which it makes choices that there are not was written by something else."""
        fixed = frozen.system_attrs[_FIXED]
        for name, choice in fixed.items():
            if name not in self._distributions or choice not in self._space.by_name[name].choices:
                raise damaged(self._shown, f"trial {frozen.number} chooses {name}={choice}, which cannot be")
        return self._space.full.replace(fixed)

    def _rescue(self) -> None:
        """Write down again what dead processes were working on."""
        with quiet():
            fail_stale_trials(self._study)
            self._fail_orphans()
        trials = self._study.get_trials(deepcopy=False)
        again = {number for trial in trials for number in trial.system_attrs.get(_AGAIN, ())}
        for trial in trials:
            failed = trial.state == TrialState.FAIL and f"{_OURS}:error" not in trial.user_attrs
            if failed and trial.number not in again and _FIXED in trial.system_attrs:
                self._repeat(trial)  # its rescuer died in between

    def _fail_orphans(self) -> None:
        """Mark as failed what processes were working on that are gone from this machine."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if self._file else ():
            where, *worker = trial.user_attrs.get(_WORKER, ("",))
            if where == machine() and not runs(worker):
                known = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
                self._storage.set_trial_state_values(known, TrialState.FAIL)

    def _repeat(self, frozen: FrozenTrial) -> None:
        with quiet():
            RetryHeartbeatStaleTrialCallback()(self._study, frozen)

    def _beat(self, known: int, stop: threading.Event) -> None:
        while not stop.wait(self._heartbeat):
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):  # the next one may get through
                self._backend.record_heartbeat(known)
        self._backend.remove_session()

    def _fail(self, open_trial: optuna.Trial) -> None:
        self._study.tell(open_trial, state=TrialState.FAIL)

    def _end(self, trial: Trial, end: Callable[[FrozenTrial, optuna.Trial], None], facts: Mapping[str, Any]) -> None:
        """End a claimed trial; quietly do nothing when another process has it now.

        Args:
            trial: The trial.
            end: Tells Optuna how it ended, given what was stored of the trial before.
            facts: User attributes to write.
        """
        known = self._ids[trial.number]
        with guarded(self._shown), self.alone():
            stored = self._storage.get_trial(known)
            if stored.state != TrialState.RUNNING:
                return
            try:
                self._write(known, trial, stored, facts)
                end(stored, optuna.Trial(self._study, known))
            except (UpdateFinishedTrialError, IntegrityError, ValueError):
                if self._storage.get_trial(known).state == TrialState.RUNNING:
                    raise

    def _write(self, known: int, trial: Trial, stored: FrozenTrial, facts: Mapping[str, Any]) -> None:
        """Write parameters and attributes of a trial in one transaction, as far as they are not there."""
        parameters = [
            {
                "param_name": name,
                "param_value": each.to_internal_repr(trial.subnet[name]),
                "distribution_json": _json(each),
            }
            for name, each in self._distributions.items()
            if name not in stored.params
        ]
        attributes = [
            {"key": name, "value_json": json.dumps(value)}
            for name, value in facts.items()
            if name not in stored.user_attrs
        ]
        with self._backend.engine.begin() as connection:
            for name, rows in (("trial_params", parameters), ("trial_user_attributes", attributes)):
                if rows:
                    table = sqlalchemy.table(name, *map(sqlalchemy.column, ("trial_id", *rows[0])))
                    connection.execute(sqlalchemy.insert(table), [{"trial_id": known, **row} for row in rows])


def _first_number(frozen: FrozenTrial) -> int:
    return int(frozen.system_attrs.get(_FIRST, frozen.number))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
