"""Whether the tensors of a folder are those of the model that its ``config.json`` describes: all, no others, floats.

transformers fills what is missing with random numbers and leaves out what it does not know. Here both are refused,
except for what is missing or left over on purpose: tied weights, what a class of transformers itself says to ignore,
buffers that older versions stored, and the head of another task of the same kind of model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError
from lissome.core.files import parse_json, read_json
from lissome.models.build import GENERATION, configuration, sibling_classes

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_PLAIN = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_OLD_BUFFERS = re.compile(r"(^|\.)(position_ids|masked_bias|attn\.bias|rotary_emb\.inv_freq|num_batches_tracked)$")
_REMEDY = "get the weights or config.json again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its number type in the format's words, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_entries(files: Iterable[Path]) -> dict[str, Entry]:
    """Return what safetensors files say of their tensors, which are not read.

    Raises:
        SafetensorError: When a file is damaged.
        ArtifactError: When a tensor is there twice.
    """
    from safetensors import safe_open

    found: dict[str, Entry] = {}
    for file in files:
        with safe_open(file, "pt") as opened:  # it checks lengths and offsets, but takes the last of equal names
            _check_header(file)
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name in found:
                    raise ArtifactError(f"{file.name} holds {name}, and so does another file of the folder; {_REMEDY}.")
                part = opened.get_slice(name)
                found[name] = Entry(part.get_dtype(), tuple(part.get_shape()))
    return found


def _check_header(file: Path) -> None:
    """Refuse a header that has a name twice; its length was checked."""
    with file.open("rb") as opened:
        parse_json(opened.read(int.from_bytes(opened.read(8), "little")), f"the header of {file.name}")


def check_entries(entries: Mapping[str, Entry], module: nn.Module) -> None:
    """Compare the tensors of files with a stock model before any memory is taken for it.

    Args:
        entries: What the files say.
        module: The model with empty parameters.

    Raises:
        ArtifactError: When numbers are missing, a shape is another, or whole numbers stand for floats.
    """
    expected = {name: tuple(value.shape) for name, value in _state(module).items()}
    places = {key: _place(key, module, expected) for key in entries}
    check_shapes({place: entries[key].shape for key, place in places.items() if place is not None}, module)
    for key, entry in entries.items():
        if entry.dtype not in _FLOATS and not _is_buffer(key, places[key], module):
            raise ArtifactError(f"{key} is stored as {entry.dtype}, but only floating numbers are read; {_REMEDY}.")
    missing = _missing(module, expected, {place for place in places.values() if place is not None})
    unplaced = sum(prod(entries[key].shape) for key, place in places.items() if place is None)
    if sum(prod(expected[name]) for name in missing) > unplaced:  # not even with other names are there enough numbers
        raise misfit(missing, (), ())


def check_shapes(shapes: Mapping[str, tuple[int, ...]], module: nn.Module) -> None:
    """Compare shapes with those of the tensors of a module that have the same names; other names are left alone.

    Raises:
        ArtifactError: Names the first that differs.
    """
    expected = {name: tuple(value.shape) for name, value in _state(module).items()}
    for name, shape in shapes.items():
        if name in expected and shape != expected[name]:
            raise ArtifactError(
                f"{name} has the shape {list(shape)}, but config.json asks for {list(expected[name])}; {_REMEDY}."
            )


def check_filled(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Compare tensors, under their names in the module, with a module of our own sizes.

    Raises:
        ArtifactError: As `check_entries`, and when a tensor is not of the module.
    """
    state = _state(module)
    unknown = [name for name in tensors if name not in state and not _OLD_BUFFERS.search(name)]
    missing = _missing(module, {name: tuple(value.shape) for name, value in state.items()}, set(tensors))
    if missing or unknown:
        raise misfit(missing, unknown, ())
    fitting = {name: tensor for name, tensor in tensors.items() if name in state}
    check_shapes({name: tuple(tensor.shape) for name, tensor in fitting.items()}, module)
    for name, tensor in fitting.items():
        if tensor.dtype not in _PLAIN and state[name].is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ArtifactError(f"{name} is stored as {kind}, but only floating numbers are read; {_REMEDY}.")


def shared(module: nn.Module) -> list[list[str]]:
    """Return the names of tensors that are one tensor, wherever it has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def share(module: nn.Module, names: Sequence[str], given: str) -> None:
    """Let tensors of a module be one again, as `shared` found them.

    Args:
        module: The module.
        names: Of the tensors.
        given: The one of them that was filled.
    """
    owner, _, label = given.rpartition(".")
    value = getattr(module.get_submodule(owner), label)
    for name in names:
        owner, _, label = name.rpartition(".")
        setattr(module.get_submodule(owner), label, value)


def check_loaded(info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse what transformers says it has not found, or has not used, of a stock model.

    Args:
        info: What `from_pretrained` says of its work.
        config: What ``config.json`` holds.

    Raises:
        ArtifactError: Names the first such tensor.
    """
    unknown = [name for name in sorted(info["unexpected_keys"]) if not _OLD_BUFFERS.search(name)]
    if unknown:
        others = _tensors_of_siblings(config)
        unknown = [name for name in unknown if name not in others]
    wrong = [name for name, *_ in info["mismatched_keys"]]
    if info["missing_keys"] or unknown or wrong:
        raise misfit(sorted(info["missing_keys"]), unknown, wrong)


def check_beside(folder: Path) -> None:
    """Refuse what transformers reads beside the weights without a word: broken settings, another model's adapter.

    Raises:
        ArtifactError: Names the file.
    """
    if (folder / "adapter_config.json").exists():
        raise ArtifactError("adapter_config.json names a model to load instead; give that one, or remove the file.")
    path = folder / GENERATION
    fields = read_json(path) if path.exists() else {}
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path.name} is not a JSON object; restore it or remove it.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = fields.get(name)
        if not all(
            type(token) is int for token in (given if isinstance(given, list) else [given]) if token is not None
        ):
            raise ArtifactError(f"{path.name}: {name} must be the number of a token, got {ascii(given)[:60]}.")


def misfit(missing: Collection[str], unknown: Collection[str], wrong: Collection[str]) -> ArtifactError:
    """Word what does not fit: how many tensors, and the first of each kind."""
    kinds = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    said = ", ".join(f"{len(names)} {kind} (first {next(iter(names))})" for kind, names in kinds.items() if names)
    return ArtifactError(f"the weights do not fit config.json: {said}; {_REMEDY}.")


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _place(key: str, module: nn.Module, expected: Mapping[str, Any]) -> str | None:
    """Name in the module of a stored tensor; the part without a head is stored with or without its prefix."""
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    return next((name for name in (key, prefix + key, key.removeprefix(prefix)) if name in expected), None)


def _is_buffer(key: str, place: str | None, module: nn.Module) -> bool:
    """Whether a stored tensor is a buffer that holds whole numbers or truth values, now or in older versions."""
    if _OLD_BUFFERS.search(key):
        return True
    buffers = dict(module.named_buffers())
    return any(name in buffers and not buffers[name].is_floating_point() for name in (key, place) if name is not None)


def _missing(module: nn.Module, expected: Mapping[str, Any], found: Collection[str]) -> list[str]:
    """Tensors that no file holds, and that are neither tied to one that is there nor ignored by their class."""
    tied = {name for names in shared(module) if not set(found).isdisjoint(names) for name in names}
    tied |= {name for name, source in getattr(module, "all_tied_weights_keys", {}).items() if source in found}
    tied |= {source for name, source in getattr(module, "all_tied_weights_keys", {}).items() if name in found}
    patterns = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    return [
        name
        for name in expected
        if name not in found and name not in tied and not any(re.search(pattern, name) for pattern in patterns)
    ]


def _tensors_of_siblings(config: Mapping[str, Any]) -> set[str]:
    """Names of all tensors that a model of this type has with any of its heads."""
    names: set[str] = set()
    for kind in sibling_classes(config):
        try:
            with torch.device("meta"):
                names |= kind._from_config(configuration(config)).state_dict().keys()
        except (AttributeError, LookupError, TypeError, ValueError):  # a head that this configuration does not describe
            continue
    return names
