"""Durable state of a long loop: numbered folders, each whole or absent, of which the last two are kept.

A checkpoint is ``folder/00000007/`` with `tensors.safetensors` and `state.json`. It is written beside its place and
renamed, so that a kill at any instant, or a full disk, leaves the ones before it valid; both files are covered by a
sha256, so that a damaged newest one is recognised and the one before it is used. Nothing is pickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lissome.core.errors import ArtifactError
from lissome.core.events import EventStream
from lissome.core.files import atomic_folder, read_json, sha256_file

_SCHEMA = 1
_KEEP = 2  # the newest, and one before it in case the newest is damaged
_NUMBERED = re.compile(r"\d{8}")
_STATE_LIMIT = 256 << 20  # bytes; a long curve of Subnets is large
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint held.

    Attributes:
        step: Steps done when it was written.
        tensors: Tensors by name, on the CPU.
        state: The JSON value given to `Checkpoint.save`.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: Any


class Checkpoint:
    """The checkpoints of one job in one folder, which belongs to that job alone.

    Args:
        folder: Where they are kept; made on the first save.
        key: What identifies the job, JSON-able: settings, seed, data fingerprint, model hash. A checkpoint that was
            written under another key is refused.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key: dict[str, Any] = json.loads(json.dumps(dict(key), sort_keys=True))
        self._damaged: set[Path] = set()

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Any = None) -> None:
        """Write one checkpoint, then remove all but the last two.

        Args:
            step: Steps done.
            tensors: Tensors by name, of any device; views and shared storage are allowed.
            state: Any JSON value; NaN and infinity are refused.

        Raises:
            ArtifactError: When it cannot be written (full disk, no permission); the ones before it stay valid.
        """
        before = self._numbered()
        target = self.folder / f"{int(before[-1].name) + 1 if before else 1:08d}"
        try:
            with atomic_folder(target) as part:
                save_file(_detached(tensors), part / _TENSORS)
                body = {"step": step, "key": self.key, "state": state, "tensors": sha256_file(part / _TENSORS)}
                record = {"schema": _SCHEMA, "sha256": _digest(body), "body": body}
                (part / _STATE).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            kept = f"the checkpoint before it ({before[-1].name}) is intact" if before else "there is none before it"
            cause = " ".join(str(error).split())
            raise ArtifactError(
                f"cannot write a checkpoint of step {step} to {self.folder} ({cause}); {kept}; make room there and "
                f"give the same command again."
            ) from error
        whole = [path for path in before if path not in self._damaged]
        for path in {*before, *self._damaged} - set(whole[1 - _KEEP :]):
            shutil.rmtree(path, ignore_errors=True)
        self._damaged.clear()

    def load(self, events: EventStream | None = None) -> Saved | None:
        """Return the newest whole checkpoint, or None when there is none.

        Args:
            events: Where it is said that one was damaged and is left out.

        Raises:
            ArtifactError: When it belongs to another job, or was written by a newer version.
        """
        for path in reversed(self._numbered()):
            try:
                body = self._body(path)
            except _DamageError:
                self._damaged.add(path)
                if events is not None:
                    events.message(
                        f"checkpoint {path} is damaged and left out; what came after the one before it is redone"
                    )
                continue
            self._check_key(body["key"])
            return Saved(body["step"], load_file(path / _TENSORS), body["state"])
        return None

    def clear(self) -> None:
        """Remove all checkpoints, e.g. when the job is done and its result saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbered(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NUMBERED.fullmatch(path.name))

    def _body(self, path: Path) -> dict[str, Any]:
        try:
            record = read_json(path / _STATE, limit=_STATE_LIMIT)
            schema, body = record["schema"], record["body"]
            if isinstance(schema, int) and schema <= _SCHEMA:
                whole = record["sha256"] == _digest(body) and body["tensors"] == sha256_file(path / _TENSORS)
                if not whole:
                    raise _DamageError
                assert isinstance(body, dict)
                return body
        except (ArtifactError, OSError, KeyError, TypeError) as error:
            raise _DamageError from error
        raise ArtifactError(
            f"{path} has checkpoint schema {schema}, this version reads up to {_SCHEMA}; "
            f"upgrade lissome or give another folder."
        )

    def _check_key(self, other: Mapping[str, Any]) -> None:
        for name in sorted({*self.key, *other}):
            ours, theirs = self.key.get(name), other.get(name)
            if ours != theirs:
                raise ArtifactError(
                    f"{self.folder} holds a checkpoint of another job ({name} was {theirs!r}, now {ours!r}); "
                    f"give the former settings to continue it, or another output folder to start anew."
                )


class _DamageError(Exception):
    """A checkpoint that is not whole."""


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _detached(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU where safetensors needs them: it refuses views and tensors that share storage."""
    ready: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in taken or value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()
        taken.add(value.untyped_storage().data_ptr())
        ready[name] = value
    return ready


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators of Python, NumPy and torch (CPU and CUDA) as a JSON value."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    devices = [torch.cuda.get_rng_state(index) for index in range(torch.cuda.device_count())]
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _packed(torch.get_rng_state()),
        "cuda": [_packed(state) for state in devices],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the global generators back to a state from `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpacked(state["torch"]))
    for index, packed in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_unpacked(packed), index)


def _packed(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _unpacked(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
