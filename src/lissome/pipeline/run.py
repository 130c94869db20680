"""The output folder of a job: its state while it runs, and the artifact once that is whole.

``out/.run/`` holds the state: what the job is, checkpoints of its steps, the staged artifact. The artifact's files
are moved up one by one, the manifest last; a folder with ``.run`` and without a manifest is an unfinished job, and
nothing opens it. Nothing outside `out` is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError, ConfigError, LissomeError
from lissome.core.files import check_writable, read_json, write_json
from lissome.core.manifest import MANIFEST
from lissome.pipeline.loading import RUN_FOLDER

RESULT = "result.json"
_JOB = "job.json"
_STAGED = "artifact"
_LOCK = "lock"


class RunFolder:
    """The folder of one job.

    Args:
        out: The output folder.
        identity: What makes the job itself.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out, self.identity = out, json.loads(json.dumps(identity))
        self.state = out / RUN_FOLDER

    def _begun(self) -> Any:
        """What was begun here; the same job where a killed process has not written that down."""
        file = self.state / _JOB
        try:
            return read_json(file) if file.exists() else self.identity
        except ArtifactError as error:
            raise ArtifactError(
                f"{file} is damaged, so that nobody knows what was begun there; choose another --out, or delete "
                f"{self.state} to begin anew."
            ) from error

    def finished(self) -> dict[str, Any] | None:
        """Return the stored result when this very job is done, None when it is not.

        Raises:
            ConfigError: When the folder holds another job, or things that are not ours.
        """
        if self.state.is_dir():
            self._same(self._begun())
            return None
        if (self.out / MANIFEST).exists():
            result = read_json(self.out / RESULT) if (self.out / RESULT).exists() else {}
            job = result.get("job") if isinstance(result, dict) else None
            if not isinstance(job, dict):
                raise ConfigError(
                    f"{self.out} holds an artifact, but no {RESULT} that says of which job; choose another --out, or "
                    "delete that folder."
                )
            self._same(job)
            return dict(result)
        check_place(self.out)
        return None

    def _same(self, other: Mapping[str, Any]) -> None:
        found = _difference(other, self.identity)
        if found is not None:
            name, there, here = found
            raise ConfigError(
                f"{self.out} holds another job: {name} is {_short(there)} there, {_short(here)} here; choose another "
                "--out, or delete that folder."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            ConfigError: When another process works in it.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    f"another process is working in {self.out}; wait for it, or choose another --out."
                ) from error
            write_json(self.state / _JOB, self.identity)
            try:
                yield
            except LissomeError:
                self._forget()
                raise

    def _forget(self) -> None:
        """Drop the state of a job that was refused before it had anything to continue from."""
        files = {path.name for path in self.state.rglob("*") if path.is_file()}
        if files <= {_JOB, _LOCK}:
            shutil.rmtree(self.state)
            with contextlib.suppress(OSError):  # something else lies there
                self.out.rmdir()

    def step(self, index: int, name: str) -> Path:
        """Folder of one step's checkpoints."""
        folder = self.state / f"{index}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def staged(self) -> Path:
        """Where the artifact is put together."""
        return self.state / _STAGED

    def publish(self) -> None:
        """Move the staged artifact up, the manifest last, then drop the state."""
        if not (self.staged / MANIFEST).exists():
            raise ArtifactError(f"{self.staged} is not whole; give the same command again.")
        names = sorted((path.name for path in self.staged.iterdir()), key=lambda name: name == MANIFEST)
        for name in names:
            if (self.out / name).is_dir():  # of a publication that was cut short: a folder does not replace another
                shutil.rmtree(self.out / name)
            (self.staged / name).replace(self.out / name)
        shutil.rmtree(self.state)


def check_place(out: Path) -> None:
    """Refuse, before any work, an output folder that cannot be written or holds what is not a job's.

    Raises:
        ConfigError: Says which.
    """
    check_writable(out)
    ours = (out / RUN_FOLDER).is_dir() or (out / MANIFEST).exists()
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not the folder of a lissome job; choose another --out.")


def _difference(there: Any, here: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two values differ, in the order of `here`, whose last hash tells least; None: nowhere."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        pairs = [(f"{name}.{key}", there.get(key), here.get(key)) for key in dict.fromkeys((*here, *there))]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [
            (f"{name}.{number}" if len(here) > 1 else name, *both)
            for number, both in enumerate(zip(there, here, strict=True), start=1)
        ]
    for where, one, other in pairs:
        if (found := _difference(one, other, where)) is not None:
            return found
    return None if there == here else (name.removeprefix(".") or "it", there, here)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-1]}"
