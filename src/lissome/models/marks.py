"""By what a model's folder is known: its configuration, and the mark of those that lissome wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError
from lissome.core.files import read_json
from lissome.core.manifest import MANIFEST

MARK = "lissome_version"
"""Key of ``config.json`` in every folder that lissome writes, by which it knows what it may replace."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model's folder.

    Raises:
        ArtifactError: When it is missing, damaged or no object.
    """
    file = folder / "config.json"
    if not file.exists():
        inside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        near = next((name for name in inside if (folder / name / "config.json").exists()), None)
        hint = f"did you mean {folder / near}?" if near else "give the folder of a model, a file, or an asset name."
        raise ArtifactError(f"{folder} is not the folder of a model (it has no config.json); {hint}")
    config = read_json(file, finite=False)
    if not isinstance(config, dict):
        raise ArtifactError(f"{file} is not a JSON object; the file is damaged.")
    return config


def check_own(folder: Path) -> None:
    """Refuse to replace a model that lissome did not write, which may be somebody's only copy.

    Raises:
        ArtifactError: When `folder` holds a configuration without our mark.
    """
    file = folder / "config.json"
    if (folder / MANIFEST).exists() or not file.exists():
        return
    try:
        config = read_json(file, finite=False)
    except ArtifactError:
        config = None
    if not isinstance(config, dict) or MARK not in config:
        raise ArtifactError(f"{folder} holds a model that lissome did not write; name a new or an empty folder.")
