"""From whatever a user calls a model to a `Model`: assets and the zoo by name, and all `lissome.models.load` reads."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.errors import ArtifactError, UnknownNameError, nearest
from lissome.core.events import EventStream
from lissome.core.files import sha256_file
from lissome.core.manifest import MANIFEST
from lissome.data import assets
from lissome.models.artifact import ADAPTER, PROMPT
from lissome.models.crops import FILE as CROPS
from lissome.models.load import check_target, load_model
from lissome.models.model import Model
from lissome.models.nested.folder import nested_folder
from lissome.models.zoo import LICENCE, load_zoo, zoo

RUN_FOLDER = ".run"
"""Where a job keeps its state inside its output folder until the result is whole."""
RECIPE = "recipe.toml"
"""The recipe of a federation: in its state, so that it can be continued, and beside its result."""


def load(
    target: Model | nn.Module | str | Path,
    *,
    example: Any = None,
    into: nn.Module | None = None,
    dtype: torch.dtype | None = torch.float32,
    events: EventStream | None = None,
) -> Model:
    """Read a model.

    Args:
        target: An asset or zoo name (``lissome assets``), a folder, a ``.gguf`` file, a hub id ``owner/name``, a torch
            module, or a `Model`, which is returned as it is.
        example: What a torch module of any class reads, such as ``(3, 224, 224)``: the shape of one input without the
            batch, or a tensor; of several inputs by argument name (default: what its first layer suggests).
        into: For a folder with a module of a class of the user's own, the whole module; it is copied.
        dtype: Type to hold the weights in; None keeps the stored one. Default float32, which every CPU computes fast.
        events: Where fetching and converting report their progress.

    Raises:
        UnknownNameError: When `target` is nothing that can be read; names the nearest asset.
        ArtifactError: When files are missing, damaged, or belong to an unfinished job.
        AssetError: When an asset cannot be fetched.
        NumericsError: When a weight is NaN or infinite.
    """
    check_target(target)
    nested = nested_folder(target)
    if nested is not None and not (nested / "config.json").is_file():
        raise ArtifactError(
            f"{target} holds nested weights, which the decoder engine runs (generate, bench, inspect, serve, eval on "
            "text); for all else give the model that it was made from."
        )
    if isinstance(target, str) and target in assets.assets() and not Path(target).exists():
        model = load_model(assets.fetch(target, events=events), name=target, dtype=dtype, events=events)
        return replace(model, source=replace(model.source, name=target))
    if isinstance(target, str) and target in zoo() and not Path(target).exists():
        return load_zoo(target, dtype=dtype)
    if isinstance(target, str | Path):
        check_finished(Path(target))
    try:
        return load_model(target, example=example, into=into, dtype=dtype, events=events)
    except UnknownNameError as error:
        raise unknown_model(str(target)) from error


def check_finished(folder: Path) -> None:
    """Refuse a folder whose artifact is not whole yet.

    Raises:
        ArtifactError: When a job works there, or was interrupted.
    """
    if (folder / RUN_FOLDER).is_dir() and not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder} belongs to a job that is not finished; {_continuing(folder)}")


def _continuing(folder: Path) -> str:
    """How to go on with a job: of a federation, which keeps its recipe, the command itself."""
    recipe = folder / RUN_FOLDER / RECIPE
    if not recipe.is_file():
        return "give its command again to continue it."
    joined = (folder / RUN_FOLDER / "app").is_dir() and not (folder / RUN_FOLDER / "parts").is_dir()
    command = f"lissome federate {'server ' * joined}{shlex.quote(str(recipe))} --out {shlex.quote(str(folder))}"
    return f"continue it with: {command}{' (and its --credentials, --host and --port)' * joined}"


def unknown_model(target: str) -> UnknownNameError:
    """Return what to raise for a name that is nothing; it names the nearest model beside it, or asset."""
    names, local = [*sorted(assets.assets()), *sorted(zoo())], _models_beside(Path(target))
    guess, known = nearest(os.path.normpath(target), [*local, *names]), ", ".join(names)
    hint = f" did you mean {'' if guess in local else 'the asset '}{guess!r}?" if guess else ""
    return UnknownNameError(
        f"{target!r} is not an asset, a file, a folder or a hub id (owner/name);{hint} assets: {known}."
    )


def _models_beside(path: Path) -> list[str]:
    """Folders and files with models beside a place where there is none, as they would be written there."""
    try:
        beside = path.parent.iterdir()
        return sorted(str(one) for one in beside if one.suffix in (".gguf", ".zip") or (one / "config.json").is_file())
    except (OSError, ValueError):  # no such folder, or a closed one: nothing to guess from
        return []


def weights_of(model: Model) -> str:
    """What tells the weights of a model from others: their hash, with those of adapters that lie beside them."""
    known, beside = model.source.sha256 or model.name, adapters_of(model)
    return known if beside is None else f"{known}+{beside}"


def adapters_of(model: Model) -> str | None:
    """Hashes of adapters, virtual tokens and maps of kernels that lie beside the weights of a model; None without."""
    folder, patterns = model.source.path, (f"{ADAPTER}/*.*", f"{PROMPT}/*.*", CROPS)
    beside = sorted(file for pattern in patterns for file in folder.glob(pattern)) if folder else []
    return "+".join(sha256_file(file) for file in beside) or None


def licence_of(model: Model) -> str | None:
    """Licence of a model, where it is known: of an asset, of the zoo, or of the base of an artifact."""
    if model.manifest is not None:
        return model.manifest.base.license
    if model.name in zoo():
        return LICENCE
    return assets.assets()[model.name].licence if model.name in assets.assets() else None
