"""Read a model from wherever it is: a module, an artifact or (zipped) Hugging Face folder, a GGUF file, a hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lissome.core.errors import ArtifactError, UnknownNameError, UnsupportedModelError
from lissome.core.events import EventStream
from lissome.core.files import known_sha256
from lissome.models.artifact import check_finite, load_folder, ready
from lissome.models.model import Model, Source

_LONGEST = 1024
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_model(
    target: Model | nn.Module | str | Path,
    *,
    name: str | None = None,
    example: Any = None,
    into: nn.Module | None = None,
    dtype: torch.dtype | None = torch.float32,
    events: EventStream | None = None,
) -> Model:
    """Read a model.

    Args:
        target: A `Model` (returned as it is), a torch module (made to evaluate, with fast scans), a folder, a
            ``.gguf`` file, a ``.zip`` of a Hugging Face folder, or a hub id ``owner/name``.
        name: What to call it in tables (default: `target`).
        example: What a torch module of any class reads: the shape of one input without the batch, or a tensor; of
            several inputs by argument name (default: what its first layer suggests).
        into: For a folder with a module of a class of the user's own, the whole module; it is copied.
        dtype: Type to hold the weights in; None keeps the stored one. Default float32, which every CPU computes fast.
        events: Where a conversion reports its progress.

    Raises:
        UnknownNameError: When `target` is empty, of another type, or neither a path nor a hub id.
        ArtifactError: When files are missing or damaged.
        NumericsError: When a weight is NaN or infinite.
        UnsupportedModelError: When a module has no weights, or a lazy one has none yet.
    """
    check_target(target)
    if isinstance(target, Model):
        return target
    if isinstance(target, nn.Module):
        target = unwrapped(target)
        if next(target.parameters(), None) is None:
            raise UnsupportedModelError(f"{type(target).__name__} has no weights; give a network that has some.")
        check_finite(target)
        if example is not None:
            from lissome.models.traced.inputs import tell

            tell(target, example)
        return Model(ready(target), source=Source(name or type(target).__name__))
    path = Path(target)
    if path.is_dir():
        return load_folder(path, name=name or str(target), into=into, dtype=dtype)
    if path.is_file():
        return _load_file(path, name or str(target), dtype, events)
    if isinstance(target, str) and _HUB_ID.fullmatch(target):
        return _load_hub(target, name or target, dtype)
    raise UnknownNameError(f"{str(target)!r} is not a file, a folder or a hub id (owner/name); see: lissome assets")


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of what torch puts around one: `torch.compile`, and data-parallel training."""
    around: Any = module
    while hasattr(around, "_orig_mod") or isinstance(around, nn.DataParallel | nn.parallel.DistributedDataParallel):
        around = around._orig_mod if hasattr(around, "_orig_mod") else around.module
    inner: nn.Module = around
    return inner


def check_target(target: Any) -> None:
    """Refuse what cannot name a model at all.

    Raises:
        UnknownNameError: When it is of another type, empty, or longer than any path.
    """
    if not isinstance(target, Model | nn.Module | str | Path):
        given = f"{type(target).__name__} {ascii(target)[:40]}" if target is not None else "None"
        raise UnknownNameError(
            f"no model can be read from {given}; give an asset name (see: lissome assets), a folder, a .gguf file, "
            "a hub id owner/name, or a torch module."
        )
    if target == "":
        raise UnknownNameError(
            'the name of the model is empty; give an asset, a path or a hub id ("." is this folder).'
        )
    if isinstance(target, str | Path) and len(str(target)) > _LONGEST:
        raise UnknownNameError(f"{str(target)[:40]!r}… has {len(str(target))} letters, more than a path can have.")


def _load_file(path: Path, name: str, dtype: torch.dtype | None, events: EventStream | None) -> Model:
    from lissome.models.archive import unpack_once
    from lissome.models.gguf import convert

    if path.suffix == ".pth":
        return _load_pth(path, name, dtype)
    if path.suffix == ".safetensors":
        raise ArtifactError(
            f"{path} holds weights alone; give the folder with its config.json: {path.absolute().parent}"
        )
    if path.suffix not in {".gguf", ".zip"}:
        raise ArtifactError(
            f"{path} is neither a .gguf nor a .zip file; give one, a folder with safetensors, or an asset name."
        )
    folder = unpack_once(path) if path.suffix == ".zip" else convert(path, events=events)
    model = load_folder(folder, name=name, dtype=dtype)
    return replace(model, source=replace(model.source, path=path))


def _load_pth(path: Path, name: str, dtype: torch.dtype | None) -> Model:
    """Read the one file of this kind whose network is known: a state dict alone does not say what it belongs to."""
    from lissome.models.convnet import EFFICIENTNET_LITE0, FILE_OF_LITE0, ConvNetConfig, in_order
    from lissome.models.torch_file import read_tensors

    digest = known_sha256(path)
    if digest != FILE_OF_LITE0:
        raise ArtifactError(
            f"{path} holds tensors, but does not say of which network; build the module, fill it, and give the module."
        )
    module: nn.Module = in_order(ConvNetConfig(**EFFICIENTNET_LITE0), read_tensors(path))
    check_finite(module)
    return Model(module if dtype is None else module.to(dtype), source=Source(name, path, digest))


def _load_hub(target: str, name: str, dtype: torch.dtype | None) -> Model:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt"]
    try:
        folder = snapshot_download(target, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{target} could not be fetched from the hub ({reason}); download it, then give the folder."
        ) from error
    return load_folder(Path(folder), name=name, dtype=dtype)
