"""Where a verb may write: what stands there already must be ours, and nobody's only copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError, ConfigError
from lissome.core.files import check_replaceable, check_writable
from lissome.core.manifest import MANIFEST
from lissome.cost.passes import read_table
from lissome.models.gguf.header import read_header
from lissome.models.marks import check_own
from lissome.models.model import Model
from lissome.pipeline.run import RESULT

_MARK = "lissome.version"  # in the header of every GGUF file that lissome writes


def check_export_place(target: Any, out: Path) -> None:
    """Refuse to export over the model itself, or over a file that lissome did not write.

    Args:
        target: What the user calls the model.
        out: The file or folder.

    Raises:
        ConfigError: Says which, or that the place cannot be written.
        ArtifactError: When a folder there is no saved model, or one that lissome did not write.
    """
    check_writable(out)
    source = target.source.path if isinstance(target, Model) else target
    if isinstance(source, str | Path) and out.exists() and Path(source).exists() and out.samefile(source):
        raise ConfigError(f"{out} is the model that shall be exported; name another place.")
    if out.is_dir():
        check_replaceable(out)
        check_own(out)
        _check_no_result(out)
    elif out.is_file() and out.suffix == ".gguf" and not _written_here(out):
        raise ConfigError(f"{out} exists and was not written by lissome; name another file, or remove that one.")


def check_extract_place(artifact: Path, out: Path) -> None:
    """Refuse to write a step of a curve over its own artifact, or over anything that is no artifact.

    Raises:
        ConfigError: When it is or holds the artifact, is the result of another job, or cannot be written.
        ArtifactError: When something else stands there.
    """
    check_writable(out)
    if out.exists() and artifact.exists() and out.samefile(artifact):
        raise ConfigError(f"{out} is the artifact itself, whose curve would be lost; name another folder.")
    check_replaceable(out, (MANIFEST,))
    if out.exists() and artifact.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"{artifact} lies in {out}, which would be replaced with all that is in it; name another folder."
        )
    _check_no_result(out)


def _check_no_result(out: Path) -> None:
    """Refuse to replace what a job took long to make, such as a super-network, by what is made from it in seconds."""
    if (out / RESULT).is_file():
        raise ConfigError(
            f"{out} is the result of a job (fit, supernet or federate), which would be lost; name another folder."
        )


def check_table_place(out: Path) -> None:
    """Refuse to write a latency table over anything else.

    Raises:
        ConfigError: When something else stands there, or it cannot be written.
    """
    check_writable(out)
    if out.is_file() and not out.stat().st_size:
        return
    try:
        if out.exists():
            read_table(out)
    except (ArtifactError, ConfigError) as error:
        raise ConfigError(f"{out} exists and is not a latency table; name another file, or remove it.") from error


def _written_here(file: Path) -> bool:
    try:
        return not file.stat().st_size or _MARK in read_header(file).metadata
    except ArtifactError:
        return False
