"""What lies beside a model of images or sounds and says how these become numbers; it goes where the model goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lissome.core.errors import ArtifactError
from lissome.core.files import read_json, write_json

FILES = ("preprocessor_config.json", "processor_config.json")
"""As transformers names them, the newer one last."""
_OF_IMAGES = "image_processor"  # how the newer one calls the part that was a file of its own
_AS_THEY_ARE = {"image_mean": [0.0], "image_std": [1.0]}


def read_preparing(folder: Path) -> dict[str, Any]:
    """Return what such files of a folder hold, by name.

    Raises:
        ArtifactError: When one is damaged, or says of pixels what cannot be.
    """
    found = {name: read_json(folder / name) for name in FILES if (folder / name).exists()}
    for file, fields in found.items():
        if not isinstance(fields, dict):
            raise ArtifactError(f"{folder / file} is not a JSON object; restore it or remove it.")
    for name, above in (("image_mean", None), ("image_std", 0)):
        given = pixel_numbers(found, name)
        if given is not None and not _numbers(given, above):
            what = "positive numbers" if above == 0 else "numbers"
            raise ArtifactError(f"{folder}: {name} must be {what}, one for each channel, got {ascii(given)[:40]}.")
    return found


def write_preparing(preparing: Mapping[str, Any], folder: Path) -> None:
    """Write the files that `read_preparing` read."""
    for name, fields in preparing.items():
        write_json(folder / name, fields)


def pixel_numbers(preparing: Mapping[str, Any], name: str) -> Any:
    """Return the list ``image_mean`` or ``image_std``, of pixels in [0, 1]; None where it is not said."""
    for fields in reversed(list(preparing.values())):
        inner = fields.get(_OF_IMAGES)
        part = inner if isinstance(inner, dict) else fields
        if part.get("do_normalize") is False:
            return _AS_THEY_ARE[name]
        if part.get(name) is not None:
            return part[name] if isinstance(part[name], list) else [part[name]]
    return None


def _numbers(given: list[Any], above: int | None) -> bool:
    if not given or not all(type(one) in (int, float) for one in given):
        return False
    return above is None or min(given) > above
