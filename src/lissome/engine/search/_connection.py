"""Connections to a study's database, and what they can fail with as one line."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lissome.core.errors import ArtifactError, ConfigError, LissomeError, MissingExtraError
from lissome.engine.search._optuna import quiet

_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # by their module
_DAMAGED = ("not a database", "malformed", "no such")


def file_of(study: Path | str) -> Path | str:
    """Return the file of an SQLite study, however it was called; the URL of any other."""
    text = str(study)
    if isinstance(study, Path) or "://" not in text:
        return Path(study)
    for scheme in ("sqlite:///", "sqlite+pysqlite:///"):
        if text.startswith(scheme):
            return Path(text.removeprefix(scheme))
    return text


def shown(where: Path | str) -> str:
    """Return how a place is called in messages: a URL without its password."""
    if isinstance(where, Path):
        return str(where)
    try:
        return sqlalchemy.make_url(where).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return where.rpartition("@")[2]


def connect(where: Path | str, *, heartbeat: int, patience: float) -> RDBStorage:
    """Open a database, or make an SQLite file.

    Args:
        where: The file, or the URL.
        heartbeat: Seconds between signs of life; after four that were missed, a trial is written down again.
        patience: Seconds to wait for a locked file.
    """
    options: dict[str, Any] = {"pool_pre_ping": True}
    if isinstance(where, Path):
        where.parent.mkdir(parents=True, exist_ok=True)
        path = where.resolve()
        options, where = {"creator": lambda: _sqlite(path, patience)}, f"sqlite:///{path}"
    return RDBStorage(
        where.replace("{", "{{").replace("}", "}}"),  # Optuna reads a URL as a template
        engine_kwargs=options,
        heartbeat_interval=heartbeat,
        grace_period=4 * heartbeat,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


def _sqlite(path: Path, patience: float) -> sqlite3.Connection:
    """Open a file so that readers and a writer do not wait for each other; each commit is whole after a kill."""
    connection = sqlite3.connect(path, timeout=patience, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Turn what a database can fail with into one line, and keep Optuna from talking.

    Args:
        name: How the place is called; see `shown`.

    Raises:
        ArtifactError: When the study is damaged, locked, of another version, or cannot be reached.
        ConfigError: When the URL is not one.
        MissingExtraError: When the database's driver is not installed.
    """
    try:
        with quiet():
            yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        raise _failure(name, error) from error
    except ImportError as error:
        missing: str = getattr(_root(error), "name", None) or "the database's driver"
        driver = _PACKAGES.get(missing, missing)
        raise MissingExtraError(f"{name} needs a driver; install it with: pip install {driver}") from error
    except json.JSONDecodeError as error:  # of a value that Optuna keeps as JSON
        raise damaged(name, str(error)) from error
    except RuntimeError as error:  # Optuna's, when the tables are of another version of it
        raise ArtifactError(f"{name}: {' '.join(str(error).split())}") from error


def _failure(name: str, error: Exception) -> LissomeError:
    cause = _root(error)
    reason = " ".join(str(cause).split())[:200]
    if isinstance(cause, ArgumentError | NoSuchModuleError):
        return ConfigError(f"{name!r} is not a database; give a file, or a URL such as postgresql://….")
    if "locked" in reason:
        return ArtifactError(
            f"the study {name} is locked by another program; close that, then give the same command again."
        )
    if any(word in reason for word in _DAMAGED):
        return damaged(name, reason)
    if "is full" in reason:
        return ArtifactError(f"the study {name} has no room ({reason}); free some space, then give the command again.")
    return ArtifactError(f"the study {name} cannot be used ({reason}); check the place and the permissions.")


def damaged(name: str, reason: str) -> ArtifactError:
    """Return what to raise for a study that holds what lissome did not write."""
    return ArtifactError(
        f"the study {name} is damaged, or is none ({reason}); restore it, name another, or remove it to begin anew."
    )


def _root(error: BaseException) -> BaseException:
    """The first cause: Optuna and SQLAlchemy wrap what the driver said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
