"""The manifest of an artifact: what a saved model is, where it came from, and the checksum of each of its files.

``manifest.json`` stands beside the weights. The curve of a run, which can have hundreds of points, is a file of its
own, ``curve.jsonl``, one point a line, and is listed among the files like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lissome import __version__
from lissome.core.errors import ArtifactError
from lissome.core.files import inside, json_text, parse_json, read_json, sha256_file, write_json, write_text
from lissome.core.method import CurvePoint
from lissome.core.metrics import Metric
from lissome.core.typed import as_json, from_json

SCHEMA = 1
MANIFEST = "manifest.json"
CURVE = "curve.jsonl"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that an artifact was made from.

    Attributes:
        name: How the user called it.
        architecture: Its `model_type`, e.g. ``"llama"``.
        sha256: Hash of its weights' file, or of several together (`lissome.core.files.sha256_files`), when it had any.
        adapters: Hashes of the adapters and virtual tokens that lay beside its weights, when there were any.
        license: SPDX name of its licence, when known.
        gguf_type: Number type that an export to GGUF takes by default, when it was read from such a file.
    """

    name: str
    architecture: str
    sha256: str | None = None
    adapters: str | None = None
    license: str | None = None
    gguf_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method that was run.

    Attributes:
        method: Its name.
        config: Its settings.
        seed: The seed it was given.
        data: Fingerprint of the text it saw.
        before: Metrics of the model it got.
        after: Metrics of the model it gave.
        seconds: How long it took.
        peak_memory: Peak resident bytes above the imported libraries; None when it was not measured.
        versions: Versions of the libraries by name, and of Python.
        details: What else the method found worth keeping.
    """

    method: str
    config: Mapping[str, Any]
    seed: int
    data: str
    before: tuple[Metric, ...] = ()
    after: tuple[Metric, ...] = ()
    seconds: float
    peak_memory: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and hash of one file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        name: What the model is called.
        base: What it was made from.
        tags: Its state, which `needs` and `leaves` of methods speak of, e.g. ``("dense", "pruned")``.
        space: The Space of the base, as JSON, when choices were made in one.
        subnet: The choice that this model is, by axis.
        layers: Physical shape of each layer, as JSON.
        lineage: Every step from the base to this model, in order.
        certificate: A guarantee about the model, as JSON, when a method gave one.
        files: Size and hash of each file, by its path inside the folder.
        lissome: Version that wrote it.
        schema: Version of this format.
    """

    name: str
    base: Base
    tags: tuple[str, ...] = ()
    space: Mapping[str, Any] | None = None
    subnet: Mapping[str, int] | None = None
    layers: tuple[Mapping[str, Any], ...] = ()
    lineage: tuple[Step, ...] = ()
    certificate: Mapping[str, Any] | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    lissome: str = __version__
    schema: int = SCHEMA

    def with_files(self, folder: Path) -> Manifest:
        """Return the manifest with every regular file below `folder` listed, except the manifest itself."""
        found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
        names = {path.relative_to(folder).as_posix(): path for path in found}
        records = {
            name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for name, path in names.items()
            if name != MANIFEST
        }
        return replace(self, files=records)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON-able fields, the schema first, leaving out what is not known."""
        return {"schema": self.schema, **as_json(self)}

    @classmethod
    def from_json(cls, fields: Any, where: str = MANIFEST) -> Manifest:
        """Rebuild a manifest from `to_json`.

        Args:
            fields: What the file held; anything at all.
            where: How to call the file in an error.

        Raises:
            ArtifactError: When it is from a newer version, or has an unknown key or a value of another type.
        """
        schema = fields.get("schema") if isinstance(fields, Mapping) else None
        if type(schema) is not int or schema < 1:
            raise ArtifactError(f"{where} states no schema version; it is damaged or not a lissome manifest.")
        if schema > SCHEMA:
            raise ArtifactError(
                f"{where} has schema {schema}, but lissome {__version__} reads up to {SCHEMA}; "
                f"upgrade with: pip install --upgrade lissome"
            )
        manifest = from_json(cls, fields, where)
        hashes = {f"files.{name}.sha256": record.sha256 for name, record in manifest.files.items()}
        for key, digest in {"base.sha256": manifest.base.sha256, **hashes}.items():
            if digest is not None and not _SHA256.fullmatch(digest):
                raise ArtifactError(f"{where}.{key} must be 64 hexadecimal digits, got {ascii(digest)[:80]}.")
        for name in manifest.files:
            _check_name(name, where)
        return manifest


def _check_name(name: str, where: str) -> None:
    """Refuse a file name that is not the one plain way to write a path inside a folder."""
    path = PurePosixPath(name)
    plain = name == path.as_posix() and path.parts and not path.is_absolute() and ".." not in path.parts
    if not plain or "\\" in name or "\0" in name or name == MANIFEST:
        raise ArtifactError(f"{where} lists the file {ascii(name)[:80]}; only names inside the folder are allowed.")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises:
        ArtifactError: When it is missing, damaged, or from a newer version.
    """
    path = folder / MANIFEST
    return Manifest.from_json(read_json(path), str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an artifact, as a file that is whole or absent."""
    write_json(folder / MANIFEST, manifest.to_json())


def verify_files(folder: Path, manifest: Manifest, *, read: Iterable[str] = ()) -> None:
    """Compare every listed file with its size and hash.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        read: Files that must be listed, because a model is read from them.

    Raises:
        ArtifactError: When a file is missing, cut short, changed, not listed or not inside the folder; names one.
    """
    for name in read:
        if name not in manifest.files:
            raise ArtifactError(
                f"{folder / name} is not listed in {MANIFEST}, so nothing tells whether it is whole; restore or remake "
                "the artifact."
            )
    for name, record in manifest.files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing, but the manifest lists it; restore or remake the artifact.")
        size = path.stat().st_size
        if size != record.bytes:
            word = "cut short" if size < record.bytes else "too long"
            raise ArtifactError(
                f"{path} is {word} ({size} bytes, the manifest says {record.bytes}); restore or remake the artifact."
            )
        if sha256_file(path) != record.sha256:
            raise ArtifactError(
                f"{path} was changed after it was written (its sha256 differs); restore or remake the artifact."
            )


def write_curve(folder: Path, points: Iterable[CurvePoint]) -> None:
    """Write the curve of a run, one point a line.

    Raises:
        NumericsError: When a figure is NaN or infinite.
    """
    path = folder / CURVE
    write_text(path, "".join(json_text(point.to_json(), str(path)) + "\n" for point in points))


def read_curve(folder: Path) -> tuple[CurvePoint, ...]:
    """Read the curve of a run; empty when the artifact has none.

    Raises:
        ArtifactError: When a line is damaged.
    """
    path = folder / CURVE
    if not path.exists():
        return ()
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from error
    places = ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1))
    return tuple(CurvePoint.from_json(parse_json(line, where), where) for where, line in places)
