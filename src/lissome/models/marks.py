"""By what a model's folder is known: its configuration, and the mark of those that lissome wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lissome import __version__
from lissome.core.errors import ArtifactError
from lissome.core.files import read_json
from lissome.core.manifest import MANIFEST

MARK = "lissome_version"
"""Key of ``config.json`` in every folder that lissome writes, by which it knows what it may replace."""

_FLOAT = "__float__"


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


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as the text of ``config.json``."""
    return json.dumps(_tagged({**config, MARK: __version__}), indent=2, sort_keys=True) + "\n"


def _tagged(value: Any) -> Any:
    """Write infinity (an open limit of Mamba-2) as transformers does, because JSON has no such number."""
    if isinstance(value, dict):
        return {key: _tagged(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(inner) for inner in value]
    return {_FLOAT: f"{'-' if value < 0 else ''}Infinity"} if isinstance(value, float) and math.isinf(value) else value


def untagged(value: Any) -> Any:
    """Read numbers that `config_text` tagged."""
    if isinstance(value, dict):
        tag = value.get(_FLOAT)
        if len(value) == 1 and tag in ("Infinity", "-Infinity"):
            return float(tag)
        return {key: untagged(inner) for key, inner in value.items()}
    return [untagged(inner) for inner in value] if isinstance(value, list) else value


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
