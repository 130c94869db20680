"""Stores a model that was trained here among those that ship with lissome, and enters it into their index."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lissome.core.files import read_json, sha256_file, write_json
from lissome.engine.evaluate import versions
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.precision import in_dtype
from lissome.models.zoo import INDEX


def ship(
    name: str,
    model: Model,
    out: Path,
    *,
    summary: str,
    judge: Callable[[Model], Mapping[str, float]],
    training: Mapping[str, Any],
    figure: str = "quality",
) -> Mapping[str, float]:
    """Store a model in float16 and enter it into the index; the figures are those of the stored one.

    Args:
        name: Its name.
        model: The model, in float32.
        out: Folder of all models.
        summary: One line.
        judge: Says how good a model is on held-out examples.
        training: How it was made; versions and the machine are added.
        figure: Field of the index that the figures go to.

    Returns:
        The figures.
    """
    Model(in_dtype(model, torch.float16).module, model.tokenizer).save(out / name)
    found = dict(judge(load_model(out / name, dtype=torch.float32)))
    enter(name, out, summary=summary, found=found, training=training, figure=figure)
    return found


def enter(
    name: str,
    out: Path,
    *,
    summary: str,
    found: Mapping[str, float],
    training: Mapping[str, Any],
    figure: str = "quality",
) -> None:
    """Enter what lies in a folder into the index, with the hashes of its files; arguments as in `ship`."""
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    entry = {
        "summary": summary,
        figure: dict(found),
        "files": {path.name: sha256_file(path) for path in sorted((out / name).iterdir())},
        "training": {**training, **machine, "versions": versions()},
    }
    index = read_json(out / INDEX) if (out / INDEX).exists() else {}
    write_json(out / INDEX, {**index, name: entry})
